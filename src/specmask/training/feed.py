"""Batches made ready in a thread while the step before them runs, so that no device waits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from specmask.training.config import TrainConfig
from specmask.training.loss import Rows, draw_masks, scored_ranks, tokens_and_lengths

AHEAD = 2
"""Batches in the making while one is learned; two, so that a slow one can be made up for."""


@dataclass(frozen=True)
class Part:
    """A micro-batch, as `loss_terms` takes it."""

    tokens: Tensor
    order: Tensor
    revealed: Tensor
    lengths: Tensor | None
    scored: Tensor

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.tokens, self.order, self.revealed, self.lengths, self.scored))

    def pinned(self) -> Part:
        """In memory that a GPU can copy from by itself."""
        return Part(*(None if t is None else t.pin_memory() for t in self))  # type: ignore[arg-type]

    def on(self, device: torch.device) -> Part:
        """On the device; from pinned memory the copy runs beside everything else."""
        return Part(
            *(None if t is None else t.to(device, non_blocking=True) for t in self)  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Batch:
    """One optimiser step: this process's micro-batches, and the sizes of all rows.

    lengths, revealed: (batch_size,) over all processes.
    """

    parts: list[Part]
    lengths: Tensor
    revealed: Tensor


def make_batch(
    rows: Rows,
    step: int,
    config: TrainConfig,
    process: int = 0,
    processes: int = 1,
    pinned: bool = False,
) -> Batch:
    """Draw orders and masks, and deal the rows out; a pure function of its arguments.

    Revealed counts rise along the batch, so micro-batches take every n-th row: each then holds
    many and few masks alike.
    """
    tokens, lengths = tokens_and_lengths(rows)
    count, longest = tokens.shape
    sizes = torch.full((count,), longest) if lengths is None else lengths
    order, revealed = draw_masks(config.seed, step, sizes, longest, config.revealed)
    parts = []
    for micro in range(config.accumulation):
        own = slice(process * config.accumulation + micro, None, config.accumulation * processes)
        some = None if lengths is None else lengths[own]
        scored = scored_ranks(revealed[own], some, longest)
        part = Part(tokens[own], order[own], revealed[own], some, scored)
        parts.append(part.pinned() if pinned else part)
    return Batch(parts, sizes, revealed)


class Feed:
    """The batches of some steps in order, the next `AHEAD` of them in the making.

    Args:
        make: step → batch, called in a thread, one at a time, in order.
        steps: which.

    An exception of `make` is raised by the `take` of its own step. Leaving the context waits for
    the batch in the making and drops the others; no thread is left.
    """

    def __init__(self, make: Callable[[int], Batch], steps: range) -> None:
        self._make, self._steps = make, iter(steps)
        self._due: deque[Future[Batch]] = deque()

    def __enter__(self) -> Feed:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        for _ in range(AHEAD):
            self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self) -> tuple[Batch, float]:
        """The next batch, and for how many seconds it was waited for."""
        started = time.perf_counter()
        batch = self._due.popleft().result()
        waited = time.perf_counter() - started
        self._begin()
        return batch, waited

    def _begin(self) -> None:
        for step in self._steps:
            self._due.append(self._pool.submit(self._make, step))
            break
