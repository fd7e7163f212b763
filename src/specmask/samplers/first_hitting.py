"""First-hitting sampling: the exact times at which tokens are revealed, one token a pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.masking import GroupLaw
from specmask.models.protocol import Meter
from specmask.samplers.any_order import AnyOrder
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
class FirstHittingState(State):
    """`time` (B,): of the last reveal, from 1 (all masked) down to 0."""

    time: Tensor


@dataclass(frozen=True)
class FirstHitting:
    """First-hitting sampler (Zheng et al., arXiv 2409.02908).

    With n positions masked at time t the next one is revealed at t·u^(1/n), under the linear
    schedule, and is equally likely to be any of them. So time is continuous: the law is that of
    `Ancestral` with infinitely many steps, and the any-order law of the draft. Our networks do not
    read the time, so it changes no token; a frame's state carries it for what does.

    Passes: one trunk pass a token.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> FirstHittingState:
        # A uniform order, drawn beforehand, is a uniform masked position in every pass.
        state = initial_state(canvas, uniforms, "random")
        time = torch.ones(len(canvas.rows), dtype=torch.float64, device=canvas.tokens.device)
        return FirstHittingState(**vars(state), time=time)

    def law(self) -> GroupLaw:
        law = AnyOrder(temperature=self.temperature, top_p=self.top_p).law()
        assert isinstance(law, GroupLaw)
        return law

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, FirstHittingState)
        one = torch.ones_like(state.host.revealed)
        zero = torch.zeros_like(state.revealed)[:, None]
        u = uniforms(state.rows, zero, Purpose.REVEAL, state.passes)[:, 0]
        time = state.time * (1 - u) ** (1 / (state.lengths - state.revealed))  # 1 − u is never 0
        hidden = model.trunk(state.tokens, state.host.lengths)
        ends = state.host.revealed + one
        drafts = draw_drafts(model, hidden, state, ends, uniforms, self.temperature, self.top_p)
        ranked = place(state, drafts.ranks, drafts.tokens)
        state = replace(state, time=time).with_host(state.host)
        return reveal(state, ranked, one), plain_info(state, torch.ones_like(state.revealed))
