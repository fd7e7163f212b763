"""One rank a pass: the slow reference that every faster sampler is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from specmask.categorical import Purpose, check_tempering
from specmask.errors import unknown
from specmask.masking import ConstantWindow, GroupLaw, Law, SpeculativeLaw
from specmask.models.protocol import Meter
from specmask.samplers.base import (
    Canvas,
    State,
    StepInfo,
    Uniforms,
    check_order,
    draw_drafts,
    draw_tokens,
    initial_state,
    place,
    plain_info,
    reveal,
)


@dataclass(frozen=True)
class AnyOrder:
    """Any-order autoregressive sampling (Uria et al., 1310.1757; method.md §3).

    Exact in the any-order law of the draft (Π_d q_d(d)) or of the target (Π_d p_d(d), the trunk
    seeing every earlier rank). Passes: D trunk passes, and D verify passes from the target.
    """

    source: Literal["draft", "target"] = "draft"
    """The law to draw from: draft or target."""
    order: Literal["random", "left-to-right"] = "random"
    """random or left-to-right."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    def __post_init__(self) -> None:
        if self.source not in ("draft", "target"):
            raise unknown("source", self.source, ("draft", "target"))
        check_order(self.order, ("random", "left-to-right"))
        check_tempering(self.temperature, self.top_p)

    @property
    def verifies(self) -> bool:
        return self.source == "target"

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return initial_state(canvas, uniforms, self.order)

    def law(self) -> Law:
        if self.source == "target":  # min(q, p) + (p − q)₊ = p: a window of one, verified
            return SpeculativeLaw(ConstantWindow(1), 1, False, self.temperature, self.top_p)
        return GroupLaw(_one_by_one, self.temperature, self.top_p)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        hidden = model.trunk(state.tokens, state.host.lengths)
        one = torch.ones_like(state.host.revealed)
        rank = state.revealed[:, None]
        if self.source == "draft":
            ends = state.host.revealed + one
            tokens = draw_drafts(
                model, hidden, state, ends, uniforms, self.temperature, self.top_p
            ).tokens
        else:
            prefix = model.prefix(hidden, state.tokens, state.order, state.host.revealed)
            logits = model.verify(prefix, rank, place(state, rank, torch.zeros_like(rank)))
            position = state.order.gather(1, rank)
            u = uniforms(state.rows, position, Purpose.DRAFT, state.passes)
            tokens, _ = draw_tokens(logits, u, self.temperature, self.top_p)
        info = plain_info(state, torch.ones_like(state.revealed), rounds=int(self.verifies))
        return reveal(state, place(state, rank, tokens), one), info


def _one_by_one(given: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(B, L + 1) cuts that reveal one free rank at a time."""
    steps = torch.arange(int(lengths.max()) + 1, device=lengths.device)
    return torch.minimum(given[:, None] + steps, lengths[:, None])
