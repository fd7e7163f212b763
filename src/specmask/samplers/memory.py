"""How many rows fit in memory: an estimate before the run, and what to do where it ran out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from specmask.errors import UserError
from specmask.masking import Window, window_ends
from specmask.models.checkpoint import Model
from specmask.models.protocol import Denoiser, block_size, unembeds
from specmask.samplers.base import Sampler

SHARE = 0.8
"""Of the free memory, what a step may take by its estimate."""
_LARGEST = {"cuda": 4096}  # rows
_LARGEST_ELSEWHERE = 256  # with more of them a row costs a CPU no less
_HEAP = 200_000_000  # bytes that lie unused between others on a heap of small blocks

# ---------------------------------------------------------------------------------------- before


def estimate(
    network: Denoiser, rows: int, length: int, ranks: int | None = None, top_p: float = 1.0
) -> int:
    """Bytes that a step of a sampler needs at its peak beside the weights, rather more than less.

    The most that is there at once: one block of the trunk; or the head's prefix (hidden states,
    keys, values) and with it the tracks of all ranks, a block on the window's tracks, or a block of
    logits in float64. Not counted is what some samplers have of their own: another network, or a
    table that is kept from step to step (`Klass`, B·L·V).

    Args:
        network: with a config of width, heads and hidden, as every network of this package.
        rows: B, of one pass. length: L, of the longest.
        ranks: K, of the widest window; None for all, where a sampler looks at every position.
        top_p: below 1 symbols are sorted, which takes more tables.

    Raises:
        UserError: a network that does not tell its sizes.
    """
    sizes: Any = getattr(network, "config", None)
    if sizes is None or not isinstance(network, torch.nn.Module):
        raise UserError(
            f"batch_size='auto': {type(network).__name__} has no config that tells its sizes; "
            "pass a whole number"
        )
    width, vocab, weight = sizes.width, network.vocab_size, next(network.parameters())
    item, device = weight.element_size(), weight.device
    ranks = length if ranks is None else min(ranks, length)
    laws, head = (2, network.head_layers) if network.head_layers else (1, 0)
    # Numbers a track has in a block: input, sum, query, keys twice, values, what is seen; the MLP.
    block = 7 * width + 4 * sizes.hidden
    trunk = length * block + _scores(network, length)
    held = length * width + laws * ranks * (width if unembeds(network) else vocab)
    tracks = window = 0
    if head:
        held += length * width * (1 + 2 * head)
        turns = 6 * width // sizes.heads  # of keys and queries; every row has its own order
        tracks = length * (9 * width + turns)
        window = ranks * (block + width + turns + 2 * length)  # the last is a mask
    at_once = vocab * min(rows * ranks, max(rows, block_size(device) // vocab))
    # A block's logits, probabilities and cumulative sums; or, at a rank of each row, the residual.
    logits = 8 * max((9 if top_p < 1 else 3) * at_once, 7 * rows * vocab)
    numbers = max(trunk, held + tracks, held + window)
    integers = rows * length * 20  # tokens, orders, random words
    peak = max(rows * numbers * item, rows * held * item + logits) + 8 * integers
    return peak if device.type == "cuda" else peak * 5 // 4 + _HEAP


def _scores(network: Denoiser, length: int) -> int:
    """Attention scores of a row, where a pretrained trunk forms them."""
    backbone: Any = getattr(getattr(network, "trunk", None), "backbone", None)
    sizes = getattr(backbone, "config", None)
    if getattr(sizes, "_attn_implementation", None) != "eager":
        return 0
    return 3 * int(getattr(sizes, "num_attention_heads", 1)) * length**2


def widest(sampler: Sampler, length: int) -> int | None:
    """Ranks of a sampler's widest window on a row of some length; None where it looks at all."""
    window = getattr(sampler, "window", None)
    if not isinstance(window, Window) or getattr(sampler, "order", None) == "confidence":
        return None
    revealed = torch.arange(length)
    return int((window_ends(window, revealed, torch.tensor(length)) - revealed).max())


class Fit(NamedTuple):
    """rows: in one pass. needed: bytes it takes, by estimate. free: bytes there are."""

    rows: int
    needed: int
    free: int


def fitting(model: Model, sampler: Sampler, length: int, count: int) -> Fit:
    """The largest power of two of rows whose estimate is within `SHARE` of what is free.

    At least 1; at most 4096 on CUDA and 256 elsewhere, where a larger batch no longer pays, and no
    more than hold all rows.

    Args:
        model, sampler: what is to run.
        length: tokens of the longest row. count: rows in all.

    Raises:
        UserError: a network that does not tell its sizes.
    """
    network, device = model.network, model.device
    ranks, top_p = widest(sampler, length), getattr(sampler, "top_p", 1.0)
    rows = min(_LARGEST.get(device.type, _LARGEST_ELSEWHERE), 1 << (count - 1).bit_length())
    needed = estimate(network, rows, length, ranks, top_p)
    free = free_memory(device)
    if device.type == "cpu":  # products have the weights once more, in a layout of their own
        assert isinstance(network, torch.nn.Module)  # as `estimate` has seen
        free = max(0, free - sum(weight.nbytes for weight in network.parameters()))
    while rows > 1 and needed > SHARE * free:
        rows //= 2
        needed = estimate(network, rows, length, ranks, top_p)
    return Fit(rows, needed, free)


def free_memory(device: torch.device) -> int:
    """Bytes that are free, of the GPU's memory or of this machine's."""
    if device.type != "cuda":
        return min(psutil.virtual_memory().available, _container())
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _container(group: Path = Path("/sys/fs/cgroup")) -> int | float:
    """Bytes left to a container that has a limit of its own: what it caches can be dropped.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    try:
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        words = (group / "memory.stat").read_text().split()
        cached = int(words[words.index("inactive_file") + 1])
        return max(0, int(limit) - int(used) + cached)
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return float("inf")


# ----------------------------------------------------------------------------------------- after

_COMPLAINTS = ("out of memory", "can't allocate memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _COMPLAINTS)


class Room:
    """How many rows a call may put in one pass; falls where memory runs out.

    Args:
        rows: to begin with.
        on_smaller: told the number once it has fallen and a pass of so many has fitted.
    """

    def __init__(self, rows: int, on_smaller: Callable[[int], None]) -> None:
        self.rows, self._told, self._on_smaller = rows, rows, on_smaller

    def shrink(self, rows: int, length: int) -> None:
        """A pass of so many rows, of so many tokens each, did not fit: take half of them.

        Raises:
            UserError: it was a single row.
        """
        if rows == 1:
            raise UserError(
                f"out of memory with a single row of {length} tokens, after halving the batch as "
                "often as it goes: shorter rows, a smaller window or a network in bf16 need less"
            )
        self.rows = min(self.rows, (rows + 1) // 2)

    def tell(self) -> None:
        """A pass has fitted: say so if it took fewer rows than before."""
        if self.rows < self._told:
            self._told = self.rows
            self._on_smaller(self.rows)
