"""What each sampler does to a law that is known: its bias on a hidden Markov chain.

    python -m specmask.bench.bias docs/bias/results.jsonl

The chain's conditionals are exact, so that an exact sampler draws from the chain itself, and what
another one draws differs by its own doing alone. The table goes beside the results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from jaxtyping import Float64, Int64
from rich.console import Console
from rich.progress import track
from torch import Tensor

import specmask
from specmask.bench.known_chain import KnownChain, all_rows, row_index
from specmask.bench.run import Point, describe, estimate, read_points, write_points
from specmask.bench.tables import family, markdown, told
from specmask.checks import whole
from specmask.errors import exit_code
from specmask.masking import ConstantWindow, CosineWindow, FullWindow
from specmask.samplers import (
    Ancestral,
    AnyOrder,
    AnySubset,
    Confidence,
    Dilated,
    EntropyBound,
    FirstHitting,
    Klass,
    Optimal,
    PathPlanning,
    ReMDM,
    RunningConfidence,
    Sampler,
    Speculative,
    Star,
    Threshold,
)

console = Console(stderr=True)


@dataclass(frozen=True)
class Bias:
    """Measure the bias of every sampler on a known chain."""

    out: tyro.conf.Positional[Path]
    """JSON lines, one a setting; table.md goes beside it."""
    num: int = 300_000
    """Samples of a setting, at least 1000."""
    seed: int = 0
    """Names all random numbers."""
    table_only: bool = False
    """Rebuild the table from the results."""


def settings(chain: KnownChain) -> Iterator[Sampler]:
    """Every sampler, at several costs: first those whose law is the chain's, then the others."""
    yield FirstHitting()
    yield AnyOrder("draft")
    yield AnyOrder("target")
    yield AnySubset(k=2)
    yield AnySubset(k=5)
    for verification in ("token", "block"):
        yield Speculative(FullWindow(), 1, "verify", verification=verification)
        yield Speculative(CosineWindow(0.3), 2, "accept", verification=verification)
        yield Speculative(ConstantWindow(3), 3, "verify", "confidence", verification=verification)
    yield Speculative(FullWindow(), 2, "verify", "confidence", stop=0.5)

    profile = chain_profile(chain)
    for steps in (2, 3, 4, 6):
        yield Ancestral(steps, "fixed", "cosine")
        yield Ancestral(steps, "fixed", "linear")
        yield Ancestral(steps, "random", "linear")
        yield Optimal(steps, profile)
        for score in ("drawn", "top", "margin", "entropy"):
            yield Confidence(steps, score)
        yield Confidence(steps, "drawn", noise=4.5)
        yield RunningConfidence(steps)
    for threshold in (0.3, 0.5, 0.7, 0.9):
        yield Threshold(threshold=threshold)
    for gamma in (4.0, 2.0, 1.0, 0.5):
        yield EntropyBound(gamma=gamma)
    yield Dilated(block=0)
    yield Dilated(block=2)
    for tau, epsilon in ((0.3, 0.5), (0.6, 0.1), (0.9, 0.01)):
        yield Klass(tau, epsilon, history=1)
    for steps in (3, 6, 12):
        yield PathPlanning(steps)
        yield Star(steps, start=1.0, score="random")
        yield Star(steps, start=1.0, score="confidence")
        yield ReMDM(steps, "cap", eta=0.2)
        yield ReMDM(steps, "rescale", eta=0.2)
        yield ReMDM(steps, "confidence")
        yield ReMDM(steps, "loop")


def chain_profile(chain: KnownChain) -> tuple[float, ...]:
    """f(i), the exact mean nats of a masked token with i random positions known."""
    length, vocab = chain.length, chain.vocab_size
    canvas = all_rows(vocab + 1, length)
    blank = canvas == chain.mask_id
    # Of a canvas: how likely its tokens are, and the entropy of what is masked in it.
    likely = chain.log_prob(canvas).exp()
    log_p = chain.posterior(canvas)
    entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(~blank, 0).sum(1)
    known = (~blank).sum(1)
    found = []
    for i in range(length):
        mine = known == i
        found.append(float((likely * entropy)[mine].sum()) / (math.comb(length, i) * (length - i)))
    return tuple(found)


def distance(
    counts: tuple[Int64[Tensor, "rows"], Int64[Tensor, "rows"]], law: Float64[Tensor, "rows"]
) -> tuple[float, float]:
    """Total-variation distance of the law behind two halves of a sample from a known one.

    The set of rows that one half has more often than it should is judged by the other half, and
    the two results are averaged: so the estimate is zero on average for an exact sampler, and
    never above the distance on average for any. With its standard error.
    """
    found, variance = [], []
    for mine, other in (counts, counts[::-1]):
        often = mine > law * mine.sum()
        share = float(other[often].sum() / other.sum())
        found.append(share - float(law[often].sum()))
        variance.append(share * (1 - share) / float(other.sum()))
    return sum(found) / 2, math.sqrt(sum(variance)) / 2


def measure(chain: KnownChain, sampler: Sampler, num: int, seed: int) -> Point:
    """One line of the results: what the sampler costs and how far its law is from the chain's."""
    out = specmask.sample(specmask.wrap(chain), sampler, num=num, batch_size=50_000, seed=seed)
    law = chain.log_prob(all_rows(chain.vocab_size, chain.length))
    code = row_index(out.tokens, chain.vocab_size)
    half = num // 2
    counts = [part.bincount(minlength=len(law)) for part in (code[:half], code[half:])]
    point = {"kind": "bias", **describe(sampler, seed), "samples": num}
    for key, (value, error) in {
        "trunk_passes": estimate(out.trunk_passes),
        "verify_passes": estimate(out.verify_passes),
        "distance": distance((counts[0], counts[1]), law.exp()),
        "excess": estimate(-law[code] + (law.exp() * law).sum()),
    }.items():
        point |= {key: value, f"{key}_se": error}
    return point


def table(points: Sequence[Point]) -> str:
    """Markdown: a line a setting, in the order of the results."""
    header = ("sampler", "settings", "trunk passes", "verify passes", "distance", "excess (nats)")
    rows = [
        (
            family(point),
            told(point) or "–",
            f"{point['trunk_passes']:.2f}",
            f"{point['verify_passes']:.2f}",
            f"{point['distance']:.4f} ± {point['distance_se']:.4f}",
            f"{point['excess']:+.4f} ± {point['excess_se']:.4f}",
        )
        for point in points
    ]
    return markdown(header, rows)


def main(args: Bias) -> None:
    """Sample, write the results and the table."""
    if not args.table_only:
        whole("num", args.num, 1000)
        chain = KnownChain()
        args.out.parent.mkdir(parents=True, exist_ok=True)
        chosen = list(settings(chain))
        points = [
            measure(chain, sampler, args.num, args.seed)
            for sampler in track(chosen, "sampling", console=console)
        ]
        write_points(args.out, points)
    args.out.with_name("table.md").write_text(table(read_points(args.out)), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)  # the rows are small
    raise SystemExit(exit_code(lambda: main(tyro.cli(Bias))))
