"""The table of conditionals: log q_i(d) and log p_i(d) of a row along an order (method.md §6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from specmask.categorical import check_tempering, log_probabilities
from specmask.checks import whole
from specmask.errors import UserError
from specmask.likelihood.checks import Rows, check_rows
from specmask.models.checkpoint import Model
from specmask.models.protocol import Denoiser, Logits, can_verify, draft_logits, verify

Progress = Callable[[int, int], None]
"""Called with (pairs of row and prefix done, pairs in all)."""


@dataclass(frozen=True)
class Conditionals:
    """log q_i(d) and log p_i(d) at the tokens of each row, for 0 ≤ i ≤ d < D.

    log_q, log_p: (B, L, L) float64 nats, [b, i, d]; NaN where not computed (below the diagonal,
    beyond the row, outside the band that was asked for). log_p is None without a verifier pass.
    lengths: (B,) D of each row. temperature, top_p: as tempered. log_best: (B, L, L) log of the
    draft's largest probability, or None.
    """

    log_q: Float64[Tensor, "rows length length"]
    log_p: Float64[Tensor, "rows length length"] | None
    lengths: Int64[Tensor, "rows"]
    temperature: float
    top_p: float
    log_best: Float64[Tensor, "rows length length"] | None = None


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
    best: bool = False,
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
        best: True adds the draft's largest probability, which laws with `stop` need.
        batch_size: prefixes in one pass.
        progress: called after each pass.

    Raises:
        UserError: tokens or order that do not fit the model or each other.
    """
    check_tempering(temperature, top_p)
    whole("batch_size", batch_size, 1)
    rows = check_rows(model, tokens, order, lengths)
    every = rows.lengths[:, None].expand_as(rows.tokens)
    wanted = torch.arange(rows.tokens.shape[1], device=every.device) < every
    return fill_table(
        *(model.network, rows, wanted, every, temperature, top_p, target, best),
        *(batch_size, progress),
    )


def fill_table(
    network: Denoiser,
    rows: Rows,
    wanted: Tensor,
    ends: Tensor,
    temperature: float,
    top_p: float,
    target: bool,
    best: bool,
    batch_size: int,
    progress: Progress | None,
) -> Conditionals:
    """The tables on the band i ≤ d < ends[b, i] of the prefixes `wanted`; both (B, L)."""
    if target and not can_verify(network):
        raise UserError(f"{type(network).__name__} has no causal head, which this law needs")
    count, length = rows.tokens.shape
    pairs = wanted.nonzero()
    shape = (count, length, length)
    log_q = torch.full(shape, math.nan, dtype=torch.float64, device=rows.tokens.device)
    log_p = log_q.clone() if target else None
    log_best = log_q.clone() if best else None
    score = _Scorer(network, rows, temperature, top_p, target)
    for at in range(0, len(pairs), batch_size):
        b, i = pairs[at : at + batch_size].unbind(1)
        end = ends[b, i]
        ranks = i[:, None] + torch.arange(int((end - i).max()), device=i.device)
        inside = ranks < end[:, None]
        pair, k = inside.nonzero(as_tuple=True)
        found = score(b, i, ranks.masked_fill(~inside, length))
        for table, values in zip((log_q, log_p, log_best), found, strict=True):
            if table is not None and values is not None:
                table[b[pair], i[pair], ranks[pair, k]] = values[pair, k]
        if progress is not None:
            progress(min(at + batch_size, len(pairs)), len(pairs))
    return Conditionals(log_q, log_p, rows.lengths, temperature, top_p, log_best)


@dataclass(frozen=True)
class _Scorer:
    """(pairs,) rows b and prefixes i, (pairs, K) ranks d ≥ i → log q_i(d), log p_i(d), and the
    largest log-probability of the draft."""

    network: Denoiser
    rows: Rows
    temperature: float
    top_p: float
    target: bool

    def __call__(self, b: Tensor, i: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        network, order = self.network, self.rows.order[b]
        ranked = self.rows.tokens[b].gather(1, order)
        length = order.shape[1]
        hide = torch.arange(length, device=i.device) >= i[:, None]
        seen = torch.zeros_like(ranked).scatter(1, order, ranked.masked_fill(hide, network.mask_id))
        hidden = network.trunk(seen, self.rows.lengths[b])
        inner = ranks.clamp(max=length - 1)
        symbols, positions = ranked.gather(1, inner), order.gather(1, inner)
        draft = draft_logits(network, hidden, positions)
        log_q, log_best = self._pick(draft, symbols)
        if not self.target:
            return log_q, None, log_best
        assert can_verify(network)
        prefix = network.prefix(hidden, seen, order, i)
        log_p, _ = self._pick(verify(network, prefix, ranks, ranked), symbols)
        return log_q, log_p, log_best

    def _pick(self, logits: Logits, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the symbols, and the largest."""
        found = []
        for k in logits.blocks():
            log_p = log_probabilities(logits[:, k], self.temperature, self.top_p)
            found.append((log_p.gather(-1, symbols[:, k, None])[..., 0], log_p.amax(-1)))
        picked, largest = zip(*found, strict=True)
        return torch.cat(picked, 1), torch.cat(largest, 1)
