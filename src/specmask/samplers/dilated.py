"""Reveal far-apart positions together, at strides that shrink from pass to pass (DUS)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from specmask.categorical import check_tempering
from specmask.checks import whole
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
from specmask.samplers.selection import commit, propose, scores


def dilated_levels(block: int, base: int) -> list[int]:
    """The level, from 0, at which each position of a block of B is revealed.

    With strides s = B//a, B//a², … a level is what s divides and no level before had; what is left
    over is one more, and a last level smaller than the one before joins it. B = 8, a = 2 gives
    {0, 4}, {2, 6}, {1, 3, 5, 7}; by these rules B = 3 and B = 5 are a single level at a = 2.
    """
    groups: list[list[int]] = []
    left = list(range(block))
    stride = block // base
    while stride >= 1:
        groups.append([k for k in left if k % stride == 0])
        left = [k for k in left if k % stride]
        stride //= base
    groups = [group for group in (*groups, left) if group]
    if len(groups) > 1 and len(groups[-1]) < len(groups[-2]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return [next(n for n, group in enumerate(groups) if k in group) for k in range(block)]


@dataclass(frozen=True)
class DilatedState(State):
    """turn: (B, L) when each position is due, level by level and block by block. last: (B, L) the
    last turn of its block. now: (B,) the turn that comes next."""

    turn: Int64[Tensor, "rows length"]
    last: Int64[Tensor, "rows length"]
    now: Int64[Tensor, "rows"]


@dataclass(frozen=True)
class Dilated:
    """Dilated unmasking (DUS, Luxembourg et al., arXiv 2506.19037).

    A heuristic: tokens far apart depend little on each other, so each pass reveals positions at
    equal distance, and the next ones lie between them. Blocks of `block` tokens are filled from
    the left; in a block the stride falls by `base` from level to level. With `skip`, a position
    whose likeliest symbol has less than that probability waits for the next level; the last one
    takes all. (The published code never comes back to a position that it skipped.)

    Passes: one a level that reveals something, at most ⌈log_base block⌉ a block (one for a block
    of one), trunk only: where a level is skipped whole, the next one uses the same pass. Published:
    base 2, skip below .3.
    """

    block: int = 8
    """Tokens B of a block, at least 1; 0 for the row."""
    base: int = 2
    """Factor a by which the stride falls, at least 2."""
    skip: float = 0.0
    """Probability below which a position waits, 0 to 1; 0 skips nothing."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("block", self.block, 0)
        whole("base", self.base, 2)
        check_number("skip", self.skip, 0, 1)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> DilatedState:
        state = initial_state(canvas, uniforms, "left-to-right")
        turn, last = torch.zeros_like(state.tokens), torch.zeros_like(state.tokens)
        for length in canvas.lengths.unique().tolist():
            mine = canvas.lengths == length
            due: list[int] = []
            final: list[int] = []
            for start in range(0, length, self.block or length):
                levels = dilated_levels(min(self.block or length, length - start), self.base)
                begin = final[-1] + 1 if final else 0
                due += [begin + level for level in levels]
                final += [begin + max(levels)] * len(levels)
            turn[mine, :length] = torch.tensor(due, device=turn.device)
            last[mine, :length] = torch.tensor(final, device=turn.device)
        return DilatedState(**vars(state), turn=turn, last=last, now=torch.zeros_like(state.rows))

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, DilatedState)
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        sure = scores(drafts, "top").exp() >= self.skip
        turn, last = (x.gather(1, drafts.positions) for x in (state.turn, state.last))
        now, chosen = state.now, torch.zeros_like(sure)
        while True:  # a turn that reveals nothing leaves its pass to the next one
            due = drafts.inside & (turn <= now[:, None]) & (sure | (last <= now[:, None]))
            empty = ~chosen.any(1)
            chosen = torch.where(empty[:, None], due, chosen)
            now = now + empty
            if bool(chosen.any(1).all()):
                break
        return commit(replace(state, now=now), drafts, chosen), plain_info(state, chosen.sum(1))
