"""Exact laws and exact costs: what a sampler's output has as probability, and what it cost.

One table of conditionals per (row, order) scores every setting by scalar recursions, with no
further network call (method.md §6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, uniform
from specmask.checks import whole
from specmask.likelihood.checks import Rows, check_complete, check_given, check_rows
from specmask.likelihood.profile import nll_profile
from specmask.likelihood.recursions import Score, score
from specmask.likelihood.table import Conditionals, Progress, conditionals, fill_table
from specmask.masking import Law, SpeculativeLaw, order_by, window_ends
from specmask.models.checkpoint import Model

__all__ = [
    "Conditionals",
    "Elbo",
    "HasLaw",
    "Progress",
    "Score",
    "conditionals",
    "elbo",
    "evaluate",
    "expected_passes",
    "log_prob",
    "nll_profile",
    "orders_of",
    "random_orders",
    "score",
]


class HasLaw(Protocol):
    """A sampler whose settings have an exact law along σ."""

    def law(self) -> Law:
        """The law, or a UserError that names the sampler."""
        ...


@torch.no_grad()
def evaluate(
    model: Model,
    tokens: Int64[Tensor, "rows length"],
    order: Int64[Tensor, "rows length"],
    sampler: HasLaw,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    given: Tensor | Sequence[int] | int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Score:
    """`log_prob` and `expected_passes` of one sampler from one set of network passes.

    Only the conditionals that the sampler's law can reach are computed: the window's band for
    self-speculation, the groups' first ranks for plain sampling. Arguments as in `log_prob`.
    """
    law = sampler.law()
    whole("batch_size", batch_size, 1)
    rows = check_rows(model, tokens, order, lengths)
    start = check_given(given, rows)
    wanted, ends = _band(law, rows, start)
    results = []
    for part in _row_groups(rows):
        table = fill_table(
            model.network,
            rows.take(part),
            wanted[part],
            ends[part],
            law.temperature,
            law.top_p,
            isinstance(law, SpeculativeLaw),
            isinstance(law, SpeculativeLaw) and law.stop > 0,
            batch_size,
            _after(wanted[: part.start], wanted, progress),
        )
        results.append(score(table, law, start[part]))
    return Score(*(torch.cat(x) for x in zip(*(vars(r).values() for r in results), strict=True)))


def _after(done: Tensor, wanted: Tensor, progress: Progress | None) -> Progress | None:
    """Progress over all rows, from that over a group of them which follows those done."""
    if progress is None:
        return None
    before, total = int(done.sum()), int(wanted.sum())
    return lambda now, _: progress(before + now, total)


def _band(law: Law, rows: Rows, start: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) prefixes that the law can stand at, and the first rank that each cannot reach."""
    prefixes = torch.arange(rows.tokens.shape[1], device=start.device).expand_as(rows.tokens)
    inside = (prefixes >= start[:, None]) & (prefixes < rows.lengths[:, None])
    if isinstance(law, SpeculativeLaw):
        return inside, window_ends(law.window, prefixes, rows.lengths[:, None])
    cuts = law.cuts(start, rows.lengths)
    begins = torch.zeros_like(torch.nn.functional.pad(inside, (0, 1)))
    begins.scatter_(1, cuts, True)
    following = torch.searchsorted(cuts, prefixes.contiguous(), right=True)
    return inside & begins[:, :-1], cuts.gather(1, following.clamp(max=cuts.shape[1] - 1))


