"""The sampler contract, and the parts that samplers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, draw, log_probabilities, probabilities, uniform
from specmask.checks import is_number
from specmask.errors import UserError, unknown
from specmask.host import upload
from specmask.masking import ORDERS, Law, order_by
from specmask.models.protocol import Denoiser, Logits, Meter

# ------------------------------------------------------------------------------------- contract


@dataclass(frozen=True)
class Canvas:
    """What to fill: rows of tokens with the mask symbol at every free position.

    tokens: (B, L). lengths: (B,) tokens of each row, padding excluded. rows: (B,) each row's
    number among all that were asked for; it names the row's random numbers. mask_id: the mask.
    """

    tokens: Int64[Tensor, "rows length"]
    lengths: Int64[Tensor, "rows"]
    rows: Int64[Tensor, "rows"]
    mask_id: int

    @property
    def given(self) -> Bool[Tensor, "rows length"]:
        """Positions inside a row whose token is already there."""
        inside = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (inside < self.lengths[:, None]) & (self.tokens != self.mask_id)


class Host(NamedTuple):
    """What decides the shapes of a pass, on the CPU: (B,) each."""

    lengths: Int64[Tensor, "rows"]
    revealed: Int64[Tensor, "rows"]


@dataclass(frozen=True)
class State:
    """Rows under way. Ranks below `revealed` are known; a row is done when that is its length."""

    rows: Int64[Tensor, "rows"]
    tokens: Int64[Tensor, "rows length"]
    order: Int64[Tensor, "rows length"]
    lengths: Int64[Tensor, "rows"]
    revealed: Int64[Tensor, "rows"]
    passes: Int64[Tensor, "rows"]

    @cached_property
    def host(self) -> Host:
        """`lengths` and `revealed` on the CPU: fetched once, and only if asked for."""
        return Host(*torch.stack((self.lengths, self.revealed)).cpu())

    def with_host(self, host: Host) -> Self:
        """The same state, told what it need not fetch."""
        vars(self)["host"] = host
        return self

    def take(self, rows: Int64[Tensor, "some"]) -> Self:
        """Some of the rows, by index on the CPU."""
        host = Host(self.host.lengths[rows], self.host.revealed[rows])
        (there,) = upload(self.tokens.device, rows)
        part = replace(self, **{f.name: getattr(self, f.name)[there] for f in fields(self)})
        return part.with_host(host)


@dataclass(frozen=True)
class StepInfo:
    """What one step did to each row.

    revealed: tokens revealed. accepted, rejected: drafts accepted and rejected.
    rounds: verify passes made. rejected_drafts: (B, L) the draft that was rejected at a position
    in this step, −1 elsewhere. remasked: tokens known before the step and hidden by it.
    """

    revealed: Int64[Tensor, "rows"]
    accepted: Int64[Tensor, "rows"]
    rejected: Int64[Tensor, "rows"]
    rounds: Int64[Tensor, "rows"]
    rejected_drafts: Int64[Tensor, "rows length"]
    remasked: Int64[Tensor, "rows"]


@dataclass(frozen=True)
class Uniforms:
    """The uniforms of one call: a pure function of (seed, row, position, purpose, counter)."""

    seed: int

    def __call__(
        self, rows: Tensor, positions: Tensor, purpose: Purpose | Tensor, counter: Tensor | int = 0
    ) -> Float64[Tensor, "*purposes rows positions"]:
        """(B,) rows, (B, K) or (K,) positions, (B,) counters → (B, K) in [0, 1).

        With a (P, 1, 1) tensor of purposes (P, B, K), in no more operations than for one.
        """
        count = counter[:, None] if isinstance(counter, Tensor) else counter
        return uniform(self.seed, rows[:, None], positions, purpose, count)


class Sampler(Protocol):
    """A frozen dataclass of settings with a pure `init` and `step`."""

    @property
    def verifies(self) -> bool:
        """Whether the settings can ask for a verify pass, so that a causal head is needed."""
        ...

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        """The state before the first pass."""
        ...

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        """One trunk pass and what follows from it; every row of the state has a free rank."""
        ...

    def law(self) -> Law:
        """The exact law along σ. Raises UserError where none is tractable."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A sampler with a network of its own, which must fit the one it samples from."""

    def check(self, network: Denoiser) -> None:
        """Raise UserError where it does not."""
        ...


# ------------------------------------------------------------------------- parts samplers share


