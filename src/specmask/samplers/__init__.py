"""Samplers: frozen dataclasses of settings. A new one is one file and one line in `SAMPLERS`."""

from specmask.samplers.ancestral import Ancestral
from specmask.samplers.any_order import AnyOrder
from specmask.samplers.base import Sampler, StepInfo
from specmask.samplers.confidence import Confidence, Threshold
from specmask.samplers.driver import Frame, Samples, sample, stream
from specmask.samplers.entropy_bound import EntropyBound
from specmask.samplers.first_hitting import FirstHitting
from specmask.samplers.speculative import Speculative
from specmask.samplers.table import SAMPLERS, default_sampler, make_sampler

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
    "default_sampler",
    "make_sampler",
    "sample",
    "stream",
]
