"""`specmask error-head`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import tyro

import specmask
from specmask.checks import check_device
from specmask.cli.canvases import residues
from specmask.cli.options import check_least
from specmask.cli.output import Bars, say
from specmask.cli.rows import is_fasta
from specmask.data.batches import Batches, windows
from specmask.data.fasta import read_fasta
from specmask.data.files import read_text
from specmask.data.tokenizers import encode
from specmask.errors import UserError
from specmask.training.error_head import ErrorTraining, train_error_head
from specmask.training.loss import Rows

_HELD_OUT = 0.05


@dataclass(frozen=True)
class TrainErrorHead:
    """Train the error head of G-Star for a model: which tokens of a filled row are wrong. The
    model stays as it is; specmask sample MODEL --sampler star --score learned --error-head
    OUT/guide uses it."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small, antibody) or a model folder."""
    data: Path
    """Rows like those it was trained on: text (raw, .gz, .xz or .zip) or FASTA by its name; the
    last 5 % validate."""
    out: Path
    """Folder of the run: log.jsonl, checkpoints/, guide/."""
    length: int | None = None
    """Tokens of a window of text; default the model's length."""
    batch_size: int = 32
    """Rows of a step."""
    eval_rows: int = 64
    """Rows to validate on, at most."""
    heads: int = 4
    """Attention heads of the head's block."""
    trunk: str | None = None
    """Folder of the pretrained model, if the model needs one that is not where it was."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    resume: bool = False
    """Continue from the newest sound checkpoint in --out."""
    train: tyro.conf.OmitArgPrefixes[ErrorTraining] = field(default_factory=ErrorTraining)
    """How it is trained."""


def run_error_head(args: TrainErrorHead) -> None:
    """`specmask error-head`."""
    check_device(args.device)
    check_least(1, length=args.length, batch_size=args.batch_size, eval_rows=args.eval_rows)
    model = specmask.load(args.model, args.device, trunk=args.trunk)
    batches, validation = _rows(model, args)

    with Bars() as bars:

        def told(row: dict[str, Any]) -> None:
            bars.show("training", row["step"], args.train.steps)
            left = timedelta(seconds=round(row["seconds_left"]))
            if "validation_auc" in row:
                say(
                    f"step {row['step']}/{args.train.steps}  validation loss "
                    f"{row['validation_loss']:.4f} nats, AUC {row['validation_auc']:.4f} "
                    f"(confidence alone {row['validation_confidence_auc']:.4f}), "
                    f"{left} left"
                )

        head = train_error_head(
            model,
            batches,
            args.train,
            validation=validation,
            heads=args.heads,
            out=args.out,
            resume=args.resume,
            on_step=told,
        )
    size = sum(p.numel() for p in head.parameters())
    say(
        f"{size:,} parameters, {head.layers_of(model.network):.2f} layers of the model; saved in "
        f"{args.out / 'guide'}: specmask sample {args.model} --sampler star --score learned "
        f"--error-head {args.out / 'guide'}"
    )


def _rows(model: specmask.Model, args: TrainErrorHead) -> tuple[Callable[[int], Rows], Rows]:
    """Batches by step, and rows that are in none of them."""
    if is_fasta(args.data):
        return _sequences(model, args)
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer, so it cannot read {args.data}")
    ids = encode(model.tokenizer, read_text(args.data).rstrip("\n"), str(args.data))
    length = model.network.length if args.length is None else args.length
    if length > model.network.length:
        raise UserError(f"--length {length}: the model takes 1 to {model.network.length}")
    cut = len(ids) - max(length, int(_HELD_OUT * len(ids)))
    if cut < 2 * length:
        raise UserError(
            f"{args.data} has {len(ids)} tokens: expected {3 * length} or more for rows of "
            f"{length}; use a longer text or a shorter --length"
        )
    batches = Batches(ids[:cut], length, args.batch_size, args.train.seed)
    return batches, windows(ids[cut:], length, args.eval_rows)


def _sequences(model: specmask.Model, args: TrainErrorHead) -> tuple[Callable[[int], Rows], Rows]:
    if args.length is not None:
        raise UserError(f"--length {args.length}: the rows of {args.data} have their own lengths")
    symbols = residues(model, "pass text to a text model")
    found = [
        torch.tensor([symbols[symbol] for symbol in record.sequence])
        for record in read_fasta(args.data, "".join(sorted(symbols)))
    ]
    held = max(1, int(_HELD_OUT * len(found)))
    training = found[:-held]
    if not training:
        raise UserError(f"{args.data} has {len(found)} sequences: expected two or more")
    longest = max(map(len, found))
    if longest > model.network.length:
        raise UserError(
            f"{args.data} has a sequence of {longest} residues, the model takes "
            f"{model.network.length}: leave out the longer ones"
        )

    def batch(step: int) -> Rows:
        generator = torch.Generator().manual_seed(args.train.seed * 1_000_003 + step)
        chosen = torch.randint(len(training), (args.batch_size,), generator=generator)
        return _padded([training[k] for k in chosen.tolist()])

    return batch, _padded(found[-held:][: args.eval_rows])


def _padded(rows: list[torch.Tensor]) -> Rows:
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return tokens, torch.tensor([len(row) for row in rows])
