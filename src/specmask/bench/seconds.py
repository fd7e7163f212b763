"""Seconds of samplers side by side: the settings of a benchmark in turn, several times over.

    python -m specmask.bench.seconds text8-small docs/chooser

A benchmark's own seconds are taken hours apart, on a machine that may have other work for some of
them. Here every setting of about one cost is sampled once a round, so that what slows the machine
slows all of them, and what is told are ratios within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track

import specmask
from specmask.bench.benchmark import machine
from specmask.bench.run import Point, describe, fingerprint, read_points, write_points
from specmask.bench.tables import markdown, told
from specmask.checks import whole
from specmask.errors import UserError, exit_code
from specmask.models.checkpoint import Model
from specmask.samplers import Ancestral, Sampler, make_sampler

console = Console(stderr=True)


@dataclass(frozen=True)
class Seconds:
    """Time the settings of a benchmark that cost about the same, in turn."""

    model: tyro.conf.Positional[str]
    """The model that was measured."""
    folder: tyro.conf.Positional[Path]
    """Of its results.jsonl; seconds.jsonl and seconds.md go there."""
    nfe: float = 32.0
    """Cost of a sample; settings within a fourth of it are timed."""
    num: int = 16
    """Samples of a setting in a round, one batch of them."""
    rounds: int = 5
    """Times that all settings are gone through, after one to warm up."""
    seed: int = 0
    """Names the samples."""
    table_only: bool = False
    """Rebuild the table from seconds.jsonl."""


def alike(points: Sequence[Point], nfe: float) -> list[Sampler]:
    """The sampled settings within a fourth of a cost, by rising cost.

    Raises:
        UserError: no plain sampler with a number of steps is among them, to compare with.
    """
    sampled = sorted((p for p in points if p["kind"] == "samples"), key=lambda p: p["nfe"])
    near = [p for p in sampled if 0.8 * nfe <= p["nfe"] <= 1.25 * nfe]
    found = [make_sampler(p["sampler"], p["settings"]) for p in near]
    if not any(isinstance(sampler, Ancestral) for sampler in found):
        costs = sorted({round(p["nfe"]) for p in sampled if p["sampler"] == "ancestral"})
        raise UserError(f"nfe={nfe:g}: expected one that ancestral sampling has here: {costs}")
    return found


def measure(model: Model, samplers: Sequence[Sampler], args: Seconds) -> list[Point]:
    """A line a setting, with the seconds of every round, of one sample."""
    taken: list[list[float]] = [[] for _ in samplers]
    costs = [0.0] * len(samplers)
    turns = [(turn, k) for turn in range(1 + args.rounds) for k in range(len(samplers))]
    for turn, k in track(turns, "timing", console=console):
        out = specmask.sample(model, samplers[k], num=args.num, batch_size=args.num, seed=args.seed)
        costs[k] = float(out.nfe.double().mean())
        if turn:  # the first one warms up
            taken[k].append(out.wall_seconds / args.num)
    about = {
        "kind": "seconds",
        "model": model.name,
        "weights": fingerprint(model.network),
        "machine": machine(),
        "samples": args.num,
    }
    return [
        {**about, **describe(sampler, args.seed), "nfe": cost, "seconds": seconds}
        for sampler, cost, seconds in zip(samplers, costs, taken, strict=True)
    ]


def table(points: Sequence[Point]) -> str:
    """Markdown: the median over rounds of the ratio to the first plain setting, and its range."""
    plain = next(p for p in points if p["sampler"] == "ancestral")
    rows = []
    for p in points:
        ratios = [a / b for a, b in zip(p["seconds"], plain["seconds"], strict=True)]
        middle = statistics.median(ratios)
        rows.append(
            (
                p["sampler"],
                told(p),
                f"{p['nfe']:.1f}",
                f"{middle:.2f}",
                f"{min(ratios):.2f}–{max(ratios):.2f}",
                f"{middle * plain['nfe'] / p['nfe']:.2f}",
            )
        )
    header = ("sampler", "settings", "NFE", "seconds ÷ plain", "range", "seconds per NFE ÷ plain")
    return markdown(header, rows)


def main(args: Seconds) -> None:
    """Time, write the results and the table."""
    out = args.folder / "seconds.jsonl"
    if not args.table_only:
        for name in ("num", "rounds"):
            whole(name, getattr(args, name), 1)
        samplers = alike(read_points(args.folder / "results.jsonl"), args.nfe)
        write_points(out, measure(specmask.load(args.model), samplers, args))
    (args.folder / "seconds.md").write_text(table(read_points(out)), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Seconds))))
