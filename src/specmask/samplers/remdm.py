"""Remasking diffusion: the reverse process may mask again what it has revealed (ReMDM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.checks import whole
from specmask.errors import UserError, unknown
from specmask.masking import SCHEDULES, Law, Schedule, order_by, schedule_levels
from specmask.models.protocol import Meter
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
from specmask.samplers.selection import scores

Rule = Literal["cap", "rescale", "confidence", "loop"]
PUBLISHED = {"cap": 0.008, "rescale": 0.015, "confidence": 1.0, "loop": 0.02}
"""η of each rule; confidence multiplies by none."""


def largest_sigma(now: Tensor, then: Tensor) -> Tensor:
    """σ_max = min(1, (1 − α_s)/α_t) for a step from kept share α_t to α_s; 1 where α_t = 0."""
    return torch.where(now > 0, (1 - then) / now, 1.0).clamp(max=1)


@dataclass(frozen=True)
class ReMDMState(RewritableState):
    """chosen: (B, L) what the next pass reveals. dropped: (B, L) what its end hides again."""

    chosen: Bool[Tensor, "rows length"]
    dropped: Bool[Tensor, "rows length"]


@dataclass(frozen=True)
class ReMDM:
    """Remasking discrete diffusion (ReMDM, Wang et al., arXiv 2503.00307).

    In a step from kept share α_t to α_s a known token is hidden again with probability σ, and a
    masked position is revealed with probability (α_s − (1 − σ)·α_t)/(1 − α_t). For every
    0 ≤ σ ≤ σ_max = min(1, (1 − α_s)/α_t) this keeps the marginals of masked diffusion, so that it
    draws from the data's law if the network is perfect and steps are many; with a real network no
    law is tractable. Which positions change does not depend on the pass, so a step that reveals
    nothing costs none.

    Rules: cap σ = min(η, σ_max); rescale σ = η·σ_max; confidence σ_d = η·σ_max·softmax over the
    known tokens of −(probability when drawn); loop: no remasking until a share α_on is known, at
    time t_on; then α stays and σ = min(η, σ_max); from t_off on again none.

    Passes: at most `steps`, trunk only. Published: η .008, .015, .02 of cap, rescale, loop, with
    top_p .9: baselines in a comparison should have the same.
    """

    steps: int = 64
    """Steps S, at least 1."""
    rule: Rule = "cap"
    """cap, rescale, confidence or loop."""
    eta: float | None = None
    """Size η of the remasking, 0 to 1; default the published one of the rule."""
    schedule: Schedule = "linear"
    """Kept share α, linear or cosine; the loop has its own, linear in its two parts."""
    t_on: float = 0.55
    """Time at which the loop begins, from 1 (all masked) to 0."""
    t_off: float = 0.05
    """Time at which the loop ends, below t_on."""
    alpha_on: float = 0.9
    """Share that is known during the loop, between 0 and 1."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        if self.rule not in get_args(Rule):
            raise unknown("rule", self.rule, get_args(Rule))
        if self.eta is not None:
            check_number("eta", self.eta, 0, 1)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.rule == "loop" and self.schedule != "linear":
            raise UserError(f"schedule={self.schedule!r} with rule='loop': its schedule is linear")
        for name in ("t_on", "t_off", "alpha_on"):
            check_number(name, getattr(self, name), 0, 1)
        if not 0 < self.t_off < self.t_on < 1:
            raise UserError(f"t_on={self.t_on}, t_off={self.t_off}: expected 0 < t_off < t_on < 1")
        if not 0 < self.alpha_on < 1:
            raise UserError(f"alpha_on={self.alpha_on}: expected 0 < alpha_on < 1")
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> ReMDMState:
        state = rewritable_state(canvas, uniforms, "left-to-right")
        known, plan = self._plan(state, state.given, uniforms)
        return _line_up(state, known, plan)

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, ReMDMState)
        hidden = model.trunk(state.tokens, state.host.lengths)
        ends = state.revealed + state.chosen.sum(1)  # `_line_up` made them the next ranks
        drafts = draw_drafts(model, hidden, state, ends, uniforms, self.temperature, self.top_p)
        tokens = at_positions(drafts, drafts.tokens, state.tokens)
        log_p = at_positions(drafts, scores(drafts, "drawn"), state.log_p)
        known = ((ranks_of(state) < state.revealed[:, None]) & ~state.dropped) | state.chosen
        state = replace(state, log_p=log_p, step=state.step + 1)
        known, plan = self._plan(state, known, uniforms)
        now, info = rewrite(state, tokens, known, model.mask_id)
        return _line_up(now, known, plan), info

    def _plan(
        self, state: RewritableState, known: Tensor, uniforms: Uniforms
    ) -> tuple[Tensor, _Plan]:
        """What is known when the next pass begins, and what that pass will do.

        Steps that reveal nothing only hide: they happen here, without a pass.
        """
        levels = self._levels().to(known.device)
        positions = torch.arange(known.shape[1], device=known.device)
        own, step = ~state.given & inside(state), state.step
        chosen, dropped = torch.zeros_like(known), torch.zeros_like(known)
        waiting = own.any(1) & (step < self.steps)
        while bool(waiting.any()):
            at = step.clamp(max=self.steps - 1)
            now, then = levels[at][:, None], levels[at + 1][:, None]
            sigma = self._sigma(at, now, then, known & own, state.log_p)
            u = uniforms(state.rows, positions, Purpose.REVEAL, at)
            hide = known & own & (u < sigma) & waiting[:, None]
            show = ~known & own & (u < (then - (1 - sigma) * now) / (1 - now)) & waiting[:, None]
            passing = show.any(1)
            chosen, dropped = chosen | show, dropped | (hide & passing[:, None])
            known = known & ~(hide & ~passing[:, None])
            step = step + (waiting & ~passing)
            waiting = waiting & ~passing & (step < self.steps)
        return known, _Plan(step, chosen, dropped)

    def _levels(self) -> Float64[Tensor, "levels"]:
        """(S + 1,) kept share α after each step."""
        if self.rule != "loop":
            return schedule_levels(self.schedule, self.steps)
        time = 1 - torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        before = self.alpha_on * (1 - time) / (1 - self.t_on)
        after = 1 - (1 - self.alpha_on) * time / self.t_off
        return torch.where(time > self.t_on, before, after.clamp(min=self.alpha_on))

    def _sigma(
        self, step: Tensor, now: Tensor, then: Tensor, known: Tensor, log_p: Tensor
    ) -> Float64[Tensor, "rows #length"]:
        """σ of each position, at most σ_max."""
        most = largest_sigma(now, then)
        eta = PUBLISHED[self.rule] if self.eta is None else self.eta
        if self.rule == "cap":
            return most.clamp(max=eta)
        if self.rule == "rescale":
            return eta * most
        if self.rule == "loop":
            time = 1 - step[:, None] / self.steps
            looping = (time <= self.t_on + 1e-9) & (time > self.t_off + 1e-9)
            return torch.where(looping, most.clamp(max=eta), 0.0)
        share = (-log_p.exp()).masked_fill(~known, -torch.inf).softmax(1)
        return eta * most * share.nan_to_num(0)  # nothing known: nothing to hide


@dataclass(frozen=True)
class _Plan:
    """step: (B,) steps over when the pass begins. chosen, dropped: (B, L) what it will do."""

    step: Int64[Tensor, "rows"]
    chosen: Bool[Tensor, "rows length"]
    dropped: Bool[Tensor, "rows length"]


def _line_up(state: RewritableState, known: Tensor, plan: _Plan) -> ReMDMState:
    """The state with the plan in it, and with what the next pass reveals as its next ranks."""
    kind = torch.where(known, 0, torch.where(plan.chosen, 1, 2))
    ranks = ranks_of(state)
    keys = kind * ranks.shape[1] + ranks
    settled = {name: getattr(state, name) for name in RewritableState.__dataclass_fields__}
    settled["order"] = order_by(keys, torch.zeros_like(known), state.lengths)
    settled["step"] = plan.step
    return ReMDMState(**settled, chosen=plan.chosen, dropped=plan.dropped)
