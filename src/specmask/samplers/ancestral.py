"""Plain masked diffusion: each pass reveals a group of positions, drawn independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.checks import whole
from specmask.errors import UserError, unknown
from specmask.masking import SCHEDULES, GroupLaw, Schedule, fixed_cuts, schedule_levels
from specmask.models.protocol import Meter
from specmask.samplers.base import (
    Canvas,
    State,
    StepInfo,
    Uniforms,
    draw_drafts,
    initial_state,
    place,
    plain_info,
    reveal,
)


@dataclass(frozen=True)
class AncestralState(State):
    """`cuts` (B, steps + 1): how many ranks are known after each step."""

    cuts: Tensor


@dataclass(frozen=True)
class Ancestral:
    """Ancestral sampling of masked diffusion (MDLM 2406.07524, MD4 2406.04329).

    Its law tends to the any-order law of the draft as steps → ∞; at few steps the tokens of one
    step ignore each other, which is the error self-speculation removes.

    With counts="random" each free position is revealed in a step with probability
    (α_s − α_t)/(1 − α_t), as the reverse process says. Equivalently every position draws one
    uniform u and is revealed in the first step whose α reaches u: that is how it is done here,
    and a step in which a row reveals nothing costs that row no pass. With counts="fixed" the
    counts are those of the schedule and the positions are random. The last step draws from the
    draft like every other; no argmax.

    Passes: the number of steps that reveal something, at most `steps`, trunk only.
    """

    steps: int = 64
    """Steps S, at least 1."""
    counts: Literal["random", "fixed"] = "random"
    """random is the reverse process; fixed reveals what the schedule says, to the token."""
    schedule: Schedule = "cosine"
    """cosine (MD4, MaskGIT: masked share cos(π/2·j/S)) or linear."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.counts not in ("random", "fixed"):
            raise unknown("counts", self.counts, ("random", "fixed"))
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> AncestralState:
        state = initial_state(canvas, uniforms, "random")
        return AncestralState(**vars(state), cuts=self._cuts(canvas, uniforms))

    def law(self) -> GroupLaw:
        if self.counts == "random":
            raise UserError(
                "Ancestral(counts='random') has no tractable law given an order: its counts are "
                "random. Use counts='fixed'"
            )
        return GroupLaw(
            lambda given, lengths: fixed_cuts(self.schedule, self.steps, given, lengths),
            self.temperature,
            self.top_p,
        )

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        return next_group(model, state, uniforms, self.temperature, self.top_p)

    def _cuts(self, canvas: Canvas, uniforms: Uniforms) -> Tensor:
        given = canvas.given.sum(1)
        if self.counts == "fixed":
            return fixed_cuts(self.schedule, self.steps, given, canvas.lengths)
        positions = torch.arange(canvas.tokens.shape[1], device=given.device)
        u = uniforms(canvas.rows, positions, Purpose.REVEAL)
        free = (positions < canvas.lengths[:, None]) & ~canvas.given
        levels = schedule_levels(self.schedule, self.steps).to(u.device)
        step = torch.searchsorted(levels, u.masked_fill(~free, 2.0))  # first with α ≥ u
        # Which positions they are does not matter: the order of the free ones is uniform anyway.
        per_step = torch.zeros(len(u), self.steps + 2, dtype=torch.int64, device=u.device)
        per_step.scatter_add_(1, step, torch.ones_like(step))
        return given[:, None] + per_step[:, : self.steps + 1].cumsum(1)


def next_group(
    model: Meter, state: State, uniforms: Uniforms, temperature: float, top_p: float
) -> tuple[State, StepInfo]:
    """One pass, and an independent draw of every rank up to the next cut."""
    assert isinstance(state, AncestralState)
    never = torch.iinfo(state.cuts.dtype).max
    ahead = state.cuts.masked_fill(state.cuts <= state.revealed[:, None], never)
    ends = ahead.amin(1).cpu()  # the next step that reveals something; all that a pass waits for
    hidden = model.trunk(state.tokens, state.host.lengths)
    drafts = draw_drafts(model, hidden, state, ends, uniforms, temperature, top_p)
    ranked = place(state, drafts.ranks, drafts.tokens)
    after = reveal(state, ranked, ends - state.host.revealed)
    return after, plain_info(state, after.revealed - state.revealed)
