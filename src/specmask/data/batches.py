"""Token ids → batches of contiguous windows, as a pure function of the step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from specmask.errors import UserError


class Batches:
    """step → (batch_size, length) int64 windows of the ids, each epoch without replacement.

    An epoch cuts the ids into windows from a random offset and visits them in a random order, both
    functions of (seed, epoch), so that a resumed run needs no state.

    Args:
        ids: one-dimensional integer array; may be memory-mapped.
        length: tokens of a window. batch_size: windows of a batch. seed: names the order.

    Raises:
        UserError: fewer than two windows of text.
    """

    def __init__(self, ids: np.ndarray, length: int, batch_size: int, seed: int = 0) -> None:
        if len(ids) < 2 * length:
            raise UserError(
                f"the corpus has {len(ids)} tokens, training on rows of {length} needs at least "
                f"{2 * length}: use a longer text or a shorter length"
            )
        self._ids, self._length, self._batch, self._seed = ids, length, batch_size, seed
        # One window less than fit, so that every offset leaves room for all of them.
        self._windows = len(ids) // length - 1
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens visited before any is visited again."""
        return self._windows * self._length

    def __call__(self, step: int) -> Tensor:
        numbers = range(step * self._batch, (step + 1) * self._batch)
        rows = []
        for number in numbers:
            offset, permutation = self._epoch(number // self._windows)
            start = offset + int(permutation[number % self._windows]) * self._length
            rows.append(self._ids[start : start + self._length])
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        generator = np.random.default_rng((self._seed, epoch))
        return int(generator.integers(self._length)), generator.permutation(self._windows)
