"""What `specmask sample` fills in: free rows of some length, a canvas, or templates of proteins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import specmask
from specmask.categorical import Purpose, uniform
from specmask.data.fasta import FASTA, parse_template, read_fasta, read_templates
from specmask.data.tokenizers import encode, single_characters
from specmask.errors import UserError

_PACKED = ("", ".gz", ".xz")


@dataclass(frozen=True)
class Canvases:
    """The rows of a run, by number from 0.

    tokens: (N, L) with the mask where free, padded beyond lengths (N,); None where every row is
    free and as long as the model takes. names: of each row's template, if it has one.
    """

    num: int
    length: int | None = None
    tokens: Tensor | None = None
    lengths: Tensor | None = None
    names: Sequence[str] | None = None

    def take(self, rows: slice) -> dict[str, Any]:
        """Arguments of `specmask.sample` for some of the rows."""
        if self.tokens is None:
            return {"num": rows.stop - rows.start, "length": self.length}
        assert self.lengths is not None
        return {"canvas": self.tokens[rows], "lengths": self.lengths[rows]}


def check_canvases(args: Any) -> None:
    """Refuse options of `specmask sample` that do not go together, before a model is loaded."""
    names = ("length", "canvas", "template", "lengths_from")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} together: each says what a row is; pass one")
    if args.canvas is None:
        return
    if len(args.mask) != 1:
        raise UserError(f"--mask {args.mask!r}: expected one symbol")
    if args.mask not in args.canvas:
        raise UserError(f"--canvas holds no {args.mask!r}: nothing to fill in")


def read_canvases(model: specmask.Model, args: Any) -> Canvases:
    """The rows that the options ask for.

    Args:
        model: what fills them in.
        args: num, first_row, seed, length, canvas, mask, template and lengths_from, as options of
            `specmask sample`; checked by `check_canvases`.

    Raises:
        UserError: text that the model cannot read, a row longer than it takes, a template without
            a free position, a file that is not there or not FASTA.
    """
    if args.canvas is not None:
        tokens = _parse_canvas(model, args.canvas, args.mask).expand(args.num, -1)
        return _padded(model, list(tokens))
    if args.template is not None:
        return _templates(model, args.template, args.num)
    if args.lengths_from is not None:
        mask = model.network.mask_id
        return _padded(model, [torch.full((n,), mask) for n in _lengths(model, args)])
    return Canvases(args.num, length=args.length)


def _padded(
    model: specmask.Model, rows: Sequence[Tensor], names: Sequence[str] | None = None
) -> Canvases:
    """Rows of many lengths, padded with the mask."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=model.network.mask_id
    )
    return Canvases(len(rows), tokens=tokens, lengths=lengths, names=names)


def _templates(model: specmask.Model, template: str, num: int) -> Canvases:
    """`num` rows of each template, one after the other."""
    symbols = residues(model, "write the template as --canvas, or take a protein model")
    alphabet = "".join(sorted(symbols))
    if _is_file(template):
        records = read_templates(template, alphabet)
    else:
        records = [("template", parse_template(template, alphabet, "--template"))]
    longest, mask = model.network.length, model.network.mask_id
    rows, names = [], []
    for name, positions in records:
        if len(positions) > longest:
            raise UserError(
                f"template {name!r} has {len(positions)} positions, the model takes at most "
                f"{longest}; shorten it"
            )
        if None not in positions:
            raise UserError(
                f"template {name!r} has no free position: mark those to fill in with - or X"
            )
        row = torch.tensor([mask if symbol is None else symbols[symbol] for symbol in positions])
        rows += [row] * num
        names += [name] * num
    return _padded(model, rows, names)


def _is_file(template: str) -> bool:
    """A FASTA by its name, or anything that is there."""
    path = Path(template)
    suffix = path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix
    return suffix in FASTA or (len(template) < 256 and path.is_file())


def _lengths(model: specmask.Model, args: Any) -> list[int]:
    """Of each row, the length of a record that (seed, row) draws from the file."""
    found = [len(record.sequence) for record in read_fasta(args.lengths_from, unknown="mask")]
    longest = model.network.length
    if long := [length for length in found if length > longest]:
        raise UserError(
            f"{args.lengths_from}: {len(long)} of {len(found)} sequences are longer than the "
            f"{longest} the model takes, the longest {max(long)}; leave them out"
        )
    rows = torch.arange(args.first_row, args.first_row + args.num)
    drawn = uniform(args.seed, rows, 0, Purpose.LENGTH)
    return [found[int(u * len(found))] for u in drawn.tolist()]


def residues(model: specmask.Model, way_out: str) -> dict[str, int]:
    """The upper-case letters that a model can draw, and their ids.

    Raises:
        UserError: its symbols are not single letters, so that it is not for proteins.
    """
    never = set(getattr(getattr(model.network, "config", None), "forbidden", ()))
    symbols = None if model.tokenizer is None else single_characters(model.tokenizer, never)
    letters = {name: id_ for name, id_ in (symbols or {}).items() if "A" <= name <= "Z"}
    if len(letters) < 20:
        raise UserError(
            f"the symbols of {model.name} are not single residues: expected a model of proteins; "
            f"{way_out}"
        )
    return letters


def _parse_canvas(model: specmask.Model, canvas: str, mask: str) -> Tensor:
    """(1, L) tokens from text in which `mask` marks the free positions."""
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer, so --canvas cannot be read")
    never = getattr(getattr(model.network, "config", None), "forbidden", ())
    symbols = single_characters(model.tokenizer, never)
    if symbols is None:  # which tokens are free would hang on what the masks are filled with
        raise UserError(
            f"--canvas: a token of {model.name} may be several symbols, so a mask has no place of "
            "its own; use a model of single characters, or specmask.sample with a canvas of tokens"
        )
    if len(canvas) > model.network.length:
        raise UserError(
            f"--canvas has {len(canvas)} symbols, the model takes at most {model.network.length}"
        )
    # Masks become some symbol, so that an error's offset is that in the canvas as it was typed.
    known = encode(model.tokenizer, canvas.replace(mask, min(symbols)), "--canvas")
    free = torch.tensor([[symbol == mask for symbol in canvas]])
    return torch.as_tensor(known.astype("int64")).masked_fill(free, model.network.mask_id)
