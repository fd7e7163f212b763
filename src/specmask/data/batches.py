"""Token ids → batches of contiguous windows, as a pure function of the step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from specmask.errors import UserError


class Batches:
    """step → (batch_size, length) int64 windows of the ids, each epoch without replacement.

    An epoch cuts the ids into windows from a random offset and visits them in a random order, both
    functions of (seed, epoch), so that a resumed run needs no state. Epochs follow one another
    inside a batch.

    Args:
        ids: (tokens,) integers; may be memory-mapped.
        length: tokens of a window. batch_size: windows of a batch. seed: names the order.

    Raises:
        UserError: less text than two windows; a length or batch size below 1; a negative seed.
    """

    def __init__(
        self, ids: NDArray[np.integer], length: int, batch_size: int, seed: int = 0
    ) -> None:
        _check(ids, length)
        if batch_size < 1 or seed < 0:
            raise UserError(
                f"batch size {batch_size}, seed {seed}: expected at least 1 and at least 0"
            )
        if len(ids) < 2 * length:
            raise UserError(
                f"the corpus has {len(ids)} tokens, training on rows of {length} needs at least "
                f"{2 * length}: use a longer text or a shorter length"
            )
        self._ids, self._length, self._batch, self._seed = ids, length, batch_size, seed
        # One window less than fit, so that every offset leaves room for all of them.
        self._windows = len(ids) // length - 1
        # Two, since a batch may end one epoch and begin the next.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens visited before any is visited again."""
        return self._windows * self._length

    def __call__(self, step: int) -> Int64[Tensor, "rows length"]:
        """The batch of a step ≥ 0."""
        if step < 0:
            raise UserError(f"step {step}: expected at least 0")
        rows = []
        for number in range(step * self._batch, (step + 1) * self._batch):
            offset, permutation = self._epoch(number // self._windows)
            start = offset + int(permutation[number % self._windows]) * self._length
            rows.append(self._ids[start : start + self._length])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _draw_epoch(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        generator = np.random.default_rng((self._seed, epoch))
        return int(generator.integers(self._length)), generator.permutation(self._windows)


def windows(
    ids: NDArray[np.integer], length: int, num: int | None = None, seed: int | None = None
) -> Int64[Tensor, "rows length"]:
    """Windows that do not overlap, in the order of the text, for validation and scoring.

    Args:
        ids: (tokens,) integers; may be memory-mapped. length: tokens of a window.
        num: at most so many (fewer if the text has fewer); default all that fit.
        seed: draws which; default spreads them evenly.

    Returns:
        (n, length) int64, 1 ≤ n ≤ num.

    Raises:
        UserError: less text than one window; a length or number below 1; a negative seed.
    """
    _check(ids, length)
    fit = len(ids) // length
    if fit == 0:
        raise UserError(
            f"the text has {len(ids)} tokens, a row needs {length}: use a longer text or a "
            "shorter length"
        )
    if num is not None and num < 1:
        raise UserError(f"{num} windows: expected at least 1")
    if seed is not None and seed < 0:
        raise UserError(f"seed {seed}: expected at least 0")
    count = fit if num is None else min(num, fit)
    if seed is None:
        chosen = np.arange(count) * fit // count
    else:
        chosen = np.sort(np.random.default_rng(seed).permutation(fit)[:count])
    rows = np.stack([ids[k * length : (k + 1) * length] for k in chosen.tolist()])
    return torch.from_numpy(rows.astype(np.int64))


def _check(ids: NDArray[np.integer], length: int) -> None:
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(
            f"ids are {ids.dtype} of shape {ids.shape}: expected integers of shape (tokens,)"
        )
    if length < 1:
        raise UserError(f"length {length}: expected at least 1")
