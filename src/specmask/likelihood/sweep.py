"""Exact law and cost of thousands of self-speculative settings from one table (method.md §6).

Drafts are verified one by one, as in the paper.

For a prefix i, what happens inside a trunk pass does not depend on the window until the window
ends. Let A_m(d) be the mass that comes to rank d, unjudged, after m rejections:

    A_0(i) = 1;   A_m(d+1) = a_i(d)·A_m(d) + r_i(d)·A_{m−1}(d)
    T(e) = r_i(e)·A_{N−1}(e)               the N-th rejection is at e, and ends the pass
    S(end) = Σ_{m<N} A_m(end)              the window's end is reached in time
    L(i) = Σ_{i≤e<end} T(e)·L(e+1) + S(end)·L(end),   end = min(D, i + W(i))

So all windows share T and S, and L costs one product with T for each. A pass that its N-th
rejection ends took N rounds; one that reaches the end with m rejections m + 1, or m if the last
of them was at the last rank, which leaves nothing to verify.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from specmask.checks import whole
from specmask.errors import UserError
from specmask.likelihood.recursions import score
from specmask.likelihood.table import Conditionals, Progress
from specmask.masking import SpeculativeLaw, Window, window_ends

FIRSTS = ("verify", "accept")

_MEMORY = 250e6  # bytes for L and its costs at every rank
_BLOCK = 32  # prefixes whose T and S are held at once
_LAG = 8  # ranks since the trunk pass that gives the reference: what settings typically have
# What underflows is below 1e-308; grown by _GROWTH, times and over _RANGE, it is below 1e-27.
_GROWTH, _RANGE = 1e100, 1e90


@dataclass(frozen=True)
class Sweep:
    """Scores of every (window, first, rounds), each (B, windows, 2, rounds) float64.

    log_prob: nats, −inf if impossible. trunk, verify: expected passes given the row and σ, NaN
    where that is impossible. The third axis is `FIRSTS`, the fourth 1..rounds.
    """

    log_prob: Float64[Tensor, "rows windows firsts rounds"]
    trunk: Float64[Tensor, "rows windows firsts rounds"]
    verify: Float64[Tensor, "rows windows firsts rounds"]


@torch.no_grad()
def sweep(
    table: Conditionals,
    windows: Sequence[Window],
    rounds: int,
    progress: Progress | None = None,
) -> Sweep:
    """What `score` says of every window, both first-rank rules and 1..rounds rounds.

    Works with ratios to a reference law in float64. A row and setting whose ratios leave the range
    in which that is exact (among them every impossible one) is scored by `score`, in log space.

    Args:
        table: of whole rows, with the target, as `conditionals` gives it.
        windows: at least one; those that are alike at every prefix cost as much as others.
        rounds: the most rounds, at least 1.
        progress: called with (rows done, rows in all).

    Returns:
        Scores equal to those of `score` within rounding. About 300 MB beside table and result.

    Raises:
        UserError: no window, rounds < 1, or a table without target or of a band alone.
    """
    whole("rounds", rounds, 1)
    if not windows:
        raise UserError("no windows to sweep: expected at least one")
    if table.log_p is None:
        raise UserError("this table holds no target: compute it with target=True")
    shape = (3, len(table.lengths), len(windows), len(FIRSTS), rounds)
    results = torch.full(shape, math.nan, dtype=torch.float64, device=table.log_q.device)
    done = 0
    for length in table.lengths.unique().tolist():
        ends = torch.stack([_ends(window, length, table) for window in windows])
        rows = (table.lengths == length).nonzero()[:, 0]
        size = max(1, int(_MEMORY / (48 * rounds * (length + 1) * len(windows))))
        for part in rows.split(size):
            _sweep_rows(table, part, ends, results)
            done += len(part)
            if progress is not None:
                progress(done, len(table.lengths))
    _score_rest(table, windows, results)
    return Sweep(*results)


def _ends(window: Window, length: int, table: Conditionals) -> Tensor:
    """(D,) end of the window at every prefix of rows of D = `length`."""
    prefixes = torch.arange(length, device=table.lengths.device)
    return window_ends(window, prefixes, torch.full_like(prefixes, length))


def _sweep_rows(table: Conditionals, rows: Tensor, ends: Tensor, results: Tensor) -> None:
    """Fill in the results of some rows of one length; NaN stays where ratios left their range."""
    a, r, log_reference = _factors(table, rows, ends.shape[1])
    count, _, _, length = a.shape
    rounds = results.shape[-1]
    chains = [_Chain(index, ends[index], count, rounds, a) for index in _nested(ends)]
    for low in range((length - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        reach = _Reach(a, r, low, min(low + _BLOCK, length), rounds)
        for chain, i in itertools.product(chains, reach.prefixes):
            chain.solve(i, *reach.of(i))
    mass = (a + r).log().masked_fill(_below(length, a.device), 0).cumsum(-1)
    tame = (mass - mass.cummin(-1).values).amax((1, 2, 3)) < math.log(_GROWTH)
    for chain in chains:
        ratio, trunk, verify = chain.values(0)  # each (rows, windows, firsts, rounds)
        least, most = chain.extremes()
        sound = (least > 1 / _RANGE) & (most < _RANGE) & tame[:, None, None, None]
        found = torch.stack(
            (ratio.log() + log_reference[:, None, None, None], trunk / ratio, verify / ratio)
        )
        pick = rows[:, None], chain.index
        results[:, pick[0], pick[1]] = torch.where(sound, found, math.nan)


def _below(length: int, device: torch.device) -> Tensor:
    """(D, D) true where rank d is below the prefix i."""
    ranks = torch.arange(length, device=device)
    return ranks < ranks[:, None]


def _factors(table: Conditionals, rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """a_i(d) and r_i(d), (B, firsts, i, d), over a reference probability of rank d, and its log p.

    The reference is the target of a trunk pass some ranks before; it only sets the scale.
    """
    assert table.log_p is not None
    below = _below(length, rows.device)
    log_q, log_p = (
        x[rows, :length, :length].masked_fill(below, 0) for x in (table.log_q, table.log_p)
    )
    if bool((log_q.isnan() | log_p.isnan()).any()):
        raise UserError(
            "the table lacks conditionals: expected all of a row, as conditionals makes"
        )
    ranks = torch.arange(length, device=rows.device)
    reference = log_p[:, (ranks - _LAG).clamp(min=0), ranks]
    reference = reference.masked_fill(reference == -torch.inf, 0)
    p, q = ((x - reference[:, None]).exp().masked_fill(below, 0) for x in (log_p, log_q))
    a, r = torch.minimum(p, q), p * -torch.expm1((log_q - log_p).nan_to_num(0).clamp(max=0))
    first = ranks == ranks[:, None]  # accept: p_i(i) := q_i(i)
    a = torch.stack((a, torch.where(first, q, a)), 1)
    r = torch.stack((r, r.masked_fill(first, 0)), 1)
    return a, r, reference.sum(1)


class _Reach:
    """T, S and the rounds they took, from every prefix of a block."""

    def __init__(self, a: Tensor, r: Tensor, low: int, high: int, rounds: int) -> None:
        count, firsts, _, length = a.shape
        shape = (length + 1 - low, count, firsts, rounds, high - low)
        reached, rejected = a.new_zeros(shape), a.new_zeros(shape)  # A_m(d); r_i(d)·A_m(d)
        for d in range(low, length):
            at = d - low
            if d < high:
                reached[at, :, :, 0, at] = 1
            here = (slice(None), slice(None), slice(low, high), d)
            torch.mul(reached[at], r[here].unsqueeze(2), out=rejected[at])
            torch.mul(reached[at], a[here].unsqueeze(2), out=reached[at + 1])
            reached[at + 1, :, :, 1:] += rejected[at, :, :, :-1]
        made = torch.arange(1, rounds + 1, dtype=a.dtype, device=a.device)[:, None]
        in_time = reached * made
        in_time[1:, :, :, 1:] -= rejected[:-1, :, :, :-1]  # rejected at the last rank: no round
        self._low, self.prefixes = low, range(high - 1, low - 1, -1)
        # (prefix, rank − low, rows · firsts · rounds)
        self._t, self._s, self._v = (
            x.permute(4, 0, 1, 2, 3).reshape(high - low, shape[0], -1)
            for x in (rejected, reached.cumsum(3), in_time.cumsum(3))
        )
        prefix = torch.arange(high - low, device=a.device)
        alone = self._v.unflatten(2, shape[1:4])[prefix, prefix + 1]
        alone[:, :, FIRSTS.index("accept")] = 0  # a window of one rank needs no verdict
        self._v[prefix, prefix + 1] = alone.flatten(1)

    def of(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """T(e), e = i.., and S(end), V(end), end = i + 1..; (ranks, rows · firsts · rounds)."""
        at = i - self._low
        return self._t[at, at:], self._s[at, at + 1 :], self._v[at, at + 1 :]


class _Chain:
    """Windows each of which ends nowhere before the one before it: L, and L times its costs.

    The values are (ranks + 1, windows, 3, rows · firsts · rounds), so that those of all windows
    that reach past a rank are one piece of memory.
    """

    def __init__(self, index: Tensor, ends: Tensor, rows: int, rounds: int, like: Tensor) -> None:
        self.index, self._ends = index, ends.T.contiguous()
        self._shape = (rows, len(FIRSTS), rounds)
        self._x = like.new_zeros(ends.shape[1] + 1, len(index), 3, math.prod(self._shape))
        self._x[-1, :, 0] = 1  # L(D) = 1 at no cost
        self._rounds = torch.arange(1, rounds + 1, dtype=like.dtype, device=like.device).repeat(
            rows * len(FIRSTS)
        )

    def solve(self, i: int, t: Tensor, s: Tensor, v: Tensor) -> None:
        """L(i), and its costs, from those of the ranks above."""
        ends = self._ends[i]
        ended = torch.zeros_like(self._x[i])  # Σ T(e)·L(e+1), over the windows that hold e
        reaches = torch.searchsorted(
            ends, torch.arange(i + 1, int(ends[-1]) + 1, device=ends.device)
        )
        for e, first in enumerate(reaches.tolist(), i):
            ended[first:].addcmul_(self._x[e + 1, first:], t[e - i])
        full = self._x[ends, torch.arange(len(ends), device=ends.device)]  # L(end)
        s, v = s[ends - i - 1], v[ends - i - 1]
        now = torch.addcmul(ended, full, s[:, None], out=self._x[i])
        now[:, 1] += now[:, 0]  # one trunk pass
        now[:, 2].addcmul_(ended[:, 0], self._rounds).addcmul_(full[:, 0], v)

    def values(self, i: int) -> Tensor:
        """(3, rows, windows, firsts, rounds) L(i), L(i)·trunk passes, L(i)·verify passes."""
        return self._x[i].unflatten(2, self._shape).permute(1, 2, 0, 3, 4)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The least and the largest L(i) over all i; each (rows, windows, firsts, rounds)."""
        low, high = self._x[:, :, 0].aminmax(dim=0)
        low, high = (x.unflatten(1, self._shape).transpose(0, 1) for x in (low, high))
        return low, high


