"""Exact figures of every self-speculative setting on some rows: bits, and expected passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from specmask.errors import UserError
from specmask.likelihood import Conditionals, conditionals
from specmask.likelihood.sweep import FIRSTS, sweep
from specmask.masking import (
    ConstantWindow,
    CosineWindow,
    FullWindow,
    LinearWindow,
    Window,
    window_ends,
)
from specmask.models.checkpoint import Model
from specmask.samplers import Speculative

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""

# --------------------------------------------------------------------------------------- settings


def window_grid(lengths: Tensor, most: int = 500) -> list[Window]:
    """At most `most` windows that differ on rows of these (B,) lengths, small and large.

    Cosine steps at equal ratios, fewer constants and shares of the row, and no window at all.
    """
    longest = int(lengths.max())
    part = max(1, most // 10)
    shares = [_rounded(share) for share in _spaced(1 / longest, 1.0, part)]
    sizes = sorted({round(size) for size in _spaced(1, longest, part)})
    steps = [_rounded(step) for step in _spaced(0.5 / longest, 1.0, max(1, most - 2 * part - 1))]
    windows: list[Window] = [
        FullWindow(),
        *map(ConstantWindow, sizes),
        *map(LinearWindow, shares),
        *map(CosineWindow, steps),
    ]
    distinct: dict[bytes, Window] = {}
    for window in windows:
        ends = [_ends(window, length) for length in lengths.unique().tolist()]
        distinct.setdefault(torch.cat(ends).numpy().tobytes(), window)
    return list(distinct.values())[:most]


def _spaced(low: float, high: float, count: int) -> list[float]:
    """`count` numbers from low to high at equal ratios."""
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()


def _rounded(share: float) -> float:
    """To three digits, as one types it."""
    return min(float(f"{share:.3g}"), 1.0)


def _ends(window: Window, length: int) -> Tensor:
    prefixes = torch.arange(length)
    return window_ends(window, prefixes, torch.full_like(prefixes, length))


def settings_grid(
    windows: Sequence[Window], rounds: int, temperature: float = 1.0
) -> list[Speculative]:
    """Every window with both first-rank rules and 1..rounds rounds, in the order of `sweep`."""
    return [
        Speculative(window, n, first, temperature=temperature)  # type: ignore[arg-type]
        for window in windows
        for first in FIRSTS
        for n in range(1, rounds + 1)
    ]


# ----------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """Exact figures of S settings on B rows.

    bits: (B, S) of each whole row. trunk, verify: (B, S) expected passes. lengths: (B,) tokens.
    """

    bits: Float64[Tensor, "rows settings"]
    trunk: Float64[Tensor, "rows settings"]
    verify: Float64[Tensor, "rows settings"]
    lengths: Tensor

    def bits_per_token(self) -> tuple[Tensor, Tensor]:
        """(S,) bits per token over all rows, and their standard errors (`metrics.estimate`)."""
        sizes = self.lengths.double()[:, None]
        mean = self.bits.sum(0) / sizes.sum()
        count = len(sizes)
        squares = (self.bits - mean * sizes).square().sum(0)
        return mean, (count / (count - 1) * squares).sqrt() / sizes.sum()

    def cost(self, trunk: float, verify: float) -> tuple[Tensor, Tensor]:
        """(S,) mean cost of a row at these costs of a pass, and its standard errors."""
        cost = trunk * self.trunk + verify * self.verify
        return cost.mean(0), cost.std(0) / math.sqrt(len(cost))


@torch.no_grad()
def score_settings(
    model: Model,
    tokens: Tensor,
    order: Tensor,
    lengths: Tensor,
    windows: Sequence[Window],
    rounds: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Scores:
    """Score `settings_grid` on (B, L) rows along (B, L) orders: one table, then recursions alone.

    Raises:
        UserError: a row that the network gives probability zero at some place, so that bits are
            infinite; what `conditionals` refuses.
    """
    size = max(1, (1 << 24) // tokens.shape[1] ** 2)  # rows whose tables stay below 256 MB
    pairs, found = int(lengths.sum()), []
    for at in range(0, len(tokens), size):
        part = slice(at, at + size)
        before = int(lengths[:at].sum())
        table = conditionals(
            model,
            tokens[part],
            order[part],
            lengths=lengths[part],
            temperature=temperature,
            batch_size=batch_size,
            progress=lambda done, _, before=before: tell(  # type: ignore[misc]
                progress, "tables of conditionals", before + done, pairs
            ),
        )
        _check_possible(table, at)
        swept = sweep(
            table,
            windows,
            rounds,
            lambda done, _, at=at: tell(progress, "settings", at + done, len(tokens)),  # type: ignore[misc]
        )
        found.append((-swept.log_prob / math.log(2), swept.trunk, swept.verify))
    bits, trunk, verify = (torch.cat(x).flatten(1).cpu() for x in zip(*found, strict=True))
    return Scores(bits, trunk, verify, lengths.cpu())


def tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    """Call `progress`, if there is one."""
    if progress is not None:
        progress(what, done, total)


def _check_possible(table: Conditionals, first_row: int) -> None:
    assert table.log_p is not None
    zero = ((table.log_q == -torch.inf) | (table.log_p == -torch.inf)).flatten(1).any(1)
    if bool(zero.any()):
        row = first_row + int(zero.nonzero()[0])
        raise UserError(
            f"row {row} of the data holds a token that the model never draws, so its bits are "
            "infinite: leave out such rows, or tune at a temperature above 0"
        )
