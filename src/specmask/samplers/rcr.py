"""Reveal everything, then hide again what was least sure when it was drawn (RCR)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from specmask.categorical import check_tempering
from specmask.checks import whole
from specmask.errors import unknown
from specmask.masking import SCHEDULES, Law, Schedule, fixed_cuts
from specmask.models.protocol import Meter
from specmask.samplers.base import Canvas, State, StepInfo, Uniforms, no_law
from specmask.samplers.remasking import (
    RewritableState,
    at_positions,
    inside,
    rewritable_state,
    rewrite,
)
from specmask.samplers.selection import best, propose, scores


@dataclass(frozen=True)
class RunningConfidence:
    """Running-confidence remasking (RCR, in MDPO, He et al., arXiv 2508.13148).

    A heuristic. Each pass draws every masked position; then, of all tokens drawn so far, those
    that were least probable when they were drawn are hidden again, as many as the schedule
    leaves masked. So a token that was shown for many passes can still be taken back when surer
    ones appear. Probabilities are the model's own, without temperature or top-p.

    Passes: the number of steps after which fewer positions are masked than before, at most
    `steps`, trunk only. Published: linear counts, greedy tokens. The published code does this
    within a block at a time; here the block is the row.
    """

    steps: int = 32
    """Steps S, at least 1."""
    schedule: Schedule = "linear"
    """cosine (masked share cos(π/2·j/S)) or linear."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> RewritableState:
        return rewritable_state(canvas, uniforms, "left-to-right")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, RewritableState)
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        tokens = at_positions(drafts, drafts.tokens, state.tokens)
        log_p = at_positions(drafts, scores(drafts, "drawn"), state.log_p)
        cuts = fixed_cuts(self.schedule, self.steps, state.given.sum(1), state.lengths)
        ahead = (cuts > state.revealed[:, None]).long().argmax(1)
        count = cuts.gather(1, ahead[:, None])[:, 0]
        ranking = log_p.masked_fill(state.given, 1.0).masked_fill(~inside(state), -1e300)
        return rewrite(replace(state, log_p=log_p), tokens, best(ranking, count), model.mask_id)
