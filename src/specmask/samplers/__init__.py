"""Samplers: frozen dataclasses of settings. A new one is one file and one line in `table`."""

from specmask.samplers.ancestral import Ancestral
from specmask.samplers.any_order import AnyOrder
from specmask.samplers.any_subset import AnySubset
from specmask.samplers.base import Sampler, StepInfo
from specmask.samplers.confidence import Confidence, Threshold
from specmask.samplers.dilated import Dilated
from specmask.samplers.driver import Frame, Samples, sample, stream
from specmask.samplers.entropy_bound import EntropyBound
from specmask.samplers.first_hitting import FirstHitting
from specmask.samplers.klass import Klass
from specmask.samplers.optimal import Optimal
from specmask.samplers.p2 import PathPlanning
from specmask.samplers.policy import LearnedPolicy
from specmask.samplers.rcr import RunningConfidence
from specmask.samplers.remdm import ReMDM
from specmask.samplers.speculative import Speculative
from specmask.samplers.star import Star
from specmask.samplers.table import SAMPLERS, default_sampler, make_sampler

__all__ = [
    "SAMPLERS",
    "Ancestral",
    "AnyOrder",
    "AnySubset",
    "Confidence",
    "Dilated",
    "EntropyBound",
    "FirstHitting",
    "Frame",
    "Klass",
    "LearnedPolicy",
    "Optimal",
    "PathPlanning",
    "ReMDM",
    "RunningConfidence",
    "Sampler",
    "Samples",
    "Speculative",
    "Star",
    "StepInfo",
    "Threshold",
    "default_sampler",
    "make_sampler",
    "sample",
    "stream",
]
