"""Training of the learned unmasking policy: GRPO against a reward that the user passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import AdamW

from specmask.categorical import check_tempering
from specmask.checks import check_seed, whole
from specmask.errors import UserError
from specmask.models.checkpoint import Model
from specmask.models.guides import PolicyConfig, UnmaskingPolicy
from specmask.samplers import Frame, Samples, sample
from specmask.samplers.base import check_number
from specmask.samplers.policy import LearnedPolicy
from specmask.training.guide_run import GuideRun, adamw

Reward = Callable[[Tensor, Tensor], Tensor]
"""(B, L) finished tokens and (B,) lengths → (B,) rewards, finite and at least 0."""

_ROWS = 512  # decisions in one backward pass


@dataclass(frozen=True)
class PolicyTraining:
    """Settings of `train_policy`; published: groups of 8, learning rate 3e-5."""

    steps: int = 200
    """Updates of rollouts, at least 1."""
    groups: int = 4
    """Canvases in a step; samples of one canvas are compared with each other alone."""
    group_size: int = 8
    """Samples G of a canvas, at least 2."""
    updates: int = 1
    """Gradient steps on the same rollouts, at least 1; beyond the first, ratios are clipped."""
    lr: float = 3e-5
    """Learning rate of AdamW, above 0."""
    clip: float = 0.2
    """Bound ε of the ratio, above 0: 1 − ε to 1 + ε."""
    compute: float = 1.0
    """Exponent of the compute factor, at least 0; 0 rewards quality alone."""
    scale: float = 1.0
    """Temperature τ of the decisions, as in `LearnedPolicy`."""
    block: int = 0
    """Tokens of a block, as in `LearnedPolicy`."""
    temperature: float = 1.0
    """Of the draft's tokens."""
    seed: int = 0
    """Names all rollouts and the policy's first weights."""
    batch_size: int = 64
    """Rows in one pass of the model."""
    save_every: int = 25
    """Steps between two checkpoints, where there is a folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "groups", "updates", "batch_size", "save_every"):
            whole(name, getattr(self, name), 1)
        whole("group_size", self.group_size, 2)
        whole("block", self.block, 0)
        for name in ("lr", "clip", "scale"):
            check_number(name, getattr(self, name), 1e-12)
        check_number("compute", self.compute, 0)
        check_tempering(self.temperature, 1.0)
        check_seed(self.seed)

    def sampler(self, policy: UnmaskingPolicy) -> LearnedPolicy:
        """The sampler whose decisions are trained."""
        return LearnedPolicy(policy, self.scale, self.block, self.temperature)


@dataclass(frozen=True)
class Decisions:
    """What the policy saw and did, N times: a pass of a row each.

    sample: (N,) which rollout. confidence, masked: (N, L) and lengths: (N,), as read. chosen:
    (N, L), what was revealed.
    """

    sample: Tensor
    confidence: Float[Tensor, "passes length"]
    masked: Bool[Tensor, "passes length"]
    lengths: Tensor
    chosen: Bool[Tensor, "passes length"]

    def parts(self, size: int) -> Iterator[Decisions]:
        """At most `size` at a time."""
        for k in range(0, len(self.sample), size):
            yield Decisions(*(value[k : k + size] for value in vars(self).values()))


def log_probability(
    policy: UnmaskingPolicy, seen: Decisions, scale: float = 1.0, block: int = 0
) -> Float[Tensor, "passes"]:
    """Log-probability of what each pass revealed, with gradients for the policy.

    Of the set C among the allowed positions A: Π_C σ · Π_{A∖C} (1 − σ); and where C is the surest
    position alone, also Π_A (1 − σ), since that is what happens if no coin falls. Over all C these
    sum to 1.
    """
    allowed = seen.masked
    if block:
        number = torch.arange(allowed.shape[1], device=allowed.device) // block
        first = number[allowed.long().argmax(1)]
        allowed = allowed & (number == first[:, None])
    logits = policy(seen.confidence, seen.masked, seen.lengths) / scale
    yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
    drawn = torch.where(seen.chosen, yes, no).masked_fill(~allowed, 0).sum(1)
    none = no.masked_fill(~allowed, 0).sum(1)
    surest = logits.masked_fill(~allowed, -torch.inf).argmax(1, keepdim=True)
    fallback = (seen.chosen.sum(1) == 1) & seen.chosen.gather(1, surest)[:, 0]
    return torch.where(fallback, torch.logaddexp(drawn, none), drawn)


@torch.no_grad()
def rollout(
    model: Model,
    sampler: LearnedPolicy,
    canvas: Tensor,
    lengths: Tensor,
    *,
    seed: int,
    first: int,
    batch_size: int,
) -> tuple[Samples, Decisions]:
    """Samples of (B, L) canvases, rows `first`.. of the seed, and every decision on the way."""
    policy = sampler.policy
    assert policy is not None
    inputs: list[tuple[Tensor, ...]] = []
    passes: list[Decisions] = []

    def watch(frame: Frame) -> None:
        if frame.step:
            confidence, masked, sizes = inputs.pop()
            inputs.clear()  # of attempts that memory did not hold
            beyond = (0, frame.tokens.shape[1] - masked.shape[1])  # a batch is as wide as its rows
            confidence, masked = F.pad(confidence, beyond), F.pad(masked, beyond)
            chosen = masked & (frame.tokens != model.network.mask_id).to(masked.device)
            of = (frame.rows - first).to(masked.device)
            passes.append(Decisions(of, confidence, masked, sizes, chosen))

    handle = policy.register_forward_hook(lambda _, args, __: inputs.append(args))
    try:
        out = sample(
            model,
            sampler,
            canvas=canvas,
            lengths=lengths,
            seed=seed,
            batch_size=batch_size,
            rows=range(first, first + len(canvas)),
            on_frame=watch,
        )
    finally:
        handle.remove()
    columns = zip(*(vars(each).values() for each in passes), strict=True)
    return out, Decisions(*(torch.cat(column) for column in columns))


def advantages(
    reward: Tensor, passes: Tensor, free: Tensor, compute: float, group_size: int
) -> tuple[Tensor, Tensor]:
    """What each of (B,) rollouts is worth against its group, and its whole reward.

    The whole reward is reward · (1 − (passes − 1)/free)^compute, so that quality comes first and
    what is wrong gains nothing by being fast. The advantage is that less the group's mean, over its
    standard deviation (GRPO, arXiv 2402.03300); 0 where all of a group are worth the same.
    """
    saved = 1 - (passes - 1).double() / free.clamp(min=1)
    whole_reward = reward.double() * saved**compute
    groups = whole_reward.view(-1, group_size)
    spread = groups.std(1, keepdim=True)
    apart = (groups - groups.mean(1, keepdim=True)) / spread.clamp(min=1e-9)
    return torch.where(spread > 1e-9, apart, 0).flatten(), whole_reward


def train_policy(
    model: Model,
    reward: Reward,
    config: PolicyTraining | None = None,
    *,
    sizes: PolicyConfig | None = None,
    policy: UnmaskingPolicy | None = None,
    canvas: Tensor | None = None,
    lengths: Tensor | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> UnmaskingPolicy:
    """Train a policy for `LearnedPolicy` by group-relative policy gradient (arXiv 2512.09106).

    The model is frozen. Each step draws `group_size` rows of each of `groups` canvases, rewards
    them, and moves the policy towards the decisions of those that did better than their group:
    the loss is −Σ over passes of min(r·A, clip(r, 1 ± ε)·A), r the ratio of a pass's probability to
    that under the policy that drew it, averaged over rows.

    Args:
        model: from `load` or `wrap`.
        reward: of finished rows, see `Reward`; decode them with `model.tokenizer` if need be.
        config: default `PolicyTraining()`.
        sizes: of a new policy; or policy: one to go on from.
        canvas: (C, L) tokens with the mask where to fill, taken in turn; default one row, all
            masked. lengths: (C,) of them, default full.
        out: folder for log.jsonl, checkpoints and, at the end, `guide/`, which `load_policy` and
            `--policy` read.
        resume: go on from the newest checkpoint in `out`.
        on_step: told of every step: reward, whole reward, passes, gradient norm, time left (s).

    Returns:
        The trained policy, in eval mode.

    Raises:
        UserError: `out` holds a run and `resume` is False, or one of other settings; a reward of
            another shape, not finite or below 0.
    """
    config = PolicyTraining() if config is None else config
    if policy is not None and sizes is not None:
        raise UserError("policy and sizes: expected one of them, sizes are of a new policy")
    network = model.network
    if canvas is None:
        canvas = torch.full((1, network.length), network.mask_id)
    if lengths is None:
        lengths = torch.full((len(canvas),), canvas.shape[1])
    if policy is None:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            policy = UnmaskingPolicy(sizes)
    policy = policy.to(model.device).train()
    optimizer = adamw(policy, config.lr)
    run = GuideRun(None if out is None else Path(out), asdict(config), policy, optimizer, resume)
    began, start = time.perf_counter(), run.step
    while run.step < config.steps:
        row = _step(model, policy, optimizer, reward, config, canvas, lengths, run.step)
        pace = (time.perf_counter() - began) / (run.step + 1 - start)
        run.advance("train", row)
        if on_step is not None:
            on_step({"step": run.step, **row, "seconds_left": pace * (config.steps - run.step)})
    policy.eval()
    run.finish()
    return policy


def _step(
    model: Model,
    policy: UnmaskingPolicy,
    optimizer: AdamW,
    reward: Reward,
    config: PolicyTraining,
    canvas: Tensor,
    lengths: Tensor,
    step: int,
) -> dict[str, float]:
    """Rollouts, advantages, and the gradient steps on them."""
    num = config.groups * config.group_size
    which = (step * config.groups + torch.arange(config.groups)) % len(canvas)
    which = which.repeat_interleave(config.group_size)
    out, seen = rollout(
        model,
        config.sampler(policy),
        canvas[which],
        lengths[which],
        seed=config.seed,
        first=step * num,
        batch_size=config.batch_size,
    )
    found = _checked(reward(out.tokens, out.lengths), num)
    inside = torch.arange(canvas.shape[1]) < lengths[which, None]
    free = ((canvas[which] == model.network.mask_id) & inside).sum(1)
    worth, total = advantages(
        found, out.trunk_passes.cpu(), free, config.compute, config.group_size
    )
    worth = worth.to(policy.device)
    with torch.no_grad():
        before = [
            log_probability(policy, part, config.scale, config.block) for part in seen.parts(_ROWS)
        ]
    norm = 0.0
    for _ in range(config.updates):
        optimizer.zero_grad()
        for part, old in zip(seen.parts(_ROWS), before, strict=True):
            now = log_probability(policy, part, config.scale, config.block)
            ratio, gain = (now - old).exp(), worth[part.sample].to(now.dtype)
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            (-torch.minimum(ratio * gain, clipped * gain).sum() / num).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
        optimizer.step()
    return {
        "reward": float(found.double().mean()),
        "whole_reward": float(total.mean()),
        "passes": float(out.trunk_passes.double().mean()),
        "grad_norm": norm,
    }


def _checked(reward: Tensor, num: int) -> Tensor:
    if not isinstance(reward, Tensor) or reward.shape != (num,):
        got = tuple(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
        raise UserError(f"the reward function returned {got}: expected a tensor of ({num},)")
    if not bool((reward.isfinite() & (reward >= 0)).all()):
        raise UserError("the reward function returned a number that is not finite or below 0")
    return reward.cpu()
