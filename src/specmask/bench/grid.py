"""Which samplers and settings a benchmark compares."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from specmask.errors import UserError
from specmask.models.checkpoint import Model
from specmask.models.protocol import has_head
from specmask.samplers import (
    SAMPLERS,
    Ancestral,
    AnyOrder,
    AnySubset,
    Confidence,
    Dilated,
    EntropyBound,
    FirstHitting,
    Klass,
    Optimal,
    PathPlanning,
    ReMDM,
    RunningConfidence,
    Sampler,
    Speculative,
    Star,
    Threshold,
    make_sampler,
)
from specmask.samplers.optimal import Profile

THRESHOLDS = (0.16, 0.18, 0.2, 0.22, 0.25, 0.3)
GAMMAS = (64.0, 32.0, 16.0, 8.0, 4.0, 2.0)
KLASS = ((0.1, 1.0), (0.2, 0.3), (0.3, 0.1))
DRAFTED = (80, 20, 5)


def default_grid(
    model: Model,
    length: int,
    targets: Sequence[float],
    profile: Profile = (),
    tuned: Mapping[float, Speculative] | None = None,
) -> list[Sampler]:
    """Every sampler of the table at settings that cost about `targets` NFE, the cheap ones first.

    Samplers with a number of steps take the steps that cost a target; one with a threshold has a
    few of them, since what it costs depends on the model; those of one token a pass come last. A
    sampler that needs a trained guide (`policy`, a planner, the learned error score) is left out,
    and so is every sampler with a verifier where the model has no causal head.

    Args:
        model: whose layers price a pass. length: tokens of a row, at least 1.
        targets: NFE, above 0.
        profile: for `Optimal`. tuned: self-speculative settings by target.
    """
    network = model.network
    share = network.trunk_layers / (network.trunk_layers + network.head_layers)
    at_targets: list[list[Sampler]] = []
    for target in sorted(targets):
        steps = round(target / share)
        found = fixed_steps(steps, profile) if 1 <= steps <= length else []
        if (block := _dilated_block(length, target / share)) is not None:
            found.append(Dilated(block=block))
        if tuned is not None and target in tuned:
            found.append(tuned[target])
        at_targets.append(found)
    thresholds: list[list[Sampler]] = [[Threshold(threshold=value)] for value in THRESHOLDS]
    bounds: list[list[Sampler]] = [[EntropyBound(gamma=value)] for value in GAMMAS]
    stable: list[list[Sampler]] = [[Klass(tau, epsilon)] for tau, epsilon in KLASS]
    chosen: list[Sampler] = []
    for found in chain.from_iterable(zip_longest(at_targets, thresholds, bounds, stable)):
        chosen += found or []
    if has_head(network):
        chosen += [AnySubset(k=k) for k in DRAFTED if k <= length]
        chosen.append(AnyOrder(source="target"))
    return list(dict.fromkeys([*chosen, FirstHitting(), AnyOrder()]))


def fixed_steps(steps: int, profile: Profile = ()) -> list[Sampler]:
    """Every sampler whose passes are a setting, at so many."""
    return [
        Ancestral(steps, "fixed", "cosine"),
        Ancestral(steps, "fixed", "linear"),
        Optimal(steps, profile),
        Confidence(steps, "drawn"),
        Confidence(steps, "margin"),
        Confidence(steps, "entropy"),
        Confidence(steps, "drawn", noise=4.5),
        Star(steps, score="random"),
        Star(steps, score="confidence"),
        ReMDM(steps, "cap"),
        ReMDM(steps, "rescale"),
        ReMDM(steps, "confidence"),
        ReMDM(steps, "loop"),
        PathPlanning(steps),
        RunningConfidence(steps),
    ]


def _dilated_block(length: int, passes: float) -> int | None:
    """The power of two whose passes, ⌈log₂ B⌉ for each block, come nearest, within a fourth."""
    powers = [1 << k for k in range(1, length.bit_length()) if 1 << k <= length]
    costs = {block: -(-length // block) * (block.bit_length() - 1) for block in powers}
    near = [block for block in powers if 0.8 < costs[block] / passes < 1.25]
    return min(near, key=lambda block: abs(costs[block] - passes), default=None)


def read_grid(path: Path) -> list[Sampler]:
    """Samplers from a file: of each its settings, and of a list every value in turn.

    TOML or JSON, e.g. `[speculative]`, `window = ["cosine:0.05", "full"]`, `rounds = [1, 2]` makes
    four settings; a sampler may have several tables, as `[[ancestral]]`.

    Raises:
        UserError: no such file, not TOML or JSON, what `make_sampler` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"no grid {path}: {error.strerror}; check the path") from None
    except ValueError as error:  # both decoders', and bytes that are not UTF-8
        raise UserError(f"{path} is not {path.suffix[1:] or 'TOML'}: {error}") from None
    if not isinstance(tables, dict) or not tables:
        raise UserError(f'{path}: expected samplers by name, e.g. {{"ancestral": {{"steps": 8}}}}')
    chosen: list[Sampler] = []
    for name, entries in tables.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, dict):
                raise UserError(f"{path}: {name} is {entry!r}: expected a table of its settings")
            try:
                chosen += [make_sampler(name, settings) for settings in _products(entry)]
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    return list(dict.fromkeys(chosen))


def _products(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    values = [value if isinstance(value, list) else [value] for value in entry.values()]
    return [dict(zip(entry, each, strict=True)) for each in itertools.product(*values)]


def named(samplers: Sequence[Sampler], names: Sequence[str]) -> list[Sampler]:
    """Those of `samplers` that have one of the names; all of them for no names.

    Raises:
        UserError: a name that is of none of them.
    """
    kinds = {name: SAMPLERS[name] for name in names}
    found = [one for one in samplers if not names or type(one) in kinds.values()]
    for name, kind in kinds.items():
        if not any(type(one) is kind for one in found):
            raise UserError(
                f"sampler {name}: the grid has no setting of it for this model and these targets; "
                "name some in a --grid"
            )
    return found
