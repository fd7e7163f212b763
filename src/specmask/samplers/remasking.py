"""Parts of the samplers that may hide again what they have revealed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.masking import order_by
from specmask.samplers.base import Canvas, Drafts, State, StepInfo, Uniforms, initial_state


@dataclass(frozen=True)
class RewritableState(State):
    """given: (B, L) part of the canvas, never hidden. log_p: (B, L) log-probability that each known
    token had when it was drawn, 0 elsewhere. step: (B,) steps of the schedule that are over."""

    given: Bool[Tensor, "rows length"]
    log_p: Float64[Tensor, "rows length"]
    step: Int64[Tensor, "rows"]


AnyState = TypeVar("AnyState", bound=RewritableState)


def rewritable_state(canvas: Canvas, uniforms: Uniforms, order: str) -> RewritableState:
    """The state before the first pass; see `initial_state`."""
    state = initial_state(canvas, uniforms, order)
    log_p = torch.zeros(canvas.tokens.shape, dtype=torch.float64, device=canvas.tokens.device)
    return RewritableState(
        **vars(state), given=canvas.given, log_p=log_p, step=torch.zeros_like(state.passes)
    )


def ranks_of(state: State) -> Int64[Tensor, "rows length"]:
    """The rank of every position: the inverse of σ."""
    ranks = torch.arange(state.order.shape[1], device=state.order.device)
    return torch.empty_like(state.order).scatter(1, state.order, ranks.expand_as(state.order))


def inside(state: State) -> Bool[Tensor, "rows length"]:
    """Positions that are not padding."""
    return torch.arange(state.tokens.shape[1], device=state.order.device) < state.lengths[:, None]


def at_positions(drafts: Drafts, values: Tensor, base: Tensor) -> Tensor:
    """(B, L) `base`, with (B, K) values of the drafted ranks put at their positions."""
    places = drafts.positions.masked_fill(~drafts.inside, base.shape[1])
    return torch.nn.functional.pad(base, (0, 1)).scatter(1, places, values)[:, :-1]


def rewrite(
    state: AnyState, tokens: Tensor, known: Bool[Tensor, "rows length"], mask_id: int
) -> tuple[AnyState, StepInfo]:
    """One pass on: just the positions `known` show their token, the others the mask.

    In the order, what stays known comes first, in its old order; then what is new.
    """
    ranks = ranks_of(state)
    before = ranks < state.revealed[:, None]
    kind = torch.where(known, (~before).long(), 2)
    now = replace(
        state,
        order=order_by(kind * ranks.shape[1] + ranks, torch.zeros_like(known), state.lengths),
        tokens=torch.where(known | ~inside(state), tokens, mask_id),
        revealed=known.sum(1),
        passes=state.passes + 1,
    )
    new, hidden = (known & ~before).sum(1), (before & ~known).sum(1)
    none = torch.zeros_like(new)
    return now, StepInfo(new, new, none, none, torch.full_like(tokens, -1), hidden)