def _nested(ends: Tensor) -> list[Tensor]:
    """Indices of (W, D) windows in as few chains of growing windows as first-fit finds."""
    chains: list[list[int]] = []
    for k in ends.sum(1).argsort(stable=True).tolist():
        fitting = (chain for chain in chains if bool((ends[chain[-1]] <= ends[k]).all()))
        chain = next(fitting, None)
        if chain is None:
            chains.append([k])
        else:
            chain.append(k)
    return [torch.tensor(chain, device=ends.device) for chain in chains]


def _score_rest(table: Conditionals, windows: Sequence[Window], results: Tensor) -> None:
    """Score what is still NaN one setting at a time, in log space."""
    assert table.log_p is not None
    for window, first, n in results[0].isnan().any(0).nonzero().tolist():
        rows = results[0, :, window, first, n].isnan().nonzero()[:, 0]
        part = Conditionals(
            table.log_q[rows],
            table.log_p[rows],
            table.lengths[rows],
            table.temperature,
            table.top_p,
        )
        law = SpeculativeLaw(
            window=windows[window],
            rounds=n + 1,
            accept_first=FIRSTS[first] == "accept",
            temperature=part.temperature,
            top_p=part.top_p,
        )
        results[:, rows, window, first, n] = torch.stack(tuple(vars(score(part, law)).values()))
