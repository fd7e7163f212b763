"""A sweep of samples again, with another seed: whether its standard errors say what they claim.

    python -m specmask.bench.repeat text8-small

draws the settings of the model's own results.jsonl anew. `python -m specmask.bench.results` shows
both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track

import specmask
from specmask.bench.benchmark import Results
from specmask.bench.run import Point, fingerprint, read_points, sample_point
from specmask.bench.tables import markdown
from specmask.checks import check_device, check_seed
from specmask.errors import UserError, exit_code, unknown
from specmask.metrics.spelling import load_words
from specmask.models.zoo import WORDS, ZOO, zoo_folder
from specmask.samplers import make_sampler

console = Console(stderr=True)

ROUNDING = 1e-9
"""Standard errors below this are those of sums in another order."""
MEASURES = {"nfe": 1, "spelling": 4, "entropy": 4}
"""What is compared, and to how many decimals it is shown."""


@dataclass(frozen=True)
class Repeat:
    """Sample the settings of a shipped model's results once more; goes on where it was stopped."""

    model: tyro.conf.Positional[str] = "text8-small"
    """Name of a shipped model with samples in its results.jsonl."""
    out: Path = Path("docs/results/repeated.jsonl")
    """Results file, a setting a line."""
    seed: int = 1
    """Of the samples; that of the first run is another one."""
    most: float = 25.0
    """Settings of more NFE than this are left out."""
    batch_size: int = 64
    """Rows in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""


def repeat(args: Repeat) -> None:
    """Sample what the file does not hold yet.

    Raises:
        UserError: a model without samples of its own; the first run's seed; another run's file.
    """
    check_seed(args.seed)
    if args.model not in ZOO:
        raise unknown("shipped model", args.model, ZOO)
    folder = zoo_folder(args.model)
    if not (folder / "results.jsonl").is_file():
        raise UserError(f"{args.model} has no results.jsonl: expected a model of text")
    first = [p for p in read_points(folder / "results.jsonl") if p["kind"] == "samples"]
    first = sorted((p for p in first if p["nfe"] <= args.most), key=lambda p: p["nfe"])
    if not first:
        raise UserError(f"{args.model} has no samples of at most {args.most:g} NFE: raise --most")
    if any(p["seed"] == args.seed for p in first):
        raise UserError(f"seed {args.seed} is that of the first run: choose another")
    check_device(args.device)
    model = specmask.load(args.model, args.device)
    words = load_words(folder / WORDS)
    about = {
        "model": model.name,
        "weights": fingerprint(model.network),
        "layers": [model.network.trunk_layers, model.network.head_layers],
        "data": None,
        "rows": 0,
        "length": model.network.length,
        "seed": args.seed,
        "num": first[0]["num"],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(args.out, about)
    for point in track(first, "samples", console=console):
        sampler = make_sampler(point["sampler"], point["settings"])
        if not results.find("samples", sampler):
            again = sample_point(
                *(model, sampler, words, point["num"], args.seed, args.batch_size, point["bf16"])
            )
            results.add([again])
    console.print(f"{args.out}: {len(results.find('samples'))} settings")


# ------------------------------------------------------------------------------------- comparison


def pairs(first: Sequence[Point], again: Sequence[Point]) -> list[tuple[Point, Point]]:
    """Samples of the same setting in both, by rising cost."""

    def key(point: Mapping[str, Any]) -> tuple[str, str]:
        return point["sampler"], str(sorted(point["settings"].items()))

    second = {key(p): p for p in again if p["kind"] == "samples"}
    found = [(p, second[key(p)]) for p in first if p["kind"] == "samples" and key(p) in second]
    return sorted(found, key=lambda pair: pair[0]["nfe"])


def deviation(one: Point, other: Point, measure: str) -> float:
    """The difference of two runs in its own standard errors."""
    error = math.hypot(one[f"{measure}_se"], other[f"{measure}_se"])
    difference = float(other[measure] - one[measure])
    if error > ROUNDING:
        return difference / error
    return 0.0 if abs(difference) <= ROUNDING else math.inf


def table(both: Sequence[tuple[Point, Point]], told: Callable[[Point], str]) -> str:
    """Markdown: each setting's measures in both runs, and how far they lie apart.

    told: what a setting is called.
    """
    rows = []
    for one, other in both:
        row = [one["sampler"], told(one)]
        for measure, digits in MEASURES.items():
            row.append(f"{one[measure]:.{digits}f}, {other[measure]:.{digits}f}")
            row.append(f"{deviation(one, other, measure):+.1f}")
        rows.append(row)
    header = [
        "sampler",
        "settings",
        "NFE",
        "apart",
        "spelling accuracy",
        "apart",
        "entropy",
        "apart",
    ]
    return markdown(header, rows)


def tally(both: Sequence[tuple[Point, Point]], measure: str) -> tuple[float, int, float]:
    """Σ deviations², how many there are, and the odds of a χ² of so many to exceed the sum.

    A cost that is the same in every sample has no error, and is not counted.
    """
    random = [pair for pair in both if math.hypot(*(p[f"{measure}_se"] for p in pair)) > ROUNDING]
    total = sum(deviation(*pair, measure) ** 2 for pair in random)
    halves = torch.tensor([len(random) / 2, total / 2], dtype=torch.float64)
    return total, len(random), float(torch.special.gammaincc(*halves))


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: repeat(tyro.cli(Repeat))))
