"""Path planning: every position is proposed anew, and the least likely are hidden again (P2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specmask.categorical import check_tempering
from specmask.checks import optional, whole
from specmask.errors import UserError, unknown
from specmask.masking import SCHEDULES, Law, Schedule, schedule_levels
from specmask.models.checkpoint import Model
from specmask.models.protocol import Denoiser, Meter, draft_logits
from specmask.samplers.base import (
    Canvas,
    Drafts,
    State,
    StepInfo,
    Uniforms,
    check_number,
    no_law,
    score_tokens,
)
from specmask.samplers.remasking import RewritableState, at_positions, rewritable_state, rewrite
from specmask.samplers.selection import best, propose, scores


@dataclass(frozen=True)
class PathPlanning:
    """Path planning (P2, Peng et al., arXiv 2502.03540), with itself or another model as planner.

    A heuristic. Each pass proposes a token at every position that the canvas left free, known ones
    included, and scores it by its log-probability; scores of known positions are multiplied by
    `eta`. The ⌊(1 − κ)·free⌋ lowest are masked after the pass; a position that leaves the mask
    takes its proposal, and one that stays known keeps the token it had. What the model says of a
    token that it can see is taken from its logits as they are: a network that copies such tokens
    with certainty hides nothing again. With a `planner`, known positions are scored by what that
    model says of the row with all proposals filled in; its pass is counted in NFE, by its layers.

    Passes: one a step until nothing is masked, at most `steps`, trunk only. Published: κ(t) = t,
    η = 1; η = 0 never hides a token again. Of equal scores the position known longest stays.
    """

    steps: int = 32
    """Steps T, at least 1."""
    eta: float = 1.0
    """Weight η of a known position's log-probability, at least 0; 0 never hides one again."""
    schedule: Schedule = "linear"
    """Unmasked share κ after i of T steps: linear, the published one, or cosine."""
    planner: Model | None = None
    """Another model that scores the known positions; default the model itself."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        check_number("eta", self.eta, 0)
        optional("planner", self.planner, Model, "None or a model, from specmask.load")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        check_tempering(self.temperature, self.top_p)

    def check(self, network: Denoiser) -> None:
        """Raise UserError unless the planner reads what the network writes."""
        if self.planner is None:
            return
        planner = self.planner.network
        for name in ("vocab_size", "mask_id"):
            if getattr(planner, name) != getattr(network, name):
                raise UserError(
                    f"the planner's {name} is {getattr(planner, name)}, the model's is "
                    f"{getattr(network, name)}: expected a planner with the same tokens"
                )
        if planner.length < network.length:
            raise UserError(
                f"the planner takes {planner.length} tokens, the model {network.length}: expected "
                "a planner for rows as long"
            )

    def init(self, canvas: Canvas, uniforms: Uniforms) -> RewritableState:
        return rewritable_state(canvas, uniforms, "left-to-right")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert isinstance(state, RewritableState)
        given = state.given.sum(1)
        # Ranks from the given ones on: known positions are proposed too.
        drafts = propose(
            model, replace(state, revealed=given), uniforms, self.temperature, self.top_p
        )
        seen = drafts.inside & (drafts.ranks < state.revealed[:, None])
        shown = state.tokens.gather(1, drafts.positions)
        filled = torch.where(seen, shown, drafts.tokens)
        tokens = at_positions(drafts, filled, state.tokens)
        ranking = scores(drafts, "drawn")
        if self.planner is not None:
            ranking = torch.where(seen, self._plan(model, state, tokens, drafts), ranking)
        ranking = torch.where(seen, self.eta * ranking, ranking)

        levels = schedule_levels(self.schedule, self.steps).to(given.device)
        share = levels[(state.step + 1).clamp(max=self.steps)]
        free = state.lengths - given
        masked = (free * (1 - share) + 1e-9).floor().long()
        kept = at_positions(drafts, best(ranking, free - masked), state.given)
        return rewrite(replace(state, step=state.step + 1), tokens, kept, model.mask_id)

    def _plan(self, model: Meter, state: State, tokens: Tensor, drafts: Drafts) -> Tensor:
        assert self.planner is not None
        network, on = self.planner.network, self.planner.device
        model.charge(network.trunk_layers)
        # What lies outside a row may be the mask, of which no model has a probability.
        known = tokens.gather(1, drafts.positions).masked_fill(~drafts.inside, 0)
        hidden = network.trunk(tokens.to(on), state.lengths.to(on))
        logits = draft_logits(network, hidden, drafts.positions.to(on))
        return score_tokens(logits, known.to(on), 1.0, 1.0).to(tokens.device)
