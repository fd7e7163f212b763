"""Plain and self-speculative samples of subword text under another language model (paper, Table 1).

    python -m specmask.bench.prose MODEL --data FILE --judge FOLDER --out docs/prose

writes results.jsonl, a line for each setting as soon as it is measured, table.md and quality.png.
Made again with the same --out it goes on where it was stopped.

NFE counts passes of the whole network: a plain step runs the trunk only and counts
L_nc/(L_nc + L_c). For each budget of NFE both samplers have the setting of the fewest nats per
token on held-out rows, by its exact law, among those that cost about as much and no more.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import specmask
from specmask.bench.benchmark import Results, machine, read_results
from specmask.bench.card import stages_of
from specmask.bench.prose_report import figure, kinds, near, report
from specmask.bench.run import (
    Domain,
    Point,
    describe,
    estimate,
    fingerprint,
    law_points,
    measures,
    read_points,
)
from specmask.bench.tables import told
from specmask.checks import check_seed, whole
from specmask.data.batches import windows
from specmask.data.documents import documents
from specmask.data.subwords import END_OF_TEXT
from specmask.data.token_ids import tokenize_corpus
from specmask.errors import UserError, exit_code
from specmask.masking import CosineWindow, FullWindow, Window
from specmask.metrics.perplexity import Judge, generative_perplexity, load_judge
from specmask.models.checkpoint import Model, file_sha256
from specmask.models.protocol import has_head
from specmask.samplers import Sampler, Speculative, make_sampler
from specmask.samplers.driver import decode_rows

console = Console(stderr=True)

PAPER = ((1, 0.002), (2, 0.005), (3, 0.01), (4, 0.02), (8, 0.04), (10, 0.083))
"""Rounds and cosine steps of the paper on OpenWebText."""
_JUDGED = 4
"""Texts in one pass of the judge, whose logits are the widest thing here."""


@dataclass(frozen=True)
class Prose:
    """Measure self-speculation and plain sampling on a model of subword text, under a judge."""

    model: tyro.conf.Positional[str | None] = None
    """Model folder; not needed with --report-only."""
    data: Path | None = None
    """Text that the model was not trained on (.txt, .jsonl or .parquet): its rows are scored by the
    exact laws, and judged as samples are."""
    judge: str | None = None
    """Causal language model of Transformers: a folder, or a name on the Hub."""
    gguf_file: str | None = None
    """The weights' file in the judge's folder, if they are GGUF."""
    out: Path = Path("prose")
    """Folder of results.jsonl, table.md and quality.png."""
    rows: int = 16
    """Held-out rows for the exact laws, at least 2: each takes as many trunk passes as it has
    tokens."""
    num: int = 64
    """Samples at each setting, and held-out rows that are judged beside them, at least 2."""
    nfe: tuple[float, ...] = (16, 32, 64, 128, 256)
    """Budgets: passes of the whole network a sample."""
    end_of_text: str = END_OF_TEXT
    """What the model's tokenizer calls the token between two documents."""
    batch_size: int = 32
    """Rows in one pass."""
    bf16: bool = False
    """Sample with bfloat16 matrix products; the exact laws stay float32."""
    seed: int = 0
    """Of samples and orders."""
    about: str = ""
    """What else the caption should say, of data and judge, in Markdown."""
    log: tuple[Path, ...] = ()
    """log.jsonl of the model's training, of all its stages, first to last: for the caption."""
    report_only: bool = False
    """Make table and figure again from the results that are there."""


# ------------------------------------------------------------------------------------- settings


def plain_grid(length: int, share: float, budgets: Sequence[float]) -> list[Sampler]:
    """Plain sampling at fixed counts, by both schedules, with the steps that cost the budgets
    among others.

    Args:
        length: tokens of a row; more steps than that cost nothing more.
        share: of the network that a plain step runs.
    """
    steps = {n for n in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, length) if n <= length}
    steps |= {min(length, int(budget / share)) for budget in budgets if budget >= share}
    schedules = ("cosine", "linear")
    return [
        make_sampler("ancestral", {"steps": n, "counts": "fixed", "schedule": s})
        for n, s in product(sorted(steps), schedules)
    ]


def grid() -> list[Sampler]:
    """Self-speculation: windows × rounds, and the paper's six settings under the paper's rule for a
    pass's first rank."""
    steps = (0.002, 0.003, 0.005, 0.007, 0.01, 0.02, 0.03, 0.04, 0.06, 0.083, 0.12, 0.17, 0.25)
    every: list[Window] = [*map(CosineWindow, steps), FullWindow()]
    ours = [Speculative(window=window, rounds=n) for window in every for n in (1, 2, 3, 4, 6, 10)]
    paper = [Speculative(window=CosineWindow(step), rounds=n, first="verify") for n, step in PAPER]
    return [*ours, *paper]


