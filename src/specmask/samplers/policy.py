"""A small network decides which positions to reveal (learned unmasking policy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from specmask.categorical import Purpose, check_tempering
from specmask.checks import optional, whole
from specmask.errors import UserError
from specmask.masking import Law
from specmask.models.guides import UnmaskingPolicy
from specmask.models.protocol import Denoiser, Meter
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
from specmask.samplers.selection import best, commit, in_first_block, propose, scores


@dataclass(frozen=True)
class LearnedPolicy:
    """Learned unmasking policy (Jazbec et al., arXiv 2512.09106).

    A heuristic, trained: `specmask.training.policy.train_policy`. Each pass draws every masked
    position; a small network reads how sure the draft is of each and gives a logit, and each is
    revealed with probability sigmoid(logit/`scale`) on its own; where none is, the one of the
    largest logit. With `block`, only the first block that has a masked position is decided on.

    Passes: at most one a token, trunk only; the policy's own pass is counted in NFE, by its share
    of the network's parameters. Published: scale 1, blocks of 32 or the whole row.
    """

    policy: UnmaskingPolicy | None = None
    """A trained policy, on the command line its folder; there is no other default."""
    scale: float = 1.0
    """Temperature τ of the decisions, above 0; small decides by the logit's sign."""
    block: int = 0
    """Tokens of a block, filled one after the other from the left; 0 for the row."""
    temperature: float = 1.0
    """Divides the logits of the draft; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass."""

    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        way = "an UnmaskingPolicy, from specmask.training.policy.train_policy"
        optional("policy", self.policy, UnmaskingPolicy, way)
        check_number("scale", self.scale, 1e-6)
        whole("block", self.block, 0)
        check_tempering(self.temperature, self.top_p)

    def check(self, network: Denoiser) -> None:
        """Raise UserError without a policy."""
        if self.policy is None:
            raise UserError(
                "policy=None: expected a trained UnmaskingPolicy, or --policy FOLDER; train one "
                "with specmask.training.policy.train_policy"
            )

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return initial_state(canvas, uniforms, "left-to-right")

    def law(self) -> Law:
        raise no_law(self)

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        assert self.policy is not None
        drafts = propose(model, state, uniforms, self.temperature, self.top_p)
        model.charge(self.policy.layers_of(model.network))
        allowed = in_first_block(drafts, self.block)
        logits = policy_logits(self.policy, drafts, state).masked_fill(~allowed, -torch.inf)
        u = uniforms(state.rows, drafts.positions, Purpose.SELECT, state.passes)
        chosen = (u < (logits / self.scale).sigmoid()) & allowed
        surest = best(logits, torch.ones_like(state.revealed))
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, surest)
        return commit(state, drafts, chosen), plain_info(state, chosen.sum(1))


def policy_logits(
    policy: UnmaskingPolicy, drafts: Drafts, state: State
) -> Float[Tensor, "rows ranks"]:
    """The policy's logit of every drafted position, float64."""
    confidence, masked = observe(drafts, state)
    on = policy.device
    with torch.autocast(on.type, enabled=False):  # it decides, so it stays exact
        logits = policy(confidence.to(on), masked.to(on), state.lengths.to(on))
    return logits.to(drafts.positions.device).double().gather(1, drafts.positions)


def observe(
    drafts: Drafts, state: State
) -> tuple[Float[Tensor, "rows length"], Bool[Tensor, "rows length"]]:
    """What the policy reads: the draft's largest probability, and what is masked, by position."""
    length = state.tokens.shape[1]
    sure = scores(drafts, "top").exp()
    at = torch.where(drafts.inside, drafts.positions, length)  # padding goes to a place of its own
    confidence = sure.new_zeros(len(sure), length + 1).scatter(1, at, sure)[:, :-1]
    masked = torch.zeros_like(confidence, dtype=torch.bool)
    return confidence, torch.nn.functional.pad(masked, (0, 1)).scatter(1, at, True)[:, :-1]
