"""Sequences of many lengths: packed on disk, split, and cut into padded batches."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from specmask.checks import check_seed, whole
from specmask.data.fasta import AMINO_ACIDS, Record
from specmask.errors import UserError

Ids = NDArray[np.unsignedinteger]

_IDS, _OFFSETS, _CARD = "ids.bin", "offsets.bin", "sequences.json"
_FORMAT = 1
_BLOCK = 4096
"""Records encoded and written at a time."""

_MULTIPLE = 8
"""Rows are padded to a multiple of it, so that a network meets few shapes."""


def residue_encoder(alphabet: str = AMINO_ACIDS) -> Callable[[str], Ids]:
    """sequence → (residues,) uint8 ids, numbered as in `alphabet`, distinct ASCII symbols.

    The function raises UserError for a symbol outside the alphabet. With the mask's symbol at its
    end, `AMINO_ACIDS + "X"`, free positions become the id after the residues.
    """
    if not alphabet or not alphabet.isascii() or len(set(alphabet)) < len(alphabet):
        raise UserError(f"alphabet={alphabet!r}: expected distinct ASCII symbols, at least one")
    known = alphabet.encode()
    table = bytes.maketrans(known, bytes(range(len(known))))

    def encode(sequence: str) -> Ids:
        raw = sequence.encode("utf-8", "surrogatepass")
        if outside := raw.translate(None, known):
            position = raw.index(outside[:1])
            raise UserError(
                f"{sequence[position]!r} at position {position + 1}: expected symbols of {alphabet}"
            )
        return np.frombuffer(raw.translate(table), dtype=np.uint8)

    return encode


class SequenceStore:
    """Sequences on disk, memory-mapped: `len(store)`, `store[i]`, `store.lengths`.

    `store[i]` is a read-only (tokens,) view in uint8 or uint16, i from −len to len − 1.

    Args:
        folder: what `pack_sequences` wrote.

    Raises:
        UserError: there is no such folder, or it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            dtype = np.dtype(card["dtype"])
            sizes = {_IDS: card["tokens"] * dtype.itemsize, _OFFSETS: (card["sequences"] + 1) * 8}
            intact = card["format"] == _FORMAT and all(
                (folder / name).stat().st_size == size for name, size in sizes.items()
            )
        except OSError as error:
            raise UserError(
                f"no packed sequences in {folder}: {error.strerror}; pack them with pack_sequences"
            ) from None
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise UserError(
                f"{folder} does not hold packed sequences of format {_FORMAT}, whole: remove it "
                "and pack them again"
            )
        # As plain arrays, since a slice of np.memmap itself costs several times as much.
        self._ids: Ids = np.asarray(np.memmap(folder / _IDS, dtype, "r"))
        offsets = np.asarray(np.memmap(folder / _OFFSETS, "<i8", "r"))
        self._starts: NDArray[np.int64] = offsets[:-1]
        self._lengths: NDArray[np.int64] = np.diff(offsets)

    @classmethod
    def of_arrays(cls, ids: Ids, offsets: NDArray[np.int64]) -> SequenceStore:
        """Sequences ids[offsets[k] : offsets[k + 1]] of a (tokens,) and a (len + 1,) array."""
        store = object.__new__(cls)
        store._ids, store._starts, store._lengths = ids, offsets[:-1], np.diff(offsets)
        return store

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(len,) tokens of each sequence, all at least 1."""
        return self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, number: int) -> Ids:
        number = range(len(self))[number]  # counts from the end too, and knows the ends
        start = self._starts[number]
        return self._ids[start : start + self._lengths[number]]

    def __iter__(self) -> Iterator[Ids]:
        return map(self.__getitem__, range(len(self)))

    def subset(self, numbers: NDArray[np.int64]) -> SequenceStore:
        """The sequences of these numbers, in this order, from the same files."""
        part = SequenceStore.of_arrays(self._ids, np.zeros(1, dtype=np.int64))
        part._starts, part._lengths = self._starts[numbers], self._lengths[numbers]
        return part


def pack_sequences(
    records: Iterable[Record],
    encode: Callable[[str], Ids],
    folder: str | Path,
    progress: Callable[[int], None] | None = None,
) -> SequenceStore:
    """Write the ids of sequences to a folder, streaming, and open it.

    The folder appears when it is whole. What an interrupted call leaves, `.NAME.partial` beside it,
    the next call removes and starts again. One process at a time.

    Args:
        records: see `read_fasta`.
        encode: sequence → (tokens,) uint8 or uint16, always the same of the two, at least one
            token; e.g. `residue_encoder()`.
        folder: a new one.
        progress: called with the sequences written so far.

    Raises:
        UserError: the folder is there already or cannot be written; no record; a record that
            cannot be encoded, which is named.
    """
    target = Path(folder).resolve()
    if target.exists():
        raise UserError(
            f"{folder} exists: expected a new folder; open it with SequenceStore, or remove it to "
            "pack again"
        )
    partial = target.with_name(f".{target.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            _write(partial, _encoded(records, encode), progress)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"could not write {folder}: {error.strerror or error}; try another folder"
        ) from error
    return SequenceStore(target)


def split(
    store: SequenceStore, validation: float = 0.01, test: float = 0.01
) -> tuple[SequenceStore, SequenceStore, SequenceStore]:
    """Train, validation and test part, by a hash of each sequence's ids.

    Where a sequence goes depends on itself alone: duplicates fall into the same part, and a larger
    file moves none of them. Near duplicates may still part; to keep families together, cluster the
    file first and leave one member of each.

    Args:
        store: to split. validation, test: shares from 0, together below 1.

    Raises:
        UserError: shares out of range.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise UserError(
            f"validation={validation}, test={test}: expected shares from 0, together below 1"
        )
    places = np.fromiter((_place(ids) for ids in store), np.float64, len(store))
    parts = np.digitize(places, [validation, validation + test])  # 0, 1 and 2 from the left
    held_out, tested, train = (store.subset(np.flatnonzero(parts == k)) for k in range(3))
    return train, held_out, tested