# ------------------------------------------------------------------------------------- measuring


def measure(args: Prose) -> None:
    """Add to results.jsonl what is not there yet.

    Raises:
        UserError: before any work: a setting out of range, no model, data or judge, a model without
            a causal head or a subword tokenizer, a text of too few rows, results of another run.
    """
    _check(args)
    if missing := [path for path in args.log if not path.is_file()]:
        raise UserError(f"no file {missing[0]}: expected the log.jsonl of a training")
    logs = [read_points(path) for path in args.log]
    model = specmask.load(args.model or "")
    if not has_head(model.network):
        raise UserError(f"{args.model} has no causal head: expected a self-speculative model")
    assert args.data is not None
    assert args.judge is not None
    scored, reference = held_out(model, args.data, args.rows, args.num, args.end_of_text)
    judge = load_judge(args.judge, args.gguf_file)
    network = model.network
    parameters = sum(p.numel() for p in network.parameters())  # type: ignore[attr-defined]
    about = {
        "model": model.name,
        "weights": fingerprint(network),
        "layers": [network.trunk_layers, network.head_layers],
        "parameters": parameters,
        "vocabulary": network.vocab_size,
        "data": {"file": args.data.name, "sha256": file_sha256(args.data)},
        "judge": {
            "name": args.gguf_file or Path(args.judge).name,
            "parameters": sum(p.numel() for p in judge.model.parameters()),
            "weights": fingerprint(judge.model),
        },
        "rows": args.rows,
        "length": network.length,
        "budgets": sorted(args.nfe),
        "seed": args.seed,
        "num": args.num,
        "bf16": args.bf16,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.jsonl", about)
    if (args.about or logs) and not results.find("background"):
        results.add([{"kind": "background", "about": args.about, **_training(logs)}])
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        if not results.find("held-out"):
            with _task(bar, "judging held-out rows") as show:
                lengths = torch.full((len(reference),), reference.shape[1])
                texts = decode_rows(model, reference, lengths) or []
                found = _judged(reference, texts, judge, show)
            results.add([{"kind": "held-out", "num": len(reference), **found}])
        _laws(model, scored, results, args, bar)
        _samples(model, judge, results, args, bar)


def _check(args: Prose) -> None:
    for name, value in (("MODEL", args.model), ("--data", args.data), ("--judge", args.judge)):
        if value is None:
            raise UserError(f"no {name}: expected it, or --report-only for results that are there")
    whole("rows", args.rows, 2)
    whole("num", args.num, 2)
    whole("batch_size", args.batch_size, 1)
    check_seed(args.seed)
    if not args.nfe or not all(0 < budget < math.inf for budget in args.nfe):  # nan neither
        raise UserError(f"--nfe {' '.join(map(str, args.nfe))}: expected finite numbers above 0")


def held_out(
    model: Model, path: Path, rows: int, num: int, end_of_text: str = END_OF_TEXT
) -> tuple[Tensor, Tensor]:
    """Rows of a text as training packs them: documents one after the other, the end-of-text token
    after each, cut at the model's length.

    Returns:
        (rows, L) and (num, L) int64, each spread evenly over the text.

    Raises:
        UserError: no tokenizer, or one without that token; a text that cannot be read, or of fewer
            rows.
    """
    if model.tokenizer is None:
        raise UserError(f"{model.name} has no tokenizer, so it cannot read {path}")
    length = model.network.length
    with tempfile.TemporaryDirectory() as folder:
        source = documents(path)
        ids = tokenize_corpus(source, model.tokenizer, folder, end_of_text=end_of_text).ids
        if len(ids) < max(rows, num) * length:
            raise UserError(
                f"{path} has {len(ids)} tokens, {max(rows, num)} rows of {length} need "
                f"{max(rows, num) * length}: use a longer text, or lower --rows and --num"
            )
        return windows(ids, length, rows), windows(ids, length, num)


def _training(logs: Sequence[Sequence[Point]]) -> Point:
    """Tokens of all stages, and the last losses on validation rows, in nats per token."""
    stages = [stage for log in logs for stage in stages_of(log)]
    if not stages:
        return {}
    lines = [row for stage in stages for row in stage if row.get("kind") == "validation"]
    return {
        "tokens": sum(stage[-1].get("tokens", 0) for stage in stages),
        "draft_nll": lines[-1]["draft_nll"] if lines else None,
        "target_nll": lines[-1]["target_nll"] if lines else None,
    }


def _laws(model: Model, tokens: Tensor, results: Results, args: Prose, bar: Progress) -> None:
    network = model.network
    share = network.trunk_layers / (network.trunk_layers + network.head_layers)
    every = [*plain_grid(network.length, share, args.nfe), *grid()]
    missing = [sampler for sampler in every if not results.find("law", sampler)]
    if not missing:
        return
    began = time.perf_counter()
    with _task(bar, "exact laws") as show:
        law_points(
            *(model, tokens, missing, args.seed, args.batch_size),
            progress=show,
            on_point=lambda point: results.add([point]),
        )
    seconds = time.perf_counter() - began
    _say(f"exact laws of {len(missing)} settings on {len(tokens)} rows: {seconds:.0f} s")


def _samples(model: Model, judge: Judge, results: Results, args: Prose, bar: Progress) -> None:
    """Draw and judge, the cheap settings first."""
    chosen: dict[str, tuple[float, Sampler]] = {}
    for family in kinds(results.points, "law"):
        for budget in args.nfe:
            if (law := near(family, budget)) is not None:
                sampler = make_sampler(law["sampler"], law["settings"])
                chosen[repr(sampler)] = law["nfe"], sampler
    todo = [pair for pair in chosen.values() if not results.find("samples", pair[1])]
    todo.sort(key=lambda pair: pair[0])
    passes = spent = 0.0
    for done, (nfe, sampler) in enumerate(todo):
        point = _sample(model, sampler, judge, args, bar)
        results.add([point])
        passes, spent = passes + nfe, spent + point["seconds_per_sample"] * args.num
        rest = todo[done + 1 :]
        judging = point["judge_seconds"] * len(rest)
        left = judging + spent / passes * math.fsum(cost for cost, _ in rest)
        _say(
            f"{told(point)}: {point['nfe']:.1f} NFE, perplexity {point['perplexity']:.1f} ± "
            f"{point['perplexity_se']:.1f}, entropy {point['entropy']:.3f}; {done + 1} of "
            f"{len(todo)} settings, about {left / 60:.0f} minutes left",
        )


def _sample(model: Model, sampler: Sampler, judge: Judge, args: Prose, bar: Progress) -> Point:
    with (
        _task(bar, f"samples: {told(describe(sampler, args.seed))}") as show,
        torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16),
    ):
        finished = 0

        def on_frame(frame: specmask.Frame) -> None:
            nonlocal finished
            finished += int(frame.finished.sum())
            show(finished, args.num)

        out = specmask.sample(
            model,
            sampler,
            num=args.num,
            seed=args.seed,
            batch_size=args.batch_size,
            on_frame=on_frame,
        )
    began = time.perf_counter()
    with _task(bar, "judging") as show:
        found = _judged(out.tokens, out.text or [], judge, show)
    seconds = time.perf_counter() - began
    mean, error = estimate(out.nfe)
    found["each"]["nfe"] = [round(value, 5) for value in out.nfe.tolist()]
    return {
        "kind": "samples",
        **describe(sampler, args.seed),
        "machine": machine(),
        "num": args.num,
        "bf16": args.bf16,
        "nfe": mean,
        "nfe_se": error,
        **found,
        "seconds_per_sample": out.wall_seconds / args.num,
        "judge_seconds": seconds,
        "texts": (out.text or [])[:2],
    }