def _row_groups(rows: Rows) -> Iterator[slice]:
    """Rows in groups whose tables, two or three, stay below 128 MB each."""
    size = max(1, (1 << 24) // rows.tokens.shape[1] ** 2)
    return (slice(at, at + size) for at in range(0, len(rows.tokens), size))


def log_prob(
    model: Model,
    tokens: Int64[Tensor, "rows length"],
    order: Int64[Tensor, "rows length"],
    sampler: HasLaw,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    given: Tensor | Sequence[int] | int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Float64[Tensor, "rows"]:
    """log p(x | σ): the exact probability that `sampler` makes each row along its order.

    Args:
        model: from `load` or `wrap`.
        tokens: (B, L) complete rows.
        order: (B, L) σ per row, e.g. `Samples.order`; positions beyond a row's length last.
        sampler: its settings; one without a tractable law is refused by name.
        lengths: (B,) tokens of each row, or None for full rows.
        given: number of leading ranks that the canvas fixed; what is scored is the rest given
            them.
        batch_size: prefixes in one pass. progress: called after each pass.

    Returns:
        (B,) float64 nats. Cost: at most D trunk and D head passes a row, O(D²) memory.

    Raises:
        UserError: no tractable law; tokens, order or lengths that do not fit.
    """
    return evaluate(
        model,
        tokens,
        order,
        sampler,
        lengths=lengths,
        given=given,
        batch_size=batch_size,
        progress=progress,
    ).log_prob


def expected_passes(
    model: Model,
    tokens: Int64[Tensor, "rows length"],
    order: Int64[Tensor, "rows length"],
    sampler: HasLaw,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    given: Tensor | Sequence[int] | int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> tuple[Float64[Tensor, "rows"], Float64[Tensor, "rows"]]:
    """Exact mean numbers of (trunk, verify) passes with which `sampler` makes each row along σ.

    The mean is over the sampler's own accidents given that the row came out. Arguments and errors
    as in `log_prob`; each result (B,) float64.
    """
    result = evaluate(
        model,
        tokens,
        order,
        sampler,
        lengths=lengths,
        given=given,
        batch_size=batch_size,
        progress=progress,
    )
    return result.trunk, result.verify


@dataclass(frozen=True)
class Elbo:
    """mean: (B,) nats, an unbiased estimate of E_σ log p(x|σ) ≤ log p(x).

    standard_error: (B,) over the orders drawn; NaN for one order. log_probs: (B, orders).
    """

    mean: Float64[Tensor, "rows"]
    standard_error: Float64[Tensor, "rows"]
    log_probs: Float64[Tensor, "rows orders"]


def elbo(
    model: Model,
    tokens: Int64[Tensor, "rows length"],
    sampler: HasLaw,
    *,
    orders: int = 8,
    seed: int = 0,
    lengths: Tensor | Sequence[int] | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Elbo:
    """Lower bound on log p(x) of each row, from `orders` random orders (method.md §6).

    A sampler that goes left to right has one order; its log p is exact and its standard error 0.

    Raises:
        UserError: orders < 1; no tractable law; tokens that do not fit the model.
    """
    whole("orders", orders, 1)
    sampler.law()
    lengths = check_complete(model, tokens, lengths).lengths
    one_order = getattr(sampler, "order", "random") == "left-to-right"
    each = []
    for k in range(1 if one_order else orders):
        order = orders_of(sampler, tokens, seed, k, lengths)
        each.append(
            log_prob(
                model,
                tokens,
                order,
                sampler,
                lengths=lengths,
                batch_size=batch_size,
                progress=progress,
            )
        )
    log_probs = torch.stack(each, 1)
    if one_order:
        return Elbo(log_probs[:, 0], torch.zeros_like(log_probs[:, 0]), log_probs)
    error = log_probs.std(1) / math.sqrt(orders) if orders > 1 else log_probs[:, 0] * math.nan
    return Elbo(log_probs.mean(1), error, log_probs)


def random_orders(
    tokens: Tensor,
    seed: int = 0,
    number: int = 0,
    lengths: Tensor | Sequence[int] | None = None,
) -> Int64[Tensor, "rows length"]:
    """(B, L) uniform orders of (B, L) rows, the `number`-th of the seed, padding last."""
    rows, positions = (torch.arange(n, device=tokens.device) for n in tokens.shape)
    keys = uniform(seed, rows[:, None], positions, Purpose.SCORE_ORDER, number)
    sizes = torch.full_like(rows, tokens.shape[1])
    if lengths is not None:
        sizes = torch.as_tensor(lengths, device=tokens.device)
    return order_by(keys, torch.zeros_like(keys, dtype=torch.bool), sizes)


def orders_of(
    sampler: HasLaw,
    tokens: Tensor,
    seed: int = 0,
    number: int = 0,
    lengths: Tensor | Sequence[int] | None = None,
) -> Int64[Tensor, "rows length"]:
    """(B, L) orders along which a sampler fills (B, L) rows: left to right, or `random_orders`."""
    if getattr(sampler, "order", "random") == "left-to-right":
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return random_orders(tokens, seed, number, lengths)
