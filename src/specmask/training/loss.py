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
    total: Float[Tensor, ""]
    """What training minimises; the sum of both under the paper's `Aim`."""


@dataclass(frozen=True)
class Aim:
    """How the two terms make the loss. The defaults are the paper's: their sum.

    Every number of revealed tokens has conditionals of its own to learn, so a weight on rows does
    not move the best network, and it decides how loud a gradient is.

    weighting: "row", each row's mean over its masked tokens (the bound); or "token", every masked
        token of a batch alike. A row with one masked token is as loud as one with all under "row",
        and its gradient is the noisiest: the mean of 1/(D − i) over i is (ln D)/D, of "token" 2/D.
    target_weight: of the target's term; the draft's has one.
    distil: share of the draft's term, 0 to 1, in which the target's distribution, without gradient,
        stands for the token. The draft's best is the mean of the target over what the target has
        seen more, so a good target is a token with less noise, and a draft nearer to it is accepted
        more.
    """

    weighting: str = "row"
    target_weight: float = 1.0
    distil: float = 0.0


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
    aim: Aim | None = None,
) -> LossTerms:
    """1/(D−i) · Σ_{d≥i} −log q_i(d) and the same for p_i, averaged over rows (method.md §3).

    `aim` says what their `total` is; the terms are the bound's whatever it is. `scored` is
    `scored_ranks` where that is known: to find it a device stops for the host, and a compiled step
    falls into parts.
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
    aim = Aim() if aim is None else aim
    bound = 1.0 / ((ends - revealed)[row] * len(tokens))
    # A row has (D + 1)/2 masked tokens on average.
    weight = bound if aim.weighting == "row" else 2.0 / ((ends + 1)[row] * len(tokens))
    draft_logits = network.logits(draft).float()
    draft_token = F.cross_entropy(draft_logits, symbols, reduction="none")
    draft_nll = (bound * draft_token).sum()
    if target is None:  # without a head, the target is the draft
        return LossTerms(
            draft_nll, draft_nll, (1 + aim.target_weight) * (weight * draft_token).sum()
        )
    target_logits = network.logits(target).float()
    target_token = F.cross_entropy(target_logits, symbols, reduction="none")
    loss = draft_token + aim.target_weight * target_token
    if aim.distil:
        taught = F.cross_entropy(draft_logits, target_logits.detach().softmax(-1), reduction="none")
        loss = loss + aim.distil * (taught - draft_token)
    return LossTerms(draft_nll, (bound * target_token).sum(), (weight * loss).sum())
