"""Turn a training run into a shipped model: weights, words, measurements, figures and card.

    python -m specmask.bench.ship RUN --data FILE

replaces src/specmask/zoo/text8-small by the model of RUN, measured anew.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import Progress, track

import specmask
from specmask.bench.benchmark import machine
from specmask.bench.card import card
from specmask.bench.plot import loss_figure, quality_figure
from specmask.bench.run import (
    Domain,
    Point,
    fingerprint,
    law_points,
    read_points,
    sample_point,
    write_points,
)
from specmask.checks import check_device, check_seed, whole
from specmask.data.batches import windows
from specmask.data.corpora import load_corpus
from specmask.data.tokenizers import decode
from specmask.errors import UserError, exit_code
from specmask.masking import ConstantWindow, CosineWindow, FullWindow, LinearWindow, Window
from specmask.metrics.spelling import save_words, vocabulary
from specmask.models.checkpoint import CARD, Model, save
from specmask.models.zoo import WORDS
from specmask.samplers import Ancestral, AnyOrder, Sampler, Speculative
from specmask.training.checkpoints import newest
from specmask.training.export import export
from specmask.training.loop import versions

console = Console(stderr=True)
ZOO_FOLDER = Path(__file__).parents[1] / "zoo" / "text8-small"


@dataclass(frozen=True)
class Ship:
    """Measure the model of a run and put it where `specmask.load("text8-small")` finds it."""

    run: tyro.conf.Positional[Path | None] = None
    """Folder of a training run of a hybrid network: its newest whole checkpoint, or, where it has
    none at all, its model."""
    earlier: tuple[Path, ...] = ()
    """Runs whose model this one started from, first to last: earlier stages of its training."""
    data: Path = Path("text8like.txt")
    """The text it was trained on: its last 5 % scores, its words spell."""
    folder: Path = ZOO_FOLDER
    """Where the model goes; replaced if it is there."""
    samples: int = 256
    """Samples at each setting."""
    rows: int = 32
    """Held-out rows for the exact laws."""
    targets: tuple[float, ...] = (8, 14, 24, 42, 74, 128)
    """NFE near which settings are sampled."""
    batch_size: int = 64
    """Rows in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    samples_from: Path | None = None
    """results.jsonl of `specmask bench` on these very weights: take its samples of plain and
    self-speculative sampling instead of drawing some."""
    bf16: bool = False
    """Sample with bfloat16 matrix products; the exact laws stay float32."""
    seed: int = 0
    """Of samples and orders."""
    note: str = ""
    """What else the card should say about training and measuring, in Markdown."""
    card_only: bool = False
    """Draw figures and card again from the results that are there, nothing else is needed."""


def grid() -> list[Speculative]:
    """The settings whose exact laws are scored: windows × rounds × first-rank rule."""
    every: list[Window] = [
        *(CosineWindow(step) for step in (0.005, 0.01, 0.02, 0.04, 0.083, 0.15, 0.3, 0.6)),
        *(LinearWindow(step) for step in (0.02, 0.04, 0.083, 0.133, 0.2, 0.4)),
        *(ConstantWindow(ranks) for ranks in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)),
        FullWindow(),
    ]
    return [
        Speculative(window=window, rounds=rounds, first=first)
        for window in every
        for rounds in (1, 2, 3, 4, 8, 16)
        for first in ("verify", "accept")
    ]


PLAIN_STEPS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)


def plain(steps: int) -> list[Ancestral]:
    """Plain sampling in so many steps at fixed counts, its steadier form, by either schedule."""
    return [Ancestral(steps, "fixed", schedule) for schedule in ("cosine", "linear")]


