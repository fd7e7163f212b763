"""`specmask adapt`."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

import specmask
from specmask.checks import peak_memory, whole
from specmask.cli.canvases import residues
from specmask.cli.options import train_config
from specmask.cli.output import console, progress_bar
from specmask.cli.subwords import tokenise
from specmask.cli.train import TrainOptions
from specmask.data.documents import documents
from specmask.data.fasta import FASTA, Record, read_fasta
from specmask.data.sequences import SequenceBatches, SequenceStore, pack_sequences, split
from specmask.errors import UserError
from specmask.models.checkpoint import Model
from specmask.models.hybrid import DraftNetwork
from specmask.models.pretrained import from_pretrained_trunk, save_trunk
from specmask.models.pretrained_trunk import Kind
from specmask.recipes.adaptations import Adaptation, adaptation
from specmask.samplers import AnyOrder
from specmask.training.config import TrainConfig
from specmask.training.loop import train

_PACKED = ("", ".gz", ".xz")


@dataclass(frozen=True)
class Adapt:
    """Make a self-speculative model of a pretrained masked language model: a new head on it."""

    model: tyro.conf.Positional[str]
    """Name or folder of a masked language model of Transformers."""
    data: str
    """FASTA or text (.txt, .jsonl, .parquet), compressed or not; or self: rows that the model
    itself draws, one position a pass, where its training data is not to be had."""
    out: Path
    """Folder of the run: data/, log.jsonl, checkpoints/, model/."""
    tokenizer: str | None = None
    """Name or folder to take the tokenizer from, or a vocab.txt, if the model has none."""
    recipe: str = "antibody"
    """antibody: the draft adapted too, on two cores in half an hour; uniref50: the paper's."""
    draft: Literal["block", "lora", "frozen"] | None = None
    """block: a new bidirectional block before the prediction head, trained with the causal head;
    lora: low-rank updates inside the pretrained model, by peft, instead; frozen: the draft stays
    the pretrained model's. Default the recipe's."""
    head: Literal["causal", "none"] = "causal"
    """none: no causal head, the draft alone is adapted: the plain baseline on the same rows."""
    draft_layers: int | None = None
    """New bidirectional blocks, with --draft block; default the recipe's."""
    lora_rank: int = 32
    """Rank of the updates, with --draft lora."""
    head_layers: int | None = None
    """Causal blocks, with --head causal; default the recipe's."""
    kind: Kind = "masked"
    """masked; decoder: a left-to-right network that looks both ways (LLaDA); shifted-decoder: one
    whose output at a position predicts the next one (Dream)."""
    length: int | None = None
    """Longest row in tokens; default what the model takes."""
    crop: bool = False
    """Train on windows of rows that are longer, instead of refusing them."""
    unknown: Literal["error", "drop"] = "error"
    """A FASTA record with a residue that the model has no symbol for: refuse the file, or leave
    out the record."""
    self_rows: int = 1000
    """With --data self: rows to draw; what an earlier run of --out has drawn counts."""
    self_length: int | None = None
    """With --data self: their length; default --length."""
    self_batch: int = 32
    """With --data self: rows in one pass."""
    revision: str | None = None
    """Revision of a model that is given by name."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    full: bool = False
    """Put a copy of the pretrained model into the saved model, which then needs nothing else."""
    resume: bool = False
    """Continue from the newest sound checkpoint in --out."""
    train: tyro.conf.OmitArgPrefixes[TrainOptions] = field(default_factory=TrainOptions)
    """How it is trained; what is left out is the recipe's."""


