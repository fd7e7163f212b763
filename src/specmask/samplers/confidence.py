"""Reveal where the model is surest: fixed counts (MaskGIT, LLaDA) or a threshold (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.checks import whole
from specmask.errors import unknown
from specmask.masking import SCHEDULES, Law, Schedule, fixed_cuts
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
from specmask.samplers.selection import Score, best, check_score, commit, propose, scores, spaced


@dataclass(frozen=True)
class ConfidenceState(State):
    """`cuts` (B, steps + 1): how many ranks are known after each step."""

    cuts: Tensor


@dataclass(frozen=True)
class Confidence:
    """Fixed counts, the surest positions first (MaskGIT, 2202.04200; LLaDA, 2502.09992).

    A heuristic: even one token a pass it does not draw from the any-order law, since where the next
    token stands depends on what was drawn. Each pass draws every masked position and keeps the
    surest few, as many as the schedule says. Scores come from the model's own probabilities.

    Passes: the number of steps that reveal something, at most `steps`, trunk only. Published:
    MaskGIT 8 to 12 steps, cosine, score drawn, noise 4.5; LLaDA linear, score drawn, no noise.
    """

    steps: int = 16
    """Steps S, at least 1."""
    score: Score = "drawn"
    """drawn: probability of the token drawn; top: of the likeliest; margin: between the two
    likeliest; entropy: the lowest first."""
    schedule: Schedule = "cosine"
    """cosine (MaskGIT: masked share cos(π/2·j/S)) or linear (LLaDA)."""
    noise: float = 0.0
    """Gumbel noise of this size, falling linearly to 0 over the steps, is added to the score (with
    score drawn, to the log-probability: MaskGIT's choice temperature); at least 0."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        check_score(self.score)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_number("noise", self.noise, 0)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> ConfidenceState:
        state = initial_state(canvas, uniforms, "left-to-right")
        cuts = fixed_cuts(self.schedule, self.steps, state.revealed, canvas.lengths)
        return ConfidenceState(**vars(state), cuts=cuts)

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, ConfidenceState)
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        ahead = state.cuts > state.revealed[:, None]
        at = ahead.long().argmax(1)  # the next step that reveals something
        count = state.cuts.gather(1, at[:, None])[:, 0] - state.revealed
        ranking = scores(drafts, self.score)
        if self.noise:
            u = uniforms(state.rows, drafts.positions, Purpose.SELECT, state.passes)
            gumbel = -(-(1 - u).log()).log()  # 1 − u is never 0
            ranking = ranking + self.noise * (1 - at / self.steps)[:, None] * gumbel
        return commit(state, drafts, best(ranking, count)), plain_info(state, count)


@dataclass(frozen=True)
class Threshold:
    """All positions that the model is sure of, and the surest in any case (Fast-dLLM, 2505.22618).

    A heuristic. Each pass draws every masked position and keeps those whose likeliest symbol has
    at least probability `threshold`; where none has, the one that is nearest.

    Passes: as few as the model's certainty allows, at most one a token, trunk only. Published:
    thresholds .9 (Fast-dLLM) and .3 to .9 in comparisons, on greedy decoding.
    """

    threshold: float = 0.9
    """Probability τ, 0 to 1."""
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
        check_number("spacing", self.spacing, 0)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return initial_state(canvas, uniforms, "left-to-right")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        ranking = scores(drafts, "top")
        chosen = (ranking.exp() >= self.threshold) & drafts.inside
        chosen = chosen | best(ranking, torch.ones_like(state.revealed))
        chosen = spaced(chosen, ranking, drafts, self.spacing, drafts.inside, state.lengths)
        return commit(state, drafts, chosen), plain_info(state, chosen.sum(1))