def measure(model: Model, args: Ship, text: str, tokens: torch.Tensor) -> list[Point]:
    """Exact laws of the whole grid, then samples at the settings nearest the targets.

    Plain steps are chosen so that they cost the targets, and drawn by both schedules; among
    self-speculative settings the one with the fewest bits within 15 % of a target, or else the
    nearest, is sampled.
    """
    words = vocabulary(text)
    share = model.network.trunk_layers / (model.network.trunk_layers + model.network.head_layers)
    aimed = [round(nfe / share) for nfe in args.targets]
    ours = grid()
    theirs = [one for steps in sorted({*PLAIN_STEPS, *aimed}) for one in plain(steps)]
    samplers: list[Sampler] = [*ours, *theirs, AnyOrder(), AnyOrder(source="target")]
    with Progress(console=console) as bar:
        task = bar.add_task("laws")
        laws = law_points(
            *(model, tokens, samplers, args.seed, args.batch_size),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.samples_from is not None:
        return [*laws, *taken(read_points(args.samples_from))]
    chosen: list[Sampler] = [
        *(one for steps in dict.fromkeys(aimed) for one in plain(steps)),
        *_nearest(ours, laws, args.targets),
    ]
    points = list(laws)
    for sampler in track(chosen, "samples", console=console):
        points.append(
            sample_point(
                *(model, sampler, words, args.samples, args.seed, args.batch_size, args.bf16)
            )
        )
        console.print(_line(points[-1]))
    return points


def taken(points: Sequence[Point]) -> list[Point]:
    """Samples that another benchmark drew: plain ones by either schedule, and self-speculative ones
    with drafts verified token by token along random orders."""
    usual = {"temperature": 1.0, "top_p": 1.0, "order": "random", "verification": "token"}
    return [
        p
        for p in points
        if p["kind"] == "samples"
        and p["sampler"] in ("ancestral", "speculative")
        and all(p["settings"].get(name, value) == value for name, value in usual.items())
    ]


def _nearest(
    samplers: Sequence[Speculative], laws: Sequence[Point], targets: Sequence[float]
) -> list[Speculative]:
    chosen: list[Speculative] = []
    for target in targets:
        gaps = [abs(math.log(point["nfe"] / target)) for point in laws[: len(samplers)]]
        near = [k for k, gap in enumerate(gaps) if gap < 0.15]
        best = (
            min(near, key=lambda k: laws[k]["bits"])
            if near
            else min(range(len(gaps)), key=gaps.__getitem__)
        )
        if samplers[best] not in chosen:
            chosen.append(samplers[best])
    return chosen


def _line(point: Point) -> str:
    return (
        f"{point['sampler']} NFE {point['nfe']:.1f} spelling {point['spelling']:.4f} ± "
        f"{point['spelling_se']:.4f} entropy {point['entropy']:.4f}"
    )


def _weights(run: Path, folder: Path) -> None:
    """The run's averaged weights in bfloat16, as a model folder."""
    if newest(run) is None and (run / "model").is_dir():  # checkpoints are large, and may be gone
        model = specmask.load(run / "model")
        if not isinstance(model.network, specmask.HybridTransformer):
            raise UserError(
                f"{run} has a {type(model.network).__name__}: expected a hybrid network"
            )
        save(folder, model.network, model.tokenizer, dtype=torch.bfloat16)
    else:
        export(run, folder, torch.bfloat16)


def ship(args: Ship) -> None:
    """Do all of it in a scratch folder, then put that in place."""
    _check(args)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as scratch:
        folder = Path(scratch) / args.folder.name
        if args.card_only:
            shutil.copytree(args.folder, folder)
        else:
            _fill(folder, args)
        points, log = read_points(folder / "results.jsonl"), read_points(folder / "log.jsonl")
        quality_figure(folder / "quality.png", points)
        loss_figure(folder / "losses.png", log)
        (folder / CARD).write_text(card(folder, points, log), encoding="utf-8")
        if args.folder.exists():
            shutil.rmtree(args.folder)
        shutil.move(folder, args.folder)
    console.print(f"{args.folder} has a new card" if args.card_only else f"{args.folder}: done")


def _check(args: Ship) -> None:
    """Refuse what would fail after the work."""
    check_device(args.device)
    check_seed(args.seed)
    for name in ("samples", "rows", "batch_size"):
        whole(name, getattr(args, name), 1)
    for target in args.targets:
        if target < 1:
            raise UserError(f"--targets has {target}: expected NFE of at least 1")
    if args.run is None and not args.card_only:
        raise UserError("no RUN: name the folder of a training run, or draw the --card-only")
    if args.samples_from is not None:
        drawn = taken(read_points(args.samples_from)) if args.samples_from.is_file() else []
        if {p["sampler"] for p in drawn} != {"ancestral", "speculative"}:
            raise UserError(
                f"{args.samples_from} has no samples of plain and of self-speculative sampling: "
                "--samples-from takes a results.jsonl of `specmask bench`"
            )
    results = args.folder / "results.jsonl"
    if args.card_only and not results.is_file():
        raise UserError(f"no {results}: --card-only needs a model that was measured")


def _fill(folder: Path, args: Ship) -> None:
    """Weights, words, measurements and training log; the first line says what was measured how."""
    assert args.run is not None
    corpus = load_corpus(args.data, "text8")
    _weights(args.run, folder)
    corpus.tokenizer.save(str(folder / "tokenizer.json"))
    text = decode(corpus.tokenizer, corpus.train)
    save_words(folder / WORDS, vocabulary(text))
    model = replace(specmask.load(folder, args.device), name="text8-small")
    if args.samples_from is not None:
        _check_same(args.samples_from, model, vocabulary(text))
    tokens = windows(corpus.test, model.network.length, args.rows)
    about = {
        "kind": "run",
        "data": corpus.sha256,
        "weights": fingerprint(model.network),
        "note": args.note,
        "device": args.device,
        "samples_from": None if args.samples_from is None else str(args.samples_from),
        "machine": machine(),
        "versions": versions(),
    }
    write_points(folder / "results.jsonl", [about, *measure(model, args, text, tokens)])
    stages = [*args.earlier, args.run]
    logs = [(stage / "log.jsonl").read_text(encoding="utf-8") for stage in stages]
    (folder / "log.jsonl").write_text("".join(logs), encoding="utf-8")


def _check_same(file: Path, model: Model, words: frozenset[str]) -> None:
    """Refuse samples of other weights, or judged by other words."""
    run = read_points(file)[0]
    same = {"weights": fingerprint(model.network), "judged_by": Domain(words=words).digest}
    for name, value in same.items():
        if run.get(name) != value:
            raise UserError(
                f"{file} has {name} {str(run.get(name))[:8]}: this model has {str(value)[:8]}; "
                "name the benchmark of this one"
            )


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: ship(tyro.cli(Ship))))
