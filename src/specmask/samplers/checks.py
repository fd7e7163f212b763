"""What a call to a sampler is given, checked before any pass is made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specmask.checks import check_seed, token_rows, whole, whole_numbers
from specmask.errors import UserError
from specmask.models.checkpoint import Model, check_weights
from specmask.models.protocol import Denoiser, can_verify
from specmask.samplers.base import Canvas, Checks, Sampler


def check_canvas(
    model: Model,
    num: int | None,
    length: int | None,
    canvas: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
    rows: Sequence[int] | None,
) -> Canvas:
    """Check the arguments that say what to fill, and put them in one form."""
    network, device = model.network, model.device
    if canvas is None:
        tokens = _blank(network, num, length, rows)
    elif num is not None or length is not None:
        raise UserError("got num or length together with canvas: the canvas has its own shape")
    else:
        tokens = _check_tokens(network, canvas)
    tokens = tokens.to(device)
    count, longest = tokens.shape
    sizes = whole_numbers(
        "lengths", [longest] * count if lengths is None else lengths, count, 1, longest, device
    )
    names = whole_numbers(
        "rows", range(count) if rows is None else rows, count, 0, (1 << 32) - 1, device
    )
    if len(names.unique()) < count:
        raise UserError("rows: a number occurs twice, and two rows would come out the same")
    return Canvas(tokens, sizes, names, network.mask_id)


def _blank(
    network: Denoiser, num: int | None, length: int | None, rows: Sequence[int] | None
) -> Tensor:
    num = len(rows) if num is None and rows is not None else num
    if num is None:
        raise UserError("nothing to sample: pass num (and length), or a canvas")
    size = network.length if length is None else whole("length", length, 1, network.length)
    return torch.full((whole("num", num, 1), size), network.mask_id)


def _check_tokens(network: Denoiser, canvas: Tensor) -> Tensor:
    tokens = token_rows("canvas", canvas, network.length)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= max(network.vocab_size, network.mask_id + 1):
        raise UserError(
            f"canvas holds token {low if low < 0 else high}: expected 0..{network.vocab_size - 1}, "
            f"or the mask {network.mask_id}"
        )
    return tokens


def check_call(model: Model, sampler: Sampler, seed: int, batch_size: int | str) -> None:
    """The rest of a call: what holds for every canvas.

    Raises:
        UserError: seed or batch_size out of range, weights that are not finite, a sampler that
            needs a causal head where there is none, or one whose own network does not fit.
    """
    check_seed(seed)
    if isinstance(batch_size, str) and batch_size != "auto":
        raise UserError(f"batch_size={batch_size!r}: expected a whole number, or 'auto'")
    if batch_size != "auto":
        whole("batch_size", batch_size, 1)
    network = model.network
    if sampler.verifies and not can_verify(network):
        raise UserError(
            f"{type(sampler).__name__} needs a causal head, and {type(network).__name__} has "
            "none: use a sampler of the draft alone, e.g. Ancestral"
        )
    check_weights(network)
    if isinstance(sampler, Checks):
        sampler.check(network)
