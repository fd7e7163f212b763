"""Exact laws and exact costs: what a sampler's output has as probability, and what it cost.

One table of conditionals per (row, order) scores every setting by scalar recursions, with no
further network call (method.md §6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, check_tempering, log_probabilities, uniform
from specmask.errors import UserError
from specmask.masking import GroupLaw, Law, SpeculativeLaw, order_by, window_ends
from specmask.models.checkpoint import Model, check_weights
from specmask.models.protocol import Denoiser, Verifier

Progress = Callable[[int, int], None]
"""Called with (pairs of row and prefix done, pairs in all)."""


class HasLaw(Protocol):
    """A sampler whose settings have an exact law along σ."""

    def law(self) -> Law:
        """The law, or a UserError that names the sampler."""
        ...


# ------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Conditionals:
    """log q_i(d) and log p_i(d) at the tokens of each row, for 0 ≤ i ≤ d < D.

    log_q, log_p: (B, L, L) float64 nats, [b, i, d]; NaN where not computed (below the diagonal,
    beyond the row, outside the band that was asked for). log_p is None without a verifier pass.
    lengths: (B,) D of each row. temperature, top_p: as tempered.
    """

    log_q: Float64[Tensor, "rows length length"]
    log_p: Float64[Tensor, "rows length length"] | None
    lengths: Int64[Tensor, "rows"]
    temperature: float
    top_p: float


@torch.no_grad()
def conditionals(
    model: Model,
    tokens: Int64[Tensor, "rows length"],
    order: Int64[Tensor, "rows length"],
    *,
    lengths: Tensor | Sequence[int] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    target: bool = True,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Conditionals:
    """Both triangular tables: D trunk and D head passes a row, batched over prefixes.

    Args:
        model: from `load` or `wrap`.
        tokens: (B, L) complete rows. order: (B, L) σ, a permutation of each row's positions.
        lengths: (B,) or None for full rows.
        temperature, top_p: tempering of both laws.
        target: False leaves out the head.
        batch_size: prefixes in one pass.
        progress: called after each pass.

    Raises:
        UserError: tokens or order that do not fit the model or each other.
    """
    check_tempering(temperature, top_p)
    _check_batch(batch_size)
    rows = _check_rows(model, tokens, order, lengths)
    every = rows.lengths[:, None].expand_as(rows.tokens)
    law = _Tempering(temperature, top_p)
    start = torch.zeros_like(rows.lengths)
    return _table(model.network, rows, start, every, law, target, batch_size, progress)


@dataclass(frozen=True)
class _Rows:
    tokens: Tensor
    order: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class _Tempering:
    temperature: float
    top_p: float


_BLOCK = 1 << 23  # logits in float64 at once: 64 MB


def _table(
    network: Denoiser,
    rows: _Rows,
    start: Tensor,
    ends: Tensor,
    tempering: _Tempering | Law,
    target: bool,
    batch_size: int,
    progress: Progress | None,
    needed: Tensor | None = None,
) -> Conditionals:
    """The tables on the band i ≤ d < ends[b, i], for prefixes start ≤ i < D (those `needed`)."""
    if target and not isinstance(network, Verifier):
        raise UserError(f"{type(network).__name__} has no causal head, which this law needs")
    count, length = rows.tokens.shape
    prefixes = torch.arange(length, device=rows.tokens.device)
    wanted = (prefixes >= start[:, None]) & (prefixes < rows.lengths[:, None])
    if needed is not None:
        wanted &= needed
    pairs = wanted.nonzero()
    shape = (count, length, length)
    log_q = torch.full(shape, math.nan, dtype=torch.float64, device=rows.tokens.device)
    log_p = log_q.clone() if target else None
    for at in range(0, len(pairs), batch_size):
        b, i = pairs[at : at + batch_size].unbind(1)
        end = ends[b, i]
        ranks = i[:, None] + torch.arange(int((end - i).max()), device=i.device)
        inside = ranks < end[:, None]
        q, p = _score(network, rows, b, i, ranks.masked_fill(~inside, length), tempering, target)
        pair, k = inside.nonzero(as_tuple=True)
        log_q[b[pair], i[pair], ranks[pair, k]] = q[pair, k]
        if log_p is not None and p is not None:
            log_p[b[pair], i[pair], ranks[pair, k]] = p[pair, k]
        if progress is not None:
            progress(min(at + batch_size, len(pairs)), len(pairs))
    return Conditionals(log_q, log_p, rows.lengths, tempering.temperature, tempering.top_p)


def _score(
    network: Denoiser,
    rows: _Rows,
    b: Tensor,
    i: Tensor,
    ranks: Tensor,
    tempering: _Tempering | Law,
    target: bool,
) -> tuple[Tensor, Tensor | None]:
    """log q_i(d), log p_i(d) at (pairs, K) ranks d ≥ i, given the first i ranks of row b."""
    order, ranked = rows.order[b], rows.tokens[b].gather(1, rows.order[b])
    length = order.shape[1]
    hide = torch.arange(length, device=i.device) >= i[:, None]
    seen = torch.zeros_like(ranked).scatter(1, order, ranked.masked_fill(hide, network.mask_id))
    hidden = network.trunk(seen, rows.lengths[b])
    inner = ranks.clamp(max=length - 1)
    symbols = ranked.gather(1, inner)

    def score(logits: Tensor, symbols: Tensor) -> Tensor:
        tempered = log_probabilities(logits, tempering.temperature, tempering.top_p)
        return tempered.gather(-1, symbols[..., None])[..., 0]

    # In blocks of ranks, so that memory does not grow with length × vocabulary.
    size = max(1, _BLOCK // (len(b) * network.vocab_size))
    blocks = [slice(k, k + size) for k in range(0, ranks.shape[1], size)]
    positions = order.gather(1, inner)
    log_q = [score(network.draft_logits(hidden, positions[:, k]), symbols[:, k]) for k in blocks]
    if not target:
        return torch.cat(log_q, 1), None
    assert isinstance(network, Verifier)
    prefix = network.prefix(hidden, seen, order, i)
    log_p = [score(network.verify(prefix, ranks[:, k], ranked), symbols[:, k]) for k in blocks]
    return torch.cat(log_q, 1), torch.cat(log_p, 1)


# ---------------------------------------------------------------------------------- recursions


@dataclass(frozen=True)
class Score:
    """log_prob: (B,) nats, −inf if impossible. trunk, verify: (B,) expected passes given the row
    and σ; NaN where the row is impossible. All float64."""

    log_prob: Float64[Tensor, "rows"]
    trunk: Float64[Tensor, "rows"]
    verify: Float64[Tensor, "rows"]


def score(table: Conditionals, law: Law, given: Tensor | None = None) -> Score:
    """Probability and expected cost of each row under a law, from its table alone.

    Args:
        table: conditionals under the law's own tempering.
        law: from a sampler's `law()`.
        given: (B,) ranks that are part of the canvas (default 0).

    Raises:
        UserError: the table was tempered differently, or lacks the target.
    """
    if (law.temperature, law.top_p) != (table.temperature, table.top_p):
        raise UserError(
            f"a table at temperature {table.temperature}, top_p {table.top_p} cannot score a law "
            f"at temperature {law.temperature}, top_p {law.top_p}: compute one for it"
        )
    start = torch.zeros_like(table.lengths) if given is None else given
    if isinstance(law, GroupLaw):
        return _score_groups(table, law, start)
    if table.log_p is None:
        raise UserError("this table holds no target: compute it with target=True")
    return _score_speculative(table, table.log_p, law, start)


def _score_groups(table: Conditionals, law: GroupLaw, start: Tensor) -> Score:
    """log p(x|σ) = Σ_j Σ_{d in group j} log q_{t_j}(d) (method.md §6)."""
    cuts = law.cuts(start, table.lengths)
    ranks = torch.arange(table.log_q.shape[1], device=cuts.device)
    # The group of rank d begins at the last cut that is not beyond d.
    group = torch.searchsorted(cuts, ranks.expand(len(cuts), -1).contiguous(), right=True) - 1
    begin = cuts.gather(1, group.clamp(min=0))
    terms = table.log_q.gather(1, begin.clamp(max=len(ranks) - 1)[:, None])[:, 0]
    scored = (ranks >= start[:, None]) & (ranks < table.lengths[:, None])
    passes = (cuts.diff(dim=1) > 0).sum(1).double()
    return Score(terms.masked_fill(~scored, 0).sum(1), passes, torch.zeros_like(passes))


def _score_speculative(
    table: Conditionals, log_p: Tensor, law: SpeculativeLaw, start: Tensor
) -> Score:
    """The recursion of method.md §6, all prefixes i at once, rank d from the last to the first.

        G_i(d, n) = a_i(d)·G_i(d+1, n) + r_i(d)·(G_i(d+1, n−1) if n > 1 and d+1 < end else L(d+1))

    Each G carries the expected numbers of passes still to come given the row: the mean of the
    two branches, weighted by their share of G.
    """
    rows, length, _ = table.log_q.shape
    rounds, device = law.rounds, log_p.device
    prefixes = torch.arange(length, device=device)
    ends = window_ends(law.window, prefixes.expand(rows, -1), table.lengths[:, None])
    zero = torch.zeros(rows, length + 1, dtype=torch.float64, device=device)
    # L(d) for d = 0..D, with its costs; L(D) = 1 at no cost.
    total, trunk, verify = zero.clone(), zero.clone(), zero.clone()
    # G_i(d + 1, n) for the present d: (B, i, n), n = 1..rounds.
    shape = (rows, length, rounds)
    g = torch.zeros(shape, dtype=torch.float64, device=device)
    g_trunk, g_verify = torch.zeros_like(g), torch.zeros_like(g)

    for d in range(length - 1, -1, -1):
        ending = (ends == d + 1)[..., None]  # G_i(end, n) = L(end)
        leaf = [x[:, d + 1, None, None].expand(shape) for x in (total, trunk, verify)]
        kept = [
            torch.where(ending, x, y) for x, y in zip(leaf, (g, g_trunk, g_verify), strict=True)
        ]
        # After a rejection: one round fewer, which is a verify pass, or a new trunk pass.
        fewer = [torch.cat((x[..., :1], y[..., :-1]), -1) for x, y in zip(leaf, kept, strict=True)]
        again = (torch.arange(rounds, device=device) > 0) & ~ending
        fewer = [torch.where(again, y, x) for x, y in zip(leaf, fewer, strict=True)]
        fewer[2] = fewer[2] + again

        log_a, log_r = _accept_reject(table.log_q[:, :, d], log_p[:, :, d])
        if law.accept_first:  # p_d(d) := q_d(d)
            first = prefixes == d
            log_a = torch.where(first, table.log_q[:, :, d], log_a)
            log_r = log_r.masked_fill(first, -torch.inf)
        # Only prefixes i ≤ d < end_i are inside; the others are overwritten before they are read.
        inside = (prefixes <= d) & (ends > d) & (prefixes >= start[:, None])
        inside &= (table.lengths > d)[:, None]
        accept = (log_a.masked_fill(~inside, 0))[..., None] + kept[0]
        reject = (log_r.masked_fill(~inside, -torch.inf))[..., None] + fewer[0]
        g = torch.logaddexp(accept, reject)
        # Of the paths through d, those that reject; an impossible state costs whatever it likes.
        share = (reject - g).exp().masked_fill(g == -torch.inf, 0)
        g_trunk = (1 - share) * kept[1] + share * fewer[1]
        g_verify = (1 - share) * kept[2] + share * fewer[2]

        # L(d) = G_d(d, N), one trunk and one verify pass later; a row that is over stays at 1.
        alive = table.lengths > d
        unverified = law.accept_first & (ends[:, d] == d + 1)
        total[:, d] = torch.where(alive, g[:, d, -1], 0.0)
        trunk[:, d] = torch.where(alive, g_trunk[:, d, -1] + 1, 0.0)
        verify[:, d] = torch.where(alive, g_verify[:, d, -1] + (~unverified).double(), 0.0)

    pick = start[:, None]
    log_prob, trunk, verify = (x.gather(1, pick)[:, 0] for x in (total, trunk, verify))
    impossible = log_prob == -torch.inf
    return Score(
        log_prob, trunk.masked_fill(impossible, math.nan), verify.masked_fill(impossible, math.nan)
    )


def _accept_reject(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """log min(q, p) and log (p − q)₊."""
    gap = (log_q - log_p).clamp(max=0)  # where q < p
    gap = torch.where(log_p == -torch.inf, torch.zeros_like(gap), gap)
    return torch.minimum(log_q, log_p), log_p + torch.log(-torch.expm1(gap))


# ---------------------------------------------------------------------------------- public face


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
    _check_batch(batch_size)
    rows = _check_rows(model, tokens, order, lengths)
    start = _check_given(given, rows)
    results = [
        _evaluate(model.network, _Rows(*part), start_part, law, batch_size, progress)
        for part, start_part in _row_groups(rows, start)
    ]
    return Score(*(torch.cat(x) for x in zip(*(vars(r).values() for r in results), strict=True)))


def _row_groups(rows: _Rows, start: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Rows in groups whose tables together stay below 256 MB."""
    size = max(1, (1 << 24) // rows.tokens.shape[1] ** 2)
    for at in range(0, len(rows.tokens), size):
        part = slice(at, at + size)
        yield (rows.tokens[part], rows.order[part], rows.lengths[part]), start[part]


def _evaluate(
    network: Denoiser,
    rows: _Rows,
    start: Tensor,
    law: Law,
    batch_size: int,
    progress: Progress | None,
) -> Score:
    count, length = rows.tokens.shape
    prefixes = torch.arange(length, device=start.device).expand(count, -1)
    if isinstance(law, GroupLaw):
        cuts = law.cuts(start, rows.lengths)
        needed = torch.zeros(count, length + 1, dtype=torch.bool, device=start.device)
        needed.scatter_(1, cuts, True)
        needed = needed[:, :length]
        ends = torch.searchsorted(cuts, prefixes.contiguous(), right=True)
        ends = cuts.gather(1, ends.clamp(max=cuts.shape[1] - 1))
        table = _table(network, rows, start, ends, law, False, batch_size, progress, needed)
    else:
        ends = window_ends(law.window, prefixes, rows.lengths[:, None])
        table = _table(network, rows, start, ends, law, True, batch_size, progress)
    return score(table, law, start)


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
    if orders < 1:
        raise UserError(f"orders={orders}: expected at least 1")
    sampler.law()
    lengths = _check_tokens(model, tokens, lengths).lengths
    left_to_right = getattr(sampler, "order", "random") == "left-to-right"
    each = []
    for k in range(1 if left_to_right else orders):
        order = _some_order(tokens, lengths, left_to_right, seed, k)
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
    if left_to_right:
        return Elbo(log_probs[:, 0], torch.zeros_like(log_probs[:, 0]), log_probs)
    error = log_probs.std(1) / math.sqrt(orders) if orders > 1 else log_probs[:, 0] * math.nan
    return Elbo(log_probs.mean(1), error, log_probs)


def random_orders(
    tokens: Tensor, seed: int = 0, number: int = 0, lengths: Tensor | None = None
) -> Int64[Tensor, "rows length"]:
    """(B, L) uniform orders of (B, L) rows, the `number`-th of the seed, padding last."""
    rows, positions = (torch.arange(n, device=tokens.device) for n in tokens.shape)
    keys = uniform(seed, rows[:, None], positions, Purpose.SCORE_ORDER, number)
    sizes = torch.full_like(rows, tokens.shape[1]) if lengths is None else lengths
    return order_by(keys, torch.zeros_like(keys, dtype=torch.bool), sizes)


def _some_order(
    tokens: Tensor,
    lengths: Tensor | Sequence[int] | None,
    left_to_right: bool,
    seed: int,
    number: int,
) -> Tensor:
    if left_to_right:
        return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    sizes = None if lengths is None else torch.as_tensor(lengths, device=tokens.device)
    return random_orders(tokens, seed, number, sizes)


# --------------------------------------------------------------------------------------- checks


def _check_tokens(model: Model, tokens: Tensor, lengths: Tensor | Sequence[int] | None) -> _Rows:
    """Complete rows that fit the model, in left-to-right order."""
    network, device = model.network, model.device
    check_weights(network)
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise UserError(
            f"tokens of shape {tuple(tokens.shape)} and type {tokens.dtype}: expected integers of "
            "shape (rows, length)"
        )
    if tokens.shape[1] > network.length:
        raise UserError(f"rows of {tokens.shape[1]} tokens: the model takes {network.length}")
    tokens = tokens.to(device).long()
    longest = tokens.shape[1]
    sizes = torch.as_tensor([longest] * len(tokens) if lengths is None else lengths)
    sizes = sizes.to(device).long()
    if sizes.shape != (len(tokens),) or not bool(((sizes >= 1) & (sizes <= longest)).all()):
        raise UserError(f"lengths: expected {len(tokens)} numbers from 1 to {longest}")
    inside = torch.arange(longest, device=device) < sizes[:, None]
    if bool(((tokens < 0) | (tokens >= network.vocab_size))[inside].any()):
        raise UserError(
            f"tokens: expected complete rows of 0..{network.vocab_size - 1}; a masked row has no "
            "probability"
        )
    every = torch.arange(longest, device=device).expand_as(tokens)
    return _Rows(tokens.clamp(min=0, max=network.mask_id), every, sizes)


def _check_rows(
    model: Model, tokens: Tensor, order: Tensor, lengths: Tensor | Sequence[int] | None
) -> _Rows:
    rows = _check_tokens(model, tokens, lengths)
    if order.shape != tokens.shape:
        raise UserError(f"order is {tuple(order.shape)}, tokens are {tuple(tokens.shape)}")
    order = order.to(model.device)
    ranks = torch.arange(order.shape[1], device=order.device)
    permutation = not order.is_floating_point() and bool((order.sort(1).values == ranks).all())
    inside = ranks < rows.lengths[:, None]
    if not permutation or bool((order >= rows.lengths[:, None])[inside].any()):
        raise UserError(
            "order: expected a permutation of the positions 0..length-1 in each row, the positions "
            "beyond the row's length last"
        )
    return _Rows(rows.tokens, order.long(), rows.lengths)


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1")


def _check_given(given: Tensor | Sequence[int] | int, rows: _Rows) -> Tensor:
    if isinstance(given, int):
        given = [given] * len(rows.lengths)
    start = torch.as_tensor(given, device=rows.lengths.device).long()
    if start.shape != rows.lengths.shape or bool(((start < 0) | (start > rows.lengths)).any()):
        raise UserError(
            f"given={start.tolist()}: expected one number per row, from 0 to its length"
        )
    return start
