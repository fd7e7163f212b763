"""Samplers: frozen dataclasses of settings. A new one is one file and one line in `SAMPLERS`."""

from specmask.samplers.ancestral import Ancestral
from specmask.samplers.any_order import AnyOrder
from specmask.samplers.base import Sampler, StepInfo
from specmask.samplers.confidence import Confidence, Threshold
from specmask.samplers.driver import Frame, Samples, sample, stream
from specmask.samplers.entropy_bound import EntropyBound
from specmask.samplers.first_hitting import FirstHitting
from specmask.samplers.speculative import Speculative

SAMPLERS = {
    "speculative": Speculative,
    "ancestral": Ancestral,
    "any_order": AnyOrder,
    "first_hitting": FirstHitting,
    "confidence": Confidence,
    "threshold": Threshold,
    "entropy_bound": EntropyBound,
}

__all__ = [
    "SAMPLERS",
    "Ancestral",
    "AnyOrder",
    "Confidence",
    "EntropyBound",
    "FirstHitting",
    "Frame",
    "Sampler",
    "Samples",
    "Speculative",
    "StepInfo",
    "Threshold",
    "sample",
    "stream",
]
