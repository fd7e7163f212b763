"""Rows and orders to score, checked before any pass is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from specmask.checks import token_rows, whole_numbers
from specmask.errors import UserError
from specmask.models.checkpoint import Model, check_weights


@dataclass(frozen=True)
class Rows:
    """Complete rows, their orders and their lengths; on the model's device."""

    tokens: Int64[Tensor, "rows length"]
    order: Int64[Tensor, "rows length"]
    lengths: Int64[Tensor, "rows"]

    def take(self, rows: slice) -> Rows:
        """Some of the rows."""
        return Rows(self.tokens[rows], self.order[rows], self.lengths[rows])


def check_complete(model: Model, tokens: Tensor, lengths: Tensor | Sequence[int] | None) -> Rows:
    """Complete rows that fit the model, in left-to-right order.

    Raises:
        UserError: weights that are not finite, or rows that are not so.
    """
    network, device = model.network, model.device
    check_weights(network)
    tokens = token_rows("tokens", tokens, network.length).to(device)
    count, longest = tokens.shape
    sizes = whole_numbers(
        "lengths", [longest] * count if lengths is None else lengths, count, 1, longest, device
    )
    inside = torch.arange(longest, device=device) < sizes[:, None]
    outside = (tokens < 0) | (tokens >= network.vocab_size) | (tokens == network.mask_id)
    if bool(outside[inside].any()):
        raise UserError(
            f"tokens: expected complete rows of 0..{network.vocab_size - 1}; a masked row has no "
            "probability"
        )
    every = torch.arange(longest, device=device).expand_as(tokens)
    return Rows(tokens.clamp(min=0, max=network.vocab_size - 1), every, sizes)


def check_rows(
    model: Model, tokens: Tensor, order: Tensor, lengths: Tensor | Sequence[int] | None
) -> Rows:
    """Complete rows that fit the model, each with its order.

    Raises:
        UserError: as `check_complete`; an order that is no permutation, or not padding last.
    """
    rows = check_complete(model, tokens, lengths)
    order = token_rows("order", order, rows.tokens.shape[1]).to(model.device)
    if order.shape != rows.tokens.shape:
        raise UserError(f"order is {tuple(order.shape)}, tokens are {tuple(tokens.shape)}")
    ranks = torch.arange(order.shape[1], device=order.device)
    inside = ranks < rows.lengths[:, None]
    permutation = bool((order.sort(1).values == ranks).all())
    if not permutation or bool((order >= rows.lengths[:, None])[inside].any()):
        raise UserError(
            "order: expected a permutation of the positions 0..length-1 in each row, the positions "
            "beyond the row's length last"
        )
    return Rows(rows.tokens, order, rows.lengths)


def check_given(given: Tensor | Sequence[int] | int, rows: Rows) -> Int64[Tensor, "rows"]:
    """(B,) leading ranks that the canvas fixed.

    Raises:
        UserError: not one whole number per row, from 0 to its length.
    """
    count = len(rows.lengths)
    each = [given] * count if isinstance(given, int) else given
    return whole_numbers("given", each, count, 0, rows.lengths, rows.lengths.device)
