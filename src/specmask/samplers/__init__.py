"""Samplers: frozen dataclasses of settings. A new one is one file and one line in `SAMPLERS`."""

from specmask.samplers.ancestral import Ancestral
from specmask.samplers.any_order import AnyOrder
from specmask.samplers.base import Sampler, StepInfo
from specmask.samplers.driver import Frame, Samples, sample, stream
from specmask.samplers.speculative import Speculative

SAMPLERS = {
    "speculative": Speculative,
    "ancestral": Ancestral,
    "any_order": AnyOrder,
}

__all__ = [
    "SAMPLERS",
    "Ancestral",
    "AnyOrder",
    "Frame",
    "Sampler",
    "Samples",
    "Speculative",
    "StepInfo",
    "sample",
    "stream",
]
