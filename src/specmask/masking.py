"""In which order positions are filled (σ), and how many at a time (schedules and windows)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from specmask.checks import is_number, whole
from specmask.errors import UserError, unknown

Schedule = Literal["cosine", "linear"]
OrderName = Literal["random", "left-to-right", "confidence"]
ORDERS: tuple[str, ...] = ("random", "left-to-right", "confidence")


# ---------------------------------------------------------------------------------------- orders


def order_by(
    keys: Tensor, given: Bool[Tensor, "rows length"], lengths: Int64[Tensor, "rows"]
) -> Int64[Tensor, "rows length"]:
    """The order that puts given positions first, free ones by ascending key, padding last.

    Args:
        keys: (B, L) one sort key per position; equal keys fall back to position.
        given: (B, L) positions whose token is part of the canvas.
        lengths: (B,) positions at or beyond a row's length are padding.

    Returns:
        (B, L) σ: `order[b, d]` is the position of rank d.
    """
    position = torch.arange(keys.shape[1], device=keys.device)
    kind = 1 - given.long() + (position >= lengths[:, None]).long()
    by_key = keys.masked_fill(kind != 1, 0).argsort(dim=1, stable=True)
    return by_key.gather(1, kind.gather(1, by_key).argsort(dim=1, stable=True))


# ------------------------------------------------------------------------------------- schedules


def _cosine(progress: Tensor) -> Tensor:
    return 1 - torch.cos(math.pi / 2 * progress)


def _linear(progress: Tensor) -> Tensor:
    return progress


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {"cosine": _cosine, "linear": _linear}
"""Revealed share α of the free positions at progress τ from 0 to 1 (cosine: MD4, MaskGIT)."""


def schedule_levels(schedule: str, steps: int) -> Tensor:
    """(steps + 1,) float64: the revealed share after 0, 1, …, steps passes; ends exactly at 1."""
    levels = SCHEDULES[schedule](torch.arange(steps + 1, dtype=torch.float64) / steps)
    levels[-1] = 1.0
    return levels


def fixed_cuts(
    schedule: str, steps: int, given: Int64[Tensor, "rows"], lengths: Int64[Tensor, "rows"]
) -> Int64[Tensor, "rows cuts"]:
    """(B, steps + 1) ranks t_0 = given ≤ … ≤ t_steps = length, at a deterministic pace.

    After step j at most ⌊free·(1 − α_j)⌋ free positions stay masked (the MaskGIT rule), so the
    first step always reveals one. Equal neighbours are groups of size zero: they cost no pass.
    """
    kept = 1 - schedule_levels(schedule, steps).to(given.device)
    free = (lengths - given)[:, None]
    # cos(π/2) and its like are 1e-17, not 0; a share that close to a whole count is that count.
    masked = (free * kept + 1e-9).floor().long()
    return lengths[:, None] - masked


# --------------------------------------------------------------------------------------- windows


@runtime_checkable
class Window(Protocol):
    """How many ranks one trunk pass may reveal, W(i); a pure function of how many are revealed."""

    def size(self, revealed: Tensor, lengths: Tensor) -> Tensor:
        """W ≥ 1 for `revealed` = i of `lengths` = D ranks; int64, the broadcast shape."""
        ...


def _check_step(window: str, step: float) -> None:
    if not (is_number(step) and 0 < step <= 1):
        raise UserError(f"{window} window step {step!r}: expected 0 < step <= 1, e.g. 0.05")


@dataclass(frozen=True)
class CosineWindow:
    """What a cosine schedule reveals in `step` of its time (paper §5; method.md §4).

    W(i) = max(1, ⌈D·(1 − cos(π/2·min(1, τ(i) + step)))⌉ − i) with τ(i) = (2/π)·arccos(1 − i/D):
    short at first, where little is known, and long at the end. 0 < step ≤ 1.
    """

    step: float

    def __post_init__(self) -> None:
        _check_step("cosine", self.step)

    def size(self, revealed: Tensor, lengths: Tensor) -> Tensor:
        share = revealed.double() / lengths
        time = (2 / math.pi * torch.arccos(1 - share) + self.step).clamp(max=1)
        # 1e-9 keeps an exact whole number from being rounded up by the last bit of the cosine.
        end = (lengths * _cosine(time) - 1e-9).ceil().long()
        return (end - revealed).clamp(min=1)


@dataclass(frozen=True)
class LinearWindow:
    """What a linear schedule reveals in `step` of its time: W = max(1, ⌈D·step⌉), 0 < step ≤ 1.

    A fixed share of the row, where `ConstantWindow` is a fixed number of tokens.
    """

    step: float

    def __post_init__(self) -> None:
        _check_step("linear", self.step)

    def size(self, revealed: Tensor, lengths: Tensor) -> Tensor:
        share = (lengths * self.step - 1e-9).ceil().long().clamp(min=1)
        return share.expand(torch.broadcast_shapes(revealed.shape, lengths.shape))


@dataclass(frozen=True)
class ConstantWindow:
    """W(i) = k tokens, k ≥ 1."""

    k: int

    def __post_init__(self) -> None:
        whole("constant window", self.k, 1, (1 << 31) - 1)

    def size(self, revealed: Tensor, lengths: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(revealed.shape, lengths.shape)
        return torch.full(shape, self.k, dtype=torch.int64, device=revealed.device)


@dataclass(frozen=True)
class FullWindow:
    """All that is still masked: W(i) = D − i (at least 1)."""

    def size(self, revealed: Tensor, lengths: Tensor) -> Tensor:
        return (lengths - revealed).clamp(min=1)


WINDOWS: dict[str, Callable[..., Window]] = {
    "cosine": CosineWindow,
    "linear": LinearWindow,
    "constant": ConstantWindow,
    "full": FullWindow,
}


def parse_window(text: str) -> Window:
    """A window from `cosine:0.05`, `linear:0.05`, `constant:8` or `full`.

    Raises:
        UserError: unknown name, or a number that is missing, superfluous or out of range.
    """
    name, _, number = text.partition(":")
    if name not in WINDOWS:
        raise unknown("window", name, WINDOWS)
    if name == "full":
        if number:
            raise UserError(f"window {text!r}: 'full' takes no number")
        return FullWindow()
    try:
        value = int(number) if name == "constant" else float(number)
    except ValueError:
        example = "constant:8" if name == "constant" else f"{name}:0.05"
        raise UserError(f"window {text!r}: expected a number, e.g. {example}") from None
    return WINDOWS[name](value)


def window_ends(window: Window, revealed: Tensor, lengths: Tensor) -> Tensor:
    """Exclusive last rank that a pass with `revealed` ranks known may reveal: min(D, i + W(i))."""
    return torch.minimum(lengths, revealed + window.size(revealed, lengths))


def confident_ends(
    ends: Tensor, revealed: Tensor, ranks: Tensor, log_best: Tensor, stop: float
) -> Tensor:
    """Windows cut before their first unsure rank; the first rank of a pass always stays.

    Args:
        ends, revealed: (...) exclusive last rank and first rank of each pass.
        ranks: (..., K) ranks, ascending. log_best: (..., K) log of their drafts' largest
            probability, NaN where unknown: that rank does not end a window.
        stop: a rank is unsure where the largest probability is below this, 0 < stop ≤ 1.
    """
    unsure = (log_best < math.log(stop)) & (ranks > revealed[..., None])
    never = torch.iinfo(ranks.dtype).max
    return torch.minimum(ends, torch.where(unsure, ranks, never).amin(-1))


# ------------------------------------------------------------------------------------------ laws


@dataclass(frozen=True)
class SpeculativeLaw:
    """The exact law of self-speculation along σ, as `likelihood` needs it (method.md §6, §7).

    block: verified as one block. stop: see `confident_ends`; 0 leaves the window as it is.
    """

    window: Window
    rounds: int
    accept_first: bool
    temperature: float
    top_p: float
    block: bool = False
    stop: float = 0.0


@dataclass(frozen=True)
class GroupLaw:
    """The exact law of revealing fixed groups of ranks from the draft alone (method.md §6).

    `cuts(given, lengths)` gives the (B, K + 1) group borders.
    """

    cuts: Callable[[Tensor, Tensor], Tensor]
    temperature: float
    top_p: float


Law = SpeculativeLaw | GroupLaw
