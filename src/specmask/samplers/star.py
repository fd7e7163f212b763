"""Star-shaped sampling: fill the whole row, then hide the most suspicious tokens again (G-Star)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.checks import optional, whole
from specmask.errors import UserError, unknown
from specmask.masking import SCHEDULES, Law, Schedule, schedule_levels
from specmask.models.guides import ErrorHead, hidden_width
from specmask.models.protocol import Denoiser, Meter
from specmask.samplers.base import (
    Canvas,
    State,
    StepInfo,
    Uniforms,
    check_number,
    draw_drafts,
    no_law,
)
from specmask.samplers.remasking import (
    RewritableState,
    at_positions,
    inside,
    ranks_of,
    rewritable_state,
    rewrite,
)
from specmask.samplers.selection import best, scores


@dataclass(frozen=True)
class Star:
    """Star-shaped masked diffusion, G-Star (Meshchaninov et al., arXiv 2510.08369).

    A heuristic. Down to time `start` it is ancestral sampling with fixed counts at random
    positions. From there on each pass fills every masked position, scores all tokens that the
    canvas did not give, and hides the ⌈masked share·free⌉ most suspicious ones again: those of the
    largest score/`scale` plus Gumbel noise. Scores: none (random, the paper's Star+), −probability
    of the token when it was drawn (confidence), or the logit of a trained `error_head` that reads
    the filled row (learned, the paper's G-Star; `specmask error-head` trains one).

    Passes: one for each ancestral step that reveals something and one for each later step, at most
    `steps`, trunk only; with a learned score one more over the filled row in each step that hides
    tokens, and the head's own, counted in NFE by its share of the network's parameters. The last
    step hides nothing.
    Published: start .3, scale 1; starting much earlier ruins the samples.
    """

    steps: int = 32
    """Steps S, at least 1."""
    start: float = 0.3
    """Time, from 1 (all masked) to 0, from which on tokens are hidden again."""
    score: Literal["random", "confidence", "learned"] = "confidence"
    """What makes a token suspicious; learned needs an error head."""
    error_head: ErrorHead | None = None
    """A trained error head, on the command line its folder, for score learned."""
    scale: float = 1.0
    """Divides the score, above 0; small trusts it, large is random."""
    schedule: Schedule = "linear"
    """cosine (masked share cos(π/2·j/S)) or linear."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        check_number("start", self.start, 0, 1)
        if self.score not in ("random", "confidence", "learned"):
            raise unknown("score", self.score, ("random", "confidence", "learned"))
        way = "None or an ErrorHead, from specmask error-head"
        optional("error_head", self.error_head, ErrorHead, way)
        if (self.score == "learned") != (self.error_head is not None):
            raise UserError(
                f"score={self.score!r} {'with' if self.error_head else 'without'} an error_head: "
                "expected both score='learned' and a trained ErrorHead (specmask error-head trains "
                "one), or neither"
            )
        check_number("scale", self.scale, 1e-6)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_tempering(self.temperature, self.top_p)

    def check(self, network: Denoiser) -> None:
        """Raise UserError where the error head reads another width than the network has."""
        if self.error_head is None:
            return
        wanted, found = self.error_head.config.hidden, hidden_width(network)
        if wanted != found:
            raise UserError(
                f"the error head reads {wanted} channels, the model's trunk has {found}: expected "
                "a head trained on this model"
            )

    def init(self, canvas: Canvas, uniforms: Uniforms) -> RewritableState:
        return rewritable_state(canvas, uniforms, "random")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, RewritableState)
        free = (state.lengths - state.given.sum(1))[:, None]
        kept = 1 - schedule_levels(self.schedule, self.steps).to(free.device)
        masked = (free * kept - 1e-9).ceil().long()  # (B, S + 1) after each step
        step = self._next(state, masked)
        left = masked.gather(1, step[:, None])[:, 0]  # masked when it is over
        refining = 1 - (step - 1) / self.steps <= self.start + 1e-9

        hidden = model.trunk(state.tokens, state.host.lengths)
        ends = torch.where(refining, state.lengths, state.lengths - left)
        drafts = draw_drafts(model, hidden, state, ends, uniforms, self.temperature, self.top_p)
        tokens = at_positions(drafts, drafts.tokens, state.tokens)
        log_p = at_positions(drafts, scores(drafts, "drawn"), state.log_p)
        known = at_positions(drafts, drafts.inside, ranks_of(state) < state.revealed[:, None])

        suspicion = self._suspicion(model, state, tokens, log_p, refining & (left > 0))
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        u = uniforms(state.rows, positions, Purpose.SELECT, state.passes)
        gumbel = -(-(1 - u).log()).log()  # 1 − u is never 0
        suspicion = suspicion / self.scale + gumbel
        suspicion = suspicion.masked_fill(state.given | ~inside(state), -torch.inf)
        known &= ~best(suspicion, torch.where(refining, left, 0))
        return rewrite(replace(state, log_p=log_p, step=step), tokens, known, model.mask_id)

    def _suspicion(
        self, model: Meter, state: State, tokens: Tensor, log_p: Tensor, hiding: Tensor
    ) -> Float64[Tensor, "rows length"]:
        """The score of every token, in rows that are about to hide some."""
        if self.score == "confidence":
            return -log_p.exp()
        suspicion = torch.zeros_like(log_p)
        if self.error_head is not None and bool(hiding.any()):
            part, lengths = model.take(hiding), state.lengths[hiding]
            hidden = part.trunk(tokens[hiding], lengths)
            part.charge(self.error_head.layers_of(model.network))
            on = self.error_head.device
            with torch.autocast(on.type, enabled=False):
                logits = self.error_head(hidden.to(on), lengths.to(on))
            suspicion[hiding] = logits.to(suspicion)
        return suspicion

    def _next(self, state: RewritableState, masked: Tensor) -> Int64[Tensor, "rows"]:
        """The next step that makes a pass: one that reveals something, or any from `start` on."""
        number = torch.arange(self.steps + 1, device=masked.device)
        waiting = (state.lengths - state.revealed)[:, None]
        passing = (masked < waiting) | (1 - (number - 1) / self.steps <= self.start + 1e-9)
        return (passing & (number > state.step[:, None])).long().argmax(1)
