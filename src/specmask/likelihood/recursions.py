"""From a table to a law: scalar recursions, no network call (method.md §6, §7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from specmask.categorical import run_ratio
from specmask.errors import UserError
from specmask.likelihood.table import Conditionals
from specmask.masking import GroupLaw, Law, SpeculativeLaw, confident_ends, window_ends


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
        UserError: the table was tempered differently, or lacks the target, or the draft's largest
            probabilities that a law with `stop` needs.
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
    ends = _window_ends(table, law)
    if law.block:
        return _score_block(table, table.log_p, law, start, ends)
    return _score_token(table, table.log_p, law, start, ends)


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


def _window_ends(table: Conditionals, law: SpeculativeLaw) -> Tensor:
    """(B, L) exclusive last rank of the window at every prefix."""
    prefixes = torch.arange(table.log_q.shape[1], device=table.lengths.device)
    every = prefixes.expand(len(table.lengths), -1)
    ends = window_ends(law.window, every, table.lengths[:, None])
    if law.stop == 0:
        return ends
    if table.log_best is None:
        raise UserError(
            "this table holds no largest probabilities, which a law with stop needs: compute it "
            "with best=True"
        )
    return confident_ends(ends, every, prefixes, table.log_best, law.stop)


def _score_token(
    table: Conditionals, log_p: Tensor, law: SpeculativeLaw, start: Tensor, ends: Tensor
) -> Score:
    """The recursion of method.md §6, all prefixes i at once, rank d from the last to the first.

        G_i(d, n) = a_i(d)·G_i(d+1, n) + r_i(d)·(G_i(d+1, n−1) if n > 1 and d+1 < end else L(d+1))

    Each G carries the expected numbers of passes still to come given the row: the mean of the
    two branches, weighted by their share of G.
    """
    rows, length, _ = table.log_q.shape
    rounds, device = law.rounds, log_p.device
    prefixes = torch.arange(length, device=device)
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

        log_q, target = table.log_q[:, :, d], log_p[:, :, d]
        log_a, log_r = torch.minimum(log_q, target), _log_excess(log_q, target)
        if law.accept_first:  # p_d(d) := q_d(d)
            first = prefixes == d
            log_a = torch.where(first, log_q, log_a)
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

    return _at_start(torch.stack((total, trunk, verify)), start)


_BLOCK = 1 << 22  # float64 numbers in one matrix of runs: 32 MB


def _score_block(
    table: Conditionals, log_p: Tensor, law: SpeculativeLaw, start: Tensor, ends: Tensor
) -> Score:
    """The recursion of method.md §7, prefix i from the last to the first.

        G_i(d, n) = Σ_{d≤e<end} Q(d, e)·(c(d, e)·p_i(e) − q_i(e))₊·next(e+1, n−1)
                    + Q(d, end)·c(d, end)·L(end)

    with Q(d, e) and c(d, e) of the run of drafts d..e−1; next(e, m) = G_i(e, m) where a round and
    a rank are left, else L(e). One prefix's runs (d, e) form a matrix that depends on no G, so a
    round is one product with it: O(D²) scalars a row with one round, O(D³) with more. Expected
    passes are carried as in `_score_token`.
    """
    rows, length, _ = table.log_q.shape
    # L(d) for d = 0..D and its costs, stacked: (3, B, D + 1).
    leaf = torch.zeros(3, rows, length + 1, dtype=torch.float64, device=log_p.device)
    size = max(1, _BLOCK // length**2)
    for i in range(length - 1, -1, -1):
        alive = ((start <= i) & (table.lengths > i)).nonzero()[:, 0]
        for b in filter(len, alive.split(size)):
            end = ends[b, i]
            inside = slice(i, int(end.max()))
            log_q, target = table.log_q[b, i, inside], log_p[b, i, inside]
            if law.accept_first:  # p_i(i) := q_i(i)
                target[:, 0] = log_q[:, 0]
            unverified = law.accept_first & (end == i + 1)
            found = _block_rounds(log_q, target, end - i, leaf[:, b, i:], law.rounds)
            # L(i) = G_i(i, N), one trunk and one verify pass later.
            found[1] += 1
            found[2] += (~unverified).double()
            leaf[:, b, i] = found
    return _at_start(leaf, start)


def _block_rounds(log_q: Tensor, log_p: Tensor, size: Tensor, leaf: Tensor, rounds: int) -> Tensor:
    """(3, B) G_i(i, N) and its costs of one prefix i.

    Ranks are counted from i: log_q, log_p (B, W) of windows of (B,) size; leaf (3, B, > W) holds L.
    """
    pad = torch.nn.functional.pad
    width, ends = log_q.shape[1], size[:, None]
    e = torch.arange(
        width + 1, device=size.device
    )  # where a run ends: rejected there, or at `ends`
    d = e[
        : 1 if rounds == 1 else width, None
    ]  # where it starts: the first round at i, others later
    log_q, log_p = (x.masked_fill(e[:-1] >= ends, 0) for x in (log_q, log_p))
    # Q(d, e) and c(d, e), each (B, d, e): the ranks before d count as factors of 1.
    q, p = (torch.where(e[:-1] >= d, x[:, None], 0.0) for x in (log_q, log_p))
    drafted, log_c = pad(q.cumsum(-1), (1, 0)), run_ratio(q, p)
    excess = _log_excess(pad(log_q, (0, 1))[:, None], log_c + pad(log_p, (0, 1))[:, None])
    run = drafted + torch.where((e == ends)[:, None], log_c, excess)
    run = run.masked_fill((e < d) | (e > ends)[:, None], -torch.inf)

    beyond = torch.minimum(e + 1, ends)  # the rank after a run that ended at e
    final = leaf.gather(2, beyond.expand(3, -1, -1))
    following = final  # next(e + 1, n − 1), for n = 1..N
    for n in range(1, rounds + 1):
        if n == rounds:
            run = run[:, :1]
        terms = run + following[0][:, None]
        g = terms.logsumexp(-1)
        # Each run's share of G; an impossible state costs whatever it likes.
        share = (terms - g[..., None]).exp().masked_fill((g == -torch.inf)[..., None], 0)
        trunk, verify = (share @ x[..., None] for x in following[1:])
        found = torch.stack((g, trunk[..., 0], verify[..., 0]))
        if n < rounds:
            later = pad(found[:, :, 1:], (0, 2))
            later[2] += 1  # that round's verify pass
            following = torch.where(beyond < ends, later, final)
    return found[:, :, 0]


def _at_start(leaf: Tensor, start: Tensor) -> Score:
    """Each row's score from L and its costs, (3, B, L + 1), at every prefix."""
    log_prob, trunk, verify = leaf.gather(2, start.expand(3, -1)[..., None])[..., 0]
    impossible = log_prob == -torch.inf
    return Score(
        log_prob, trunk.masked_fill(impossible, math.nan), verify.masked_fill(impossible, math.nan)
    )


def _log_excess(log_q: Tensor, log_p: Tensor) -> Tensor:
    """log (p − q)₊."""
    gap = (log_q - log_p).clamp(max=0)  # where q < p
    gap = torch.where(log_p == -torch.inf, torch.zeros_like(gap), gap)
    return log_p + torch.log(-torch.expm1(gap))
