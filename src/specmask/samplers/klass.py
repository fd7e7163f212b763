"""Reveal what the model is sure of and has stayed sure of (KLASS)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from specmask.categorical import check_tempering, log_probabilities
from specmask.checks import whole
from specmask.errors import UserError
from specmask.masking import Law
from specmask.models.protocol import Meter
from specmask.samplers.base import (
    Canvas,
    Drafts,
    State,
    StepInfo,
    Uniforms,
    check_number,
    initial_state,
    no_law,
    plain_info,
)
from specmask.samplers.selection import best, commit, in_first_block, propose, scores, spaced


@dataclass(frozen=True)
class KlassState(State):
    """log_p: (B, L, V) of the pass before, empty before the first. divergence: (B, L, n) the last
    n KL(now ‖ before) in nats, ∞ where there were not so many passes."""

    log_p: Tensor
    divergence: Float64[Tensor, "rows length history"]


@dataclass(frozen=True)
class Klass:
    """KL-adaptive stability sampling (KLASS, Kim et al., arXiv 2511.05664).

    A heuristic. Each pass draws every masked position of the first block that has one, and keeps
    those whose likeliest symbol has more than probability `threshold` and whose distribution has
    moved by less than `epsilon` nats of KL(now ‖ before) in each of the last `history` passes;
    where none qualifies, the `fallback` surest. Every row remembers its own passes, so its result
    does not depend on its batch. It remembers one distribution a position: (L, V) numbers a row.

    Passes: at most one a token, trunk only; nothing qualifies in the first `history` passes.
    Published (LLaDA): threshold and ε of .6 and .015 on GSM8K, .6 and .01 on MATH, .9 and .01 on
    HumanEval, .7 and .01 on MBPP.
    """

    threshold: float = 0.9
    """Probability τ that the likeliest symbol must exceed, 0 to 1."""
    epsilon: float = 0.01
    """Bound ε on the KL divergence between passes, in nats, above 0."""
    history: int = 2
    """Passes n that must agree, at least 1."""
    fallback: int = 1
    """Positions u to reveal where none qualifies, at least 1."""
    block: int = 0
    """Tokens of a block, filled one after the other from the left; 0 for the row."""
    spacing: float = 0.0
    """Keeps what a pass reveals apart, at least 0: of the chosen, best first, those at distance at
    least max(2, ⌊spacing·masked share⌋) (dilated unmasking publishes 8); 0 does not."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0, 1)
        check_number("epsilon", self.epsilon, 0)
        if self.epsilon == 0:  # no distribution moves by less than nothing
            raise UserError(f"epsilon={self.epsilon}: expected a finite number above 0, e.g. 0.01")
        whole("history", self.history, 1)
        whole("fallback", self.fallback, 1)
        whole("block", self.block, 0)
        check_number("spacing", self.spacing, 0)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> KlassState:
        rows, length = canvas.tokens.shape
        return KlassState(
            **vars(initial_state(canvas, uniforms, "left-to-right")),
            log_p=torch.empty(rows, 0, 0, device=canvas.tokens.device),
            divergence=torch.full(
                (rows, length, self.history),
                torch.inf,
                dtype=torch.float64,
                device=canvas.tokens.device,
            ),
        )

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, KlassState)
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        state = _remember(state, drafts)
        ranking = scores(drafts, "top")
        places = drafts.positions[..., None].expand(-1, -1, self.history)
        stable = (state.divergence.gather(1, places) < self.epsilon).all(-1)
        here = in_first_block(drafts, self.block)
        chosen = here & stable & (ranking.exp() > self.threshold)
        surest = best(ranking.masked_fill(~here, -torch.inf), here.sum(1).clamp(max=self.fallback))
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, surest)
        size = torch.full_like(state.lengths, self.block) if self.block else state.lengths
        chosen = spaced(chosen, ranking, drafts, self.spacing, here, size)
        return commit(state, drafts, chosen), plain_info(state, chosen.sum(1))


def _remember(state: KlassState, drafts: Drafts) -> KlassState:
    """The state with this pass's distributions, and the KL of each to the pass before."""
    rows, length = state.tokens.shape
    vocab = drafts.logits.shape[-1]
    first = state.log_p.shape[1] == 0
    row = torch.arange(rows, device=state.rows.device)[:, None]
    memory = (
        torch.zeros(rows, length, vocab, dtype=drafts.logits.dtype, device=drafts.logits.device)
        if first
        else state.log_p.clone()
    )
    moved = torch.full((rows, length), torch.inf, dtype=torch.float64, device=state.rows.device)
    for k in drafts.logits.blocks():
        log_p = log_probabilities(drafts.logits[:, k])
        mine = row.expand_as(drafts.positions[:, k])[drafts.inside[:, k]]
        places = drafts.positions[:, k][drafts.inside[:, k]]
        now = log_p[drafts.inside[:, k]]
        if not first:
            gap = (now - memory[mine, places].double()).masked_fill(now == -torch.inf, 0)
            moved[mine, places] = (now.exp() * gap).sum(-1)
        memory[mine, places] = now.to(memory.dtype)
    divergence = torch.cat((state.divergence[..., 1:], moved[..., None]), -1)
    return replace(state, log_p=memory, divergence=divergence)
