"""Reveal as many positions as a bound on their joint error allows (EB-Sampler)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from specmask.categorical import check_tempering
from specmask.masking import Law
from specmask.models.protocol import Meter
from specmask.samplers.base import (
    Canvas,
    State,
    StepInfo,
    Uniforms,
    check_number,
    initial_state,
    no_law,
    plain_info,
)
from specmask.samplers.selection import best, commit, propose, scores, spaced


@dataclass(frozen=True)
class EntropyBound:
    """Entropy-bounded unmasking (EB-Sampler, Ben-Hamu et al., arXiv 2505.24857).

    A heuristic order with a bound: what a group of positions loses by ignoring each other is at
    most the sum of their entropies less the largest of them. Each pass takes the positions by
    ascending entropy for as long as that stays at or below `gamma`.

    Passes: at most one a token, since the first position's bound is 0; trunk only. Published γ:
    .01 to 4 bits.
    """

    gamma: float = 0.1
    """Bound γ on a pass's joint error, in bits, at least 0; 0 groups only what is certain."""
    spacing: float = 0.0
    """Keeps what a pass reveals apart, at least 0: of the chosen, best first, those at distance at
    least max(2, ⌊spacing·masked share⌋) (dilated unmasking publishes 8); 0 does not."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0)
        check_number("spacing", self.spacing, 0)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return initial_state(canvas, uniforms, "left-to-right")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        ranking = scores(drafts, "entropy")
        ascending = ranking.neg().sort(dim=1).values / math.log(2)  # bits; ∞ outside the row
        # Ascending, the largest so far is the last: what is left is the sum of those before it.
        before = ascending.cumsum(1) - ascending
        count = (ascending.isfinite() & (before <= self.gamma)).sum(1)
        chosen = best(ranking, count)
        chosen = spaced(chosen, ranking, drafts, self.spacing, drafts.inside, state.lengths)
        return commit(state, drafts, chosen), plain_info(state, chosen.sum(1))