def check_order(order: str, allowed: Sequence[str] = ORDERS) -> None:
    """Raise UserError unless `order` is one of the allowed names."""
    if order not in allowed:
        raise unknown("order", order, allowed)


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise UserError unless a setting is a finite number from `low` to `high`."""
    if not (is_number(value) and low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise UserError(f"{name}={value!r}: expected a finite number {wanted}")


def no_law(sampler: object) -> UserError:
    """What `law` raises where the positions depend on what was drawn."""
    return UserError(
        f"{type(sampler).__name__} has no tractable law: where it reveals depends on what was "
        "drawn. Its samples can be judged, its probabilities cannot; use e.g. Speculative or "
        "Ancestral(counts='fixed') for an exact law"
    )


def initial_state(canvas: Canvas, uniforms: Uniforms, order: str) -> State:
    """Given positions first, then the free ones at random, or left to right.

    A confidence order begins left to right and is re-sorted in each step.
    """
    positions = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    if order == "random":
        keys = uniforms(canvas.rows, positions, Purpose.ORDER)
    else:
        keys = positions.double().expand(canvas.tokens.shape)
    return State(
        rows=canvas.rows,
        tokens=canvas.tokens,
        order=order_by(keys, canvas.given, canvas.lengths),
        lengths=canvas.lengths,
        revealed=canvas.given.sum(1),
        passes=torch.zeros_like(canvas.lengths),
    )


@dataclass(frozen=True)
class Drafts:
    """A run of drafted ranks per row: j = 0.. counts from the first masked rank.

    ranks (B, K), L where `inside` is false; positions (B, K); logits (B, K, V) of the draft;
    tokens (B, K) drawn; log_q (B, K) their log-probabilities; padding = L.
    """

    ranks: Int64[Tensor, "rows ranks"]
    inside: Bool[Tensor, "rows ranks"]
    positions: Int64[Tensor, "rows ranks"]
    logits: Logits
    tokens: Int64[Tensor, "rows ranks"]
    log_q: Float64[Tensor, "rows ranks"]
    padding: int


def draw_drafts(
    model: Meter,
    hidden: Tensor,
    state: State,
    ends: Int64[Tensor, "rows"],
    uniforms: Uniforms,
    temperature: float,
    top_p: float,
) -> Drafts:
    """Draw ranks revealed..ends−1 of every row independently from the draft law.

    The widest of them decides a shape: with `ends` on the CPU nothing waits for the device.
    """
    length = state.order.shape[1]
    width = int((ends.cpu() - state.host.revealed).max())
    (ends,) = upload(state.order.device, ends)
    ranks = state.revealed[:, None] + torch.arange(width, device=ends.device)
    inside = ranks < ends[:, None]
    positions = state.order.gather(1, ranks.clamp(max=length - 1))
    logits = model.draft_logits(hidden, positions)
    u = uniforms(state.rows, positions, Purpose.DRAFT, state.passes)
    tokens, log_q = draw_tokens(logits, u, temperature, top_p)
    ranks = ranks.masked_fill(~inside, length)
    return Drafts(ranks, inside, positions, logits, tokens, log_q, length)


def draw_tokens(
    logits: Logits, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Int64[Tensor, "rows ranks"], Float64[Tensor, "rows ranks"]]:
    """A token and its log-probability at each of (B, K) places, from (B, K, V) logits."""
    tokens, log_p = [], []
    for k in logits.blocks():
        p = probabilities(logits[:, k], temperature, top_p)
        tokens.append(draw(p, uniforms[:, k]))
        log_p.append(p.gather(-1, tokens[-1][..., None])[..., 0].log())
    return torch.cat(tokens, 1), torch.cat(log_p, 1)


def score_tokens(
    logits: Logits, tokens: Tensor, temperature: float, top_p: float
) -> Float64[Tensor, "rows ranks"]:
    """Tempered log-probability of (B, K) given tokens under (B, K, V) logits."""
    return torch.cat(
        [
            log_probabilities(logits[:, k], temperature, top_p).gather(-1, tokens[:, k, None])
            for k in logits.blocks()
        ],
        1,
    )[..., 0]


def reveal(state: State, ranked: Tensor, count: Tensor) -> State:
    """One pass on: the next `count` (B,) ranks take their token from `ranked` (B, L).

    With `count` on the CPU the host knows what is revealed now.
    """
    ranks = torch.arange(ranked.shape[1], device=ranked.device)
    now = state.revealed + upload(ranked.device, count)[0]
    known = torch.where(ranks < now[:, None], ranked, state.tokens.gather(1, state.order))
    after = replace(
        state,
        tokens=torch.zeros_like(known).scatter(1, state.order, known),
        revealed=now,
        passes=state.passes + 1,
    )
    if count.device.type != "cpu":
        return after
    return after.with_host(Host(state.host.lengths, state.host.revealed + count))


def place(state: State, ranks: Tensor, tokens: Tensor) -> Int64[Tensor, "rows length"]:
    """The row in rank order with (B, K) tokens put at (B, K) ranks; rank L is dropped."""
    ranked = torch.nn.functional.pad(state.tokens.gather(1, state.order), (0, 1))
    return ranked.scatter(1, ranks, tokens)[:, :-1]


def plain_info(state: State, count: Tensor, rounds: int = 0) -> StepInfo:
    """The info of a step that keeps all of its `count` drafts."""
    none = torch.zeros_like(count)
    return StepInfo(count, count, none, none + rounds, torch.full_like(state.tokens, -1), none)
