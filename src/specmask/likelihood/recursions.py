"""From a table to a law: scalar recursions, no network call (method.md §6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from specmask.errors import UserError
from specmask.likelihood.table import Conditionals
from specmask.masking import GroupLaw, Law, SpeculativeLaw, window_ends


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
