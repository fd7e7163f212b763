"""Held-out rows that a model can read: windows of a text, or the sequences of a FASTA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import specmask
from specmask.cli.canvases import residues
from specmask.data.batches import windows
from specmask.data.fasta import FASTA, read_fasta
from specmask.data.files import read_text
from specmask.data.tokenizers import encode
from specmask.errors import UserError

_PACKED = ("", ".gz", ".xz")


@dataclass(frozen=True)
class HeldOut:
    """(B, L) rows, padded beyond their (B,) lengths."""

    tokens: Tensor
    lengths: Tensor


def read_windows(model: specmask.Model, path: Path, length: int | None, rows: int) -> Tensor:
    """At most `rows` windows of a text, evenly spread; `length` None is the model's.

    Raises:
        UserError: no tokenizer, a length that the model does not take, a file that is not text,
            has symbols that the model does not know, or is too short.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer, so it cannot read {path}")
    longest = model.network.length
    if length is not None and length > longest:
        raise UserError(f"--length {length}: the model takes 1 to {longest}")
    ids = encode(model.tokenizer, read_text(path).rstrip("\n"), str(path))
    return windows(ids, longest if length is None else length, rows)


def is_fasta(path: Path) -> bool:
    """Whether a file's name says that it holds sequences, packed or not."""
    return (path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix) in FASTA


def read_rows(model: specmask.Model, path: Path, length: int | None, rows: int) -> HeldOut:
    """At most `rows` rows of a file, evenly spread: of a FASTA by its name whole sequences, of
    anything else `read_windows`.

    Raises:
        UserError: what `read_windows` and `read_fasta` refuse; a length for a FASTA, or a sequence
            longer than the model takes.
    """
    if not is_fasta(path):
        tokens = read_windows(model, path, length, rows)
        return HeldOut(tokens, torch.full((len(tokens),), tokens.shape[1]))
    if length is not None:
        raise UserError(
            f"--length {length}: the rows of {path} have their own lengths; leave it out"
        )
    symbols = residues(model, "pass text to a text model")
    found = [record.sequence for record in read_fasta(path, "".join(sorted(symbols)))]
    chosen = [found[k * len(found) // min(rows, len(found))] for k in range(min(rows, len(found)))]
    longest = model.network.length
    if long := [sequence for sequence in found if len(sequence) > longest]:
        raise UserError(
            f"{path}: {len(long)} of {len(found)} sequences are longer than the {longest} the "
            f"model takes, the longest {max(map(len, long))}; leave them out"
        )
    lists = [torch.tensor([symbols[symbol] for symbol in sequence]) for sequence in chosen]
    tokens = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
    return HeldOut(tokens, torch.tensor([len(row) for row in lists]))
