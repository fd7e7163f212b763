"""The one table of samplers, and samplers made by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from specmask.errors import UserError, unknown
from specmask.masking import parse_window
from specmask.models.checkpoint import Model, load
from specmask.models.guides import load_error_head, load_policy
from specmask.models.protocol import has_head
from specmask.samplers.ancestral import Ancestral
from specmask.samplers.any_order import AnyOrder
from specmask.samplers.any_subset import AnySubset
from specmask.samplers.base import Sampler
from specmask.samplers.confidence import Confidence, Threshold
from specmask.samplers.dilated import Dilated
from specmask.samplers.entropy_bound import EntropyBound
from specmask.samplers.first_hitting import FirstHitting
from specmask.samplers.klass import Klass
from specmask.samplers.optimal import Optimal, read_profile
from specmask.samplers.p2 import PathPlanning
from specmask.samplers.policy import LearnedPolicy
from specmask.samplers.rcr import RunningConfidence
from specmask.samplers.remdm import ReMDM
from specmask.samplers.speculative import Speculative
from specmask.samplers.star import Star

SAMPLERS = {
    "speculative": Speculative,
    "ancestral": Ancestral,
    "any_order": AnyOrder,
    "first_hitting": FirstHitting,
    "confidence": Confidence,
    "threshold": Threshold,
    "entropy_bound": EntropyBound,
    "dilated": Dilated,
    "klass": Klass,
    "star": Star,
    "remdm": ReMDM,
    "p2": PathPlanning,
    "rcr": RunningConfidence,
    "policy": LearnedPolicy,
    "optimal": Optimal,
    "any_subset": AnySubset,
}

WORDS: dict[str, Callable[[str], Any]] = {
    "window": parse_window,
    "profile": read_profile,
    "planner": load,
    "policy": load_policy,
    "error_head": load_error_head,
}
"""Settings that have a form in words: a window, a file, a model's name or folder."""


def make_sampler(name: str, settings: Mapping[str, Any]) -> Sampler:
    """A sampler from words, e.g. "speculative" and {"window": "cosine:0.05", "rounds": 2}.

    What is no word stands for itself, so that the settings of a results file make the sampler
    again, except one with a guide of its own.

    Raises:
        UserError: unknown name or setting; a value out of range.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    own = {item.name for item in fields(SAMPLERS[name])}
    for setting in settings:
        if setting not in own:
            raise unknown(f"setting of {name}", setting, own)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
    for setting, parse in WORDS.items():
        if isinstance(values.get(setting), str | Path):
            values[setting] = parse(str(values[setting]))
    try:
        return SAMPLERS[name](**values)
    except TypeError as error:  # a word where a number belongs
        raise UserError(f"settings of {name}: {error}") from None


def default_sampler(model: Model) -> Sampler:
    """What the model's folder recommends, e.g. by `specmask tune`; else `Speculative()`, or
    `Ancestral()` where there is no causal head.

    Raises:
        UserError: the recommendation holds what this version does not know.
    """
    saved = model.default_sampler
    if saved is None:
        return Speculative() if has_head(model.network) else Ancestral()
    try:
        return make_sampler(saved.name, saved.settings)
    except UserError as error:
        raise UserError(
            f"{saved.file}: {error}; pass a sampler, or delete the file and run specmask tune again"
        ) from None