def empirical_lengths(store: SequenceStore, num: int, seed: int = 0) -> Int64[Tensor, "num"]:
    """Lengths of sequences drawn from the store, with replacement.

    Raises:
        UserError: an empty store, a number below 1.
    """
    whole("num", num, 1)
    _check_filled(store)
    drawn = np.random.default_rng(check_seed(seed)).integers(len(store), size=num)
    return torch.from_numpy(store.lengths[drawn])


class SequenceBatches:
    """step → (tokens, lengths), each epoch without replacement.

    tokens: (batch_size, L) int64, rows padded with 0; L is the longest row, rounded up to a
    multiple of 8 but not above `longest`. lengths: (batch_size,) int64, the tokens of each row.

    An epoch visits the sequences in a random order, a function of (seed, epoch), so that a resumed
    run needs no state. Epochs follow one another inside a batch.

    Args:
        store: the sequences. batch_size: rows of a batch. seed: names the order and the crops.
        longest: tokens of a row at most; default those of the longest sequence.
        crop: take a random window of a sequence that is longer, another in each epoch.

    Raises:
        UserError: an empty store, a sequence longer than `longest` without `crop`, a number out of
            range.
    """

    def __init__(
        self,
        store: SequenceStore,
        batch_size: int,
        seed: int = 0,
        longest: int | None = None,
        crop: bool = False,
    ) -> None:
        whole("batch_size", batch_size, 1)
        check_seed(seed)
        _check_filled(store)
        top = int(store.lengths.max())
        longest = top if longest is None else whole("longest", longest, 1)
        over = int((store.lengths > longest).sum())
        if over and not crop:
            raise UserError(
                f"{over} of {len(store)} sequences have more than {longest} tokens, up to {top}: "
                f"pass crop=True to train on windows of them, raise longest={longest}, or leave "
                "them out"
            )
        self._store, self._batch, self._seed, self._longest = store, batch_size, seed, longest
        # Two, since a batch may end one epoch and begin the next.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens visited, padding left out, before a sequence is visited again."""
        return int(np.minimum(self._store.lengths, self._longest).sum())

    def __call__(self, step: int) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows"]]:
        """The batch of a step ≥ 0."""
        whole("step", step, 0)
        numbers = range(step * self._batch, (step + 1) * self._batch)
        rows = [self._row(number) for number in numbers]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        width = min(-(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE, self._longest)
        tokens = np.zeros((self._batch, width), dtype=np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(tokens), torch.from_numpy(lengths)

    def _row(self, number: int) -> Ids:
        epoch, place = divmod(number, len(self._store))
        ids = self._store[int(self._epoch(epoch)[place])]
        if len(ids) <= self._longest:
            return ids
        # The 1 sets it apart from the generators of epochs.
        generator = np.random.default_rng((self._seed, number, 1))
        start = int(generator.integers(len(ids) - self._longest + 1))
        return ids[start : start + self._longest]

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._store))


def _check_filled(store: SequenceStore) -> None:
    if not len(store):
        raise UserError("the store holds no sequence: expected one; is its share of the split 0?")


def _place(ids: Ids) -> float:
    """A number in [0, 1] that looks uniform."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "big") / 2**64


def _encoded(records: Iterable[Record], encode: Callable[[str], Ids]) -> Iterator[Ids]:
    dtype = None
    for record in records:
        where = f"record {record.name!r} at line {record.line}"
        try:
            ids = encode(record.sequence)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        dtype = dtype or ids.dtype
        if ids.dtype not in (np.uint8, np.uint16) or ids.dtype != dtype or ids.ndim != 1:
            raise UserError(
                f"{where} encodes as {ids.dtype} of shape {ids.shape}: expected uint8 or uint16, "
                "the same for all, of shape (tokens,)"
            )
        if not len(ids):
            raise UserError(f"{where} encodes as nothing: expected a token; leave it out")
        yield ids


def _write(folder: Path, rows: Iterator[Ids], progress: Callable[[int], None] | None) -> None:
    count = tokens = 0
    dtype = np.dtype(np.uint8)
    with (folder / _IDS).open("wb") as ids_file, (folder / _OFFSETS).open("wb") as offsets_file:
        offsets_file.write(np.zeros(1, "<i8").tobytes())
        while block := list(islice(rows, _BLOCK)):
            joined = np.concatenate(block)
            dtype = joined.dtype
            ids_file.write(joined.tobytes())
            ends = tokens + np.cumsum([len(row) for row in block])
            offsets_file.write(ends.astype("<i8").tobytes())
            count, tokens = count + len(block), tokens + len(joined)
            if progress:
                progress(count)
        _sync(ids_file, offsets_file)
    if not count:
        raise UserError("no record to pack: expected at least one sequence")
    card = {"format": _FORMAT, "dtype": dtype.str, "sequences": count, "tokens": tokens}
    with (folder / _CARD).open("wb") as card_file:
        card_file.write(json.dumps(card).encode() + b"\n")
        _sync(card_file)


def _sync(*files: IO[bytes]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())
