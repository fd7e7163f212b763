"""The joint training loss: one forward pass, two terms (paper §3.2; method.md §3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from specmask.categorical import Purpose, uniform
from specmask.masking import order_by

if TYPE_CHECKING:
    from specmask.models.hybrid import DraftNetwork


Rows = Tensor | tuple[Tensor, Tensor]
"""(B, L) tokens, every row full; or tokens and their (B,) lengths."""


def tokens_and_lengths(rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Rows in one form; no lengths where every row is full."""
    if isinstance(rows, Tensor):
        return rows, None
    tokens, lengths = rows
    return tokens, lengths if bool((lengths < tokens.shape[1]).any()) else None


@dataclass(frozen=True)
class LossTerms:
    """Mean over rows, in nats per token; each bounds the row's negative log-likelihood / D."""

    draft_nll: Float[Tensor, ""]
    target_nll: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """What training minimises: both terms with weight one."""
        return self.draft_nll + self.target_nll


def draw_masks(
    seed: int,
    step: int,
    lengths: Int64[Tensor, "rows"],
    width: int,
    revealed: str = "uniform",
) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows"]]:
    """Uniform orders σ and low-discrepancy numbers of revealed ranks i for one batch.

    A pure function of its arguments, so a resumed run needs no random state. The i of a batch
    come from one uniform shifted by k/B around the circle: each has its law, together even.

    Args:
        seed, step: name the batch. lengths: (B,) tokens of each row. width: L, the padded length.
        revealed: "uniform" on 0..D−1, whose loss is the bound (method.md §3); or "log", uniform in
            log(i + 1): for training only. Every i has its own two conditionals to learn, so what
            is best does not depend on how often each i is seen; how soon it is found does.

    Returns:
        order (B, L) and revealed (B,) with 0 ≤ i < D.
    """
    rows = torch.arange(len(lengths), device=lengths.device)
    positions = torch.arange(width, device=lengths.device)
    keys = uniform(seed, rows[:, None], positions, Purpose.TRAIN_ORDER, step)
    order = order_by(keys, torch.zeros_like(keys, dtype=torch.bool), lengths)
    shift = uniform(seed, torch.zeros_like(rows), 0, Purpose.TRAIN_REVEALED, step)
    circle = (shift + rows.double() / len(rows)) % 1.0
    many = circle * lengths if revealed == "uniform" else (lengths + 1.0) ** circle - 1
    return order, torch.minimum(many.long(), lengths - 1)


def scored_ranks(
    revealed: Int64[Tensor, "rows"], lengths: Int64[Tensor, "rows"] | None, length: int
) -> Int64[Tensor, "2 masked"]:
    """Row and rank of every masked token: the ranks from `revealed` to a row's end."""
    return _masked(revealed, lengths, length).nonzero().T.contiguous()


def _masked(revealed: Tensor, lengths: Tensor | None, length: int) -> Tensor:
    """(B, L), in rank order."""
    ranks = torch.arange(length, device=revealed.device)
    ends = torch.full_like(revealed, length) if lengths is None else lengths
    return (ranks >= revealed[:, None]) & (ranks < ends[:, None])


def loss_terms(
    network: DraftNetwork,
    tokens: Int64[Tensor, "rows length"],
    order: Int64[Tensor, "rows length"],
    revealed: Int64[Tensor, "rows"],
    lengths: Int64[Tensor, "rows"] | None = None,
    scored: Int64[Tensor, "2 masked"] | None = None,
) -> LossTerms:
    """1/(D−i) · Σ_{d≥i} −log q_i(d) and the same for p_i, averaged over rows (method.md §3).

    `scored` is `scored_ranks` where that is known: to find it a device stops for the host, and a
    compiled step falls into parts.
    """
    length = tokens.shape[1]
    ends = torch.full_like(revealed, length) if lengths is None else lengths
    masks = _masked(revealed, lengths, length)
    hide = torch.zeros_like(masks).scatter(1, order, masks)  # in position order
    masked = tokens.masked_fill(hide, network.mask_id)
    scored = scored_ranks(revealed, lengths, length) if scored is None else scored
    draft, target = network.features(masked, tokens, order, lengths, scored)
    row, rank = scored
    symbols = tokens.gather(1, order)[row, rank]
    weight = 1.0 / ((ends - revealed)[row] * len(tokens))

    def nll(features: Tensor) -> Tensor:
        logits = network.logits(features).float()
        return (weight * F.cross_entropy(logits, symbols, reduction="none")).sum()

    draft_nll = nll(draft)
    # Without a head, the target is the draft.
    return LossTerms(draft_nll, draft_nll if target is None else nll(target))
