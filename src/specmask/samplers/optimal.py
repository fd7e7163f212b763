"""Plain masked diffusion with the best places to cut, from the model's own loss (optimal cuts)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from specmask.categorical import check_tempering
from specmask.checks import whole
from specmask.errors import UserError, first_line
from specmask.masking import GroupLaw
from specmask.models.protocol import Meter
from specmask.samplers.ancestral import AncestralState, next_group
from specmask.samplers.base import Canvas, State, StepInfo, Uniforms, initial_state

Profile = tuple[float, ...]


def optimal_cuts(profile: Sequence[float], groups: int) -> list[int]:
    """Cuts 0 = t_0 < t_1 < … < t_K = D that lose least by revealing groups independently.

    Minimises Σ_j Σ_{d=t_j}^{t_{j+1}−1} [f(t_j) − f(d)] (Lavenant & Zanella, arXiv 2510.25544;
    method.md §6) by dynamic programming, O(D²·K) time.

    Args:
        profile: f(0..D−1), mean nats of a masked token with i known; see `nll_profile`.
        groups: K, 1..D; more than D are D.
    """
    f = torch.tensor(profile, dtype=torch.float64)
    length = len(f)
    tail = torch.cat((torch.zeros(1, dtype=torch.float64), f.cumsum(0)))
    # cost[t, u] of the group t..u−1; what Σ f(d) takes off is the same for all cuts, but kept so
    # that a cost is the error itself.
    t, u = torch.arange(length)[:, None], torch.arange(length + 1)
    cost = ((u - t) * f[:, None] - (tail[u] - tail[t])).masked_fill(u <= t, torch.inf)
    best = torch.full((length + 1,), torch.inf, dtype=torch.float64)
    best[0] = 0.0
    came: list[Tensor] = []
    for _ in range(min(groups, length)):
        best, origin = (best[:-1, None] + cost).min(0)
        came.append(origin)
    cuts = [length]
    for origin in reversed(came):
        cuts.append(int(origin[cuts[-1]]))
    return cuts[::-1]


def _at_length(profile: Profile, given: int, length: int) -> list[float]:
    """f on the free ranks given..length−1 of a row, by the share of the row that is known."""
    whole_row = torch.tensor(profile, dtype=torch.float64)
    at = torch.arange(given, length).double() * len(profile) / length
    low = at.floor().long().clamp(max=len(profile) - 1)
    high = (low + 1).clamp(max=len(profile) - 1)
    return torch.lerp(whole_row[low], whole_row[high], at - low).tolist()


def read_profile(file: str) -> Profile:
    """A profile from a JSON file with a list of numbers.

    Raises:
        UserError: no such file, or something else in it.
    """
    path = Path(file)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"profile {path}: {error}; expected a JSON list of the numbers of nll_profile"
        ) from None
    if not isinstance(values, list) or not all(isinstance(x, int | float) for x in values):
        raise UserError(f"profile {path}: expected a JSON list of the numbers of nll_profile")
    return tuple(map(float, values))


@lru_cache(maxsize=4096)
def _row_cuts(profile: Profile, steps: int, given: int, length: int) -> tuple[int, ...]:
    if given == length:
        return (length,) * (steps + 1)
    free = length - given
    if profile:
        cuts = optimal_cuts(_at_length(profile, given, length), steps)
    else:  # f falls like −log i, whose best cuts grow like squares
        shares = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** 2
        cuts = [min(free, max(j, round(free * s))) for j, s in enumerate(shares.tolist())]
    cuts = [given + cut for cut in cuts]
    return tuple(cuts + [length] * (steps + 1 - len(cuts)))


@dataclass(frozen=True)
class Optimal:
    """Ancestral sampling with fixed counts that lose least (Lavenant & Zanella, arXiv 2510.25544).

    Groups of random positions, drawn independently, as in `Ancestral(counts="fixed")`; but where a
    schedule has a formula, these counts minimise the expected factorisation error, which the
    model's own loss tells: f(i), the mean loss of a masked token with i known. It is the strongest
    plain baseline of random order. The law is exact.

    Passes: min(steps, masked tokens), trunk only. The rows of other lengths and given tokens read f
    at the share of the row that is known.
    """

    steps: int = 16
    """Passes K, at least 1."""
    profile: Profile = ()
    """f(0), …, f(D − 1) in nats, falling, from `nll_profile`, on the command line a JSON file of
    them; without one f falls like −log i, as it roughly does on text."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        try:
            values = torch.as_tensor(self.profile, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise UserError(f"profile: expected a tuple of numbers, got {reason}") from None
        if values.ndim != 1 or not bool(values.isfinite().all()):
            raise UserError("profile: expected a tuple of finite numbers, from nll_profile")
        if not isinstance(self.profile, tuple):  # settings name cached cuts, so they are hashable
            object.__setattr__(self, "profile", tuple(values.tolist()))
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> AncestralState:
        state = initial_state(canvas, uniforms, "random")
        return AncestralState(**vars(state), cuts=self._cuts(canvas.given.sum(1), canvas.lengths))

    def law(self) -> GroupLaw:
        return GroupLaw(self._cuts, self.temperature, self.top_p)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        return next_group(model, state, uniforms, self.temperature, self.top_p)

    def _cuts(
        self, given: Int64[Tensor, "rows"], lengths: Int64[Tensor, "rows"]
    ) -> Int64[Tensor, "rows cuts"]:
        rows = zip(given.tolist(), lengths.tolist(), strict=True)
        cuts = [_row_cuts(self.profile, self.steps, *row) for row in rows]
        return torch.tensor(cuts, device=lengths.device)