def _judged(
    tokens: Tensor, texts: Sequence[str], judge: Judge, show: Callable[[int, int], None]
) -> Point:
    """What `measures` gives of (B, L) rows, and what the judge says.

    perplexity: exp of the nats per token of the judge over all texts. judge: the mean over texts of
    their own nats per token, which a bootstrap over texts draws again.
    """
    found = measures(tokens, torch.full((len(tokens),), tokens.shape[1]), texts, Domain())
    report = generative_perplexity(texts, tokens, judge, batch_size=_JUDGED, progress=show)
    mean, error = estimate(torch.tensor(report.texts_nll, dtype=torch.float64))
    found["each"]["judge"] = [round(value, 5) for value in report.texts_nll]
    return {
        "perplexity": report.perplexity.mean,
        "perplexity_se": report.perplexity.standard_error,
        "judge": mean,
        "judge_se": error,
        "judge_tokens": sum(report.texts_tokens),
        **found,
    }


@contextmanager
def _task(bar: Progress, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for `what`, with the time left, gone when it is done."""
    task = bar.add_task(what, total=None)
    yield lambda done, total: bar.update(task, completed=done, total=total)
    bar.remove_task(task)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def main(args: Prose) -> None:
    """`python -m specmask.bench.prose`."""
    file = args.out / "results.jsonl"
    if not args.report_only:
        measure(args)
    elif not file.is_file():
        raise UserError(f"no {file} to report on: name model, --data and --judge to measure")
    points = read_results(file)
    (args.out / "table.md").write_text(report(points), encoding="utf-8")
    figure(args.out / "quality.png", points)
    console.print(f"{args.out}: results.jsonl, table.md, quality.png")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Prose))))