def run_adapt(args: Adapt) -> None:
    """`specmask adapt`."""
    plan = adaptation(args.recipe)
    config = train_config(plan.train, args.train)
    draft_layers, lora_rank, head_layers = _new_parts(args, plan)
    if not draft_layers and not lora_rank and not head_layers:
        raise UserError("--draft frozen with --head none leaves nothing to train")
    if lora_rank and not config.frozen_trunk:
        raise UserError(
            "--draft lora with --frozen-trunk False: low-rank updates stand in for training the "
            "trunk; leave one of the two out"
        )
    model = from_pretrained_trunk(
        args.model,
        tokenizer=args.tokenizer,
        kind=args.kind,
        draft_layers=draft_layers,
        lora_rank=lora_rank,
        head_layers=head_layers,
        length=args.length,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        seed=config.seed,
    )
    network = model.network
    assert isinstance(network, DraftNetwork)
    if not config.frozen_trunk:
        network.requires_grad_(True)
    store = _rows(model, args, config)
    training, validation, _ = split(store, validation=0.02, test=0.02)
    if not len(training) or not len(validation):
        raise UserError(
            f"{args.data} has {len(store)} rows: too few to hold out 2 % of them for validation"
        )
    crops = {"longest": network.length, "crop": args.crop}
    batches = SequenceBatches(training, config.batch_size, config.seed, **crops)  # type: ignore[arg-type]
    held_out = SequenceBatches(validation, min(config.eval_rows, len(validation)), 0, **crops)  # type: ignore[arg-type]
    new = sum(p.numel() for p in network.parameters() if p.requires_grad)
    console.print(
        f"{len(training):,} rows to train on; {new / 1e6:.1f} M parameters to train, "
        f"{network.trunk_layers - draft_layers} pretrained layers "
        f"{'frozen' if config.frozen_trunk else 'among them'}",
        highlight=False,
        soft_wrap=True,
    )
    folder = train(
        network,
        batches,
        config,
        args.out,
        tokenizer=model.tokenizer,
        validation=held_out(0),
        resume=args.resume,
        console=console,
    )
    if args.full:
        save_trunk(network.config, folder)
    console.print(
        f"peak memory {peak_memory() / 1e9:.2f} GB; model saved in {folder}: "
        f"specmask sample {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _new_parts(args: Adapt, plan: Adaptation) -> tuple[int, int, int]:
    """Blocks for the draft, rank of its updates, blocks for the head: as asked, or the recipe's."""
    draft, rank, head = plan.draft_layers, 0, plan.head_layers
    if args.draft_layers is not None and args.draft in ("frozen", "lora"):
        raise UserError(
            f"--draft-layers {args.draft_layers} with --draft {args.draft}: new blocks come with "
            "--draft block; leave one of the two out"
        )
    if args.draft_layers is not None:
        draft = args.draft_layers
    elif args.draft == "block":
        draft = max(draft, 1)
    if args.head_layers is not None:
        head = args.head_layers
    if args.draft == "lora":
        rank = whole("lora_rank", args.lora_rank, 1)
    if args.draft in ("frozen", "lora"):
        draft = 0
    return draft, rank, 0 if args.head == "none" else head


# ------------------------------------------------------------------------------------------ rows


def _rows(model: Model, args: Adapt, config: TrainConfig) -> SequenceStore:
    """The rows to train on, as ids on disk; made once in `out/data`."""
    folder = args.out / "data"
    if args.data == "self":
        return _drawn_rows(model, args, folder, config)
    path = Path(args.data)
    suffix = path.with_suffix("").suffix if path.suffix in _PACKED else path.suffix
    if suffix in FASTA:
        return _fasta_rows(model, args, path, folder)
    assert model.tokenizer is not None
    found = tokenise(documents(path), model.tokenizer, folder, mode="rows")
    assert found.offsets is not None
    return SequenceStore.of_arrays(found.ids, found.offsets)


def _fasta_rows(model: Model, args: Adapt, path: Path, folder: Path) -> SequenceStore:
    symbols = residues(model, "pass text to a text model")
    alphabet = "".join(sorted(symbols))
    table = np.zeros(128, dtype=np.uint16)
    table[[ord(symbol) for symbol in alphabet]] = [symbols[symbol] for symbol in alphabet]
    reader = read_fasta(path, alphabet, args.unknown)
    if not folder.exists():  # another run of the same folder has packed them already
        with progress_bar() as bar:
            task = bar.add_task("reading", total=None)
            pack_sequences(
                reader,
                lambda sequence: table[np.frombuffer(sequence.encode(), dtype=np.uint8)],
                folder,
                progress=lambda done: bar.update(task, completed=done),
            )
        if reader.dropped:
            console.print(f"{reader.dropped:,} records left out: residues without a symbol")
    return SequenceStore(folder)


def _drawn_rows(model: Model, args: Adapt, folder: Path, config: TrainConfig) -> SequenceStore:
    """Rows of the model's own any-order law, drawn once: what is there is kept.

    In the precision of the training: the law that the draft then has."""
    length = args.self_length or model.network.length
    file = args.out / "self.jsonl"
    about = {"model": args.model, "length": length, "seed": config.seed}
    about |= {"precision": config.precision}
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        _draw(model, args, file, about)
    if folder.exists() and len(SequenceStore(folder)) != args.self_rows:
        shutil.rmtree(folder)  # packed when fewer rows or more were asked for
    if not folder.exists():
        pack_sequences(
            itertools.islice(_read_drawn(file), args.self_rows),
            lambda text: np.array(text.split(), dtype=np.uint16),
            folder,
        )
    return SequenceStore(folder)


def _draw(model: Model, args: Adapt, file: Path, about: dict[str, object]) -> None:
    """Add to a file of rows until all are there; a torn last line is drawn again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    lines = [line for line in lines if line.endswith("\n")]
    header = json.dumps(about) + "\n"
    if lines and lines[0] != header:
        raise UserError(
            f"{file} holds rows drawn with other settings ({lines[0].strip()}): choose another "
            "--out, or the same settings"
        )
    file.write_text("".join(lines or [header]), encoding="utf-8")
    done = max(len(lines) - 1, 0)
    with progress_bar() as bar, file.open("a", encoding="utf-8") as out:
        task = bar.add_task("drawing rows", total=args.self_rows, completed=done)
        while done < args.self_rows:
            rows = range(done, min(done + args.self_batch, args.self_rows))
            drawn = specmask.sample(
                model,
                AnyOrder(),
                length=int(str(about["length"])),
                rows=rows,
                seed=int(str(about["seed"])),
                batch_size=args.self_batch,
            )
            out.writelines(json.dumps(row) + "\n" for row in drawn.tokens.tolist())
            out.flush()
            done = rows.stop
            bar.update(task, completed=done)


def _read_drawn(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8") as lines:
        next(lines)
        for number, line in enumerate(lines):
            yield Record(str(number), "", " ".join(map(str, json.loads(line))), number + 2)
