"""Sections of the evidence page: settings of samplers, acceptance, seconds, confidence orders.

A section returns its Markdown, every number computed, or None where its results file is not there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from specmask.bench import report, seconds
from specmask.bench.card import families
from specmask.bench.compare import cost_ratios, frontier
from specmask.bench.evidence import CHOOSER, SETTINGS, ZOO, Evidence, machine
from specmask.bench.plot import restrictions_figure
from specmask.bench.result_words import series
from specmask.bench.run import Point
from specmask.bench.tables import cells, family, markdown

NEAR = 32.0
"""NFE at which settings of many costs are shown."""


# What tells one self-speculative setting from another, by the name of the setting.
_ABLATED: dict[str, tuple[str, Callable[[Mapping[str, Any]], object]]] = {
    "rounds": ("rounds: verify passes a trunk pass may make", lambda s: s["rounds"]),
    "first": ("first-rank rule", lambda s: s["first"]),
    "window": ("kind of window", lambda s: s["window"].partition(":")[0]),
    "verification": ("verification", lambda s: s["verification"]),
    "order": ("order", lambda s: s["order"]),
}


_HELD = {"verification": "token", "order": "random"}
"""What the paper has, and every comparison but their own holds to."""


def ablations(points: Sequence[Point]) -> dict[str, dict[str, list[Point]]]:
    """Setting → each of its values → the laws that have it; of settings with two values."""
    found: dict[str, dict[str, list[Point]]] = {}
    for name, (_, value) in _ABLATED.items():
        held = {key: usual for key, usual in _HELD.items() if key != name}
        curves: dict[str, list[Point]] = {}
        for p in families(points, "law")[1]:
            if held.items() <= p["settings"].items():
                curves.setdefault(f"{name} {value(p['settings'])}", []).append(p)
        if len(curves) > 1:
            found[name] = curves
    return found


def restricted(ablated: Iterable[Mapping[str, Sequence[Point]]]) -> str:
    """Markdown: what it costs to choose among settings of one kind only, at equal exact bits."""
    rows = []
    for curves in ablated:
        free = [p for curve in curves.values() for p in curve]
        of = len(frontier(free, "bits", -1))
        for label, some in curves.items():
            ratios = sorted(cost_ratios(some, free, "bits", -1))
            dearer = "–"
            if ratios:
                dearer = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            ends = [f"{p['bits']:.4f} at {p['nfe']:.1f}" for p in frontier(some, "bits", -1)]
            rows.append((label, dearer, f"{len(ratios)} of {of}", ends[0], ends[-1]))
    header = (
        *("only", "NFE ÷ free choice, median (least to most)", "at bits of the free front"),
        *("cheapest: bits at NFE", "best: bits at NFE"),
    )
    return markdown(header, rows)


def sampler_settings(e: Evidence) -> str | None:
    """The sampler's settings, one by one, by exact laws."""
    grid, chooser = e.points(SETTINGS), e.points(CHOOSER)
    points = grid or e.points(ZOO / "results.jsonl")
    laws, panels = families(points, "law")[1], ablations(points)
    if not panels:
        return None
    about = f"{len(laws)} settings on {laws[0]['rows']} held-out rows, seed {laws[0]['seed']}"
    token = all(p["settings"]["verification"] == "token" for p in laws)
    if grid:
        about += (
            f", on {e.weights(grid[0])}; {machine(grid[0])}. Made by "
            f"`python -m specmask.bench.settings text8-small --data FILE --rows {laws[0]['rows']}`"
            + (", whose last part, `block` verification, is not in the file." if token else ".")
        )
    else:
        about += ": those of the figure above."
    tables = restricted(panels.values())
    block = {} if "verification" in panels else ablations(chooser).get("verification", {})
    if block:
        panels["verification"] = block
        mine = [p for curve in block.values() for p in curve]
        tables += (
            f"\nHow drafts are verified, on {mine[0]['rows']} rows, seed {mine[0]['seed']}, "
            f"at {len(mine)} settings: those that were tuned for `token`, with `token` and with "
            f"`block`, on {e.weights(chooser[0])}; by `specmask bench`, see "
            f"[which sampler](choose-a-sampler.md):\n\n{restricted([block])}"
        )
    kept = """`token`, the paper's rule, keeps the drafts that no round has scanned for the next
round of the pass; `block` redraws them, since its verdict depends on all of them."""
    picture = e.figure(
        "settings",
        "exact bits against NFE, a setting at a time",
        lambda path: restrictions_figure(
            path, {_ABLATED[name][0]: curves for name, curves in panels.items()}
        ),
    )
    return f"""## The sampler's settings, one by one

{picture}

Exact bits per character against exact expected NFE, no training and no samples: each curve is the
best that settings with one value of one setting come to, all other settings free, but verified
token by token along random orders where it is not this that is compared. {about}

What a value costs: NFE of the best settings that have it ÷ NFE of the best of all, at equal bits,
over those points of the free front whose bits the restricted one comes to: 1 wherever the free
choice has that value itself. It is read off a straight line between two settings, in log NFE, and
lies below 1 where that line passes below a setting of the front; the third column says how much of
the front the ratio is of.

{tables}
{kept if "verification" in panels else ""}"""


def acceptance(e: Evidence) -> str | None:
    """Accepted drafts by progress of generation, and lengths of accepted runs."""
    chooser = e.points(CHOOSER)
    shown = [p for p in chooser if p["kind"] == "samples" and "progress" in p]
    source = "" if not chooser else f"on {e.weights(chooser[0])}, by `specmask bench`"
    zoo = [p for p in e.points(ZOO / "results.jsonl") if "progress" in p]
    if zoo:  # the card's own samples are surely the shipped model's
        shown, source = zoo, "on the shipped model, those of the first figure"
    shown = [p for p in shown if p["sampler"] == "speculative"]
    if not shown:
        return None

    def draw(path: Path) -> None:
        figure = report.acceptance(shown)
        figure.savefig(path, dpi=150)
        plt.close(figure)

    picture = e.figure("acceptance", "accepted drafts by progress, and run lengths", draw)
    rows = []
    for p in sorted(shown, key=lambda p: p["nfe"]):
        total, passes = sum(n * k for n, k in enumerate(p["runs"])), sum(p["runs"])
        parts = [_binomial(p["progress"], k) for k in (0, 4, 9)]
        rows.append(
            (
                f"{p['settings']['window']}, rounds {p['settings']['rounds']}",
                *(f"{p['nfe']:.1f}", *parts, f"{total / passes:.2f}"),
                *(str(_quantile(p["runs"], q)) for q in (0.1, 0.5, 0.9)),
            )
        )
    header = (
        *("setting", "NFE", "first tenth", "fifth tenth", "last tenth"),
        *("mean run", "10 %", "median", "90 %"),
    )
    return f"""## Acceptance as generation goes on

{picture}

Left: the share of scanned drafts that were accepted, by tenths of the row that were known before
the pass; bars are two standard errors of a share of so many drafts. Right: how many drafts were
accepted after one trunk pass, the share of passes with at least so many. {shown[0]["num"]} samples
a setting, seed {shown[0]["seed"]}, {source}.

{markdown(header, rows)}
Shares ± one standard error (binomial); runs are drafts accepted after a trunk pass. A draft's
window may reach beyond the tenth in which its pass begins."""


def _binomial(progress: Mapping[str, Sequence[int]], tenth: int) -> str:
    accepted, rejected = progress["accepted"][tenth], progress["rejected"][tenth]
    count = accepted + rejected
    if not count:
        return "–"
    share = accepted / count
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / count):.3f}"


def _quantile(runs: Sequence[int], q: float) -> int:
    """Of run lengths that were counted `runs` times."""
    reached = itertools.accumulate(runs)
    return next(n for n, seen in enumerate(reached) if seen >= q * sum(runs))


def wall_clock(e: Evidence) -> str | None:
    """Seconds beside NFE."""
    points = e.points(CHOOSER.with_name("seconds.jsonl"))
    if not points:
        return None
    first = points[0]
    about = f" Measured on {e.weights(first)}." if "weights" in first else ""
    return f"""## Seconds beside passes

Settings of about {NEAR:.0f} NFE in turn, {first["samples"]} rows at a time, {len(first["seconds"])}
rounds, seed {first["seed"]}, on {machine(first)}: the median over rounds of the ratio to plain
sampling within a round, and its range. The last column is what an NFE takes, against plain
sampling's: 1 where NFE tell the seconds. Made by
`python -m specmask.bench.seconds text8-small docs/chooser --num {first["samples"]} --rounds
{len(first["seconds"])}`.{about} Where the time goes: [performance](performance.md).

{seconds.table(points)}"""


def baselines(e: Evidence) -> str | None:
    """Surest first: confidence orders and thresholds."""
    points = e.points(CHOOSER)
    samples = [p for p in points if p["kind"] == "samples"]
    if not any(p["sampler"] in ("confidence", "threshold") for p in samples):
        return None
    nearest: dict[str, Point] = {}
    for p in samples:
        if p["sampler"] in ("confidence", "ancestral", "speculative"):
            before = nearest.setdefault(family(p), p)
            if abs(math.log(p["nfe"] / NEAR)) < abs(math.log(before["nfe"] / NEAR)):
                nearest[family(p)] = p
    shown = [*nearest.values(), *(p for p in samples if p["sampler"] == "threshold")]
    held = [p for p in points if p["kind"] == "held-out"]
    header, rows = cells([*held, *shown, *(p for p in points if p["kind"] == "law")])
    columns = [
        header.index(name)
        for name in (
            "sampler",
            "settings",
            "NFE",
            "spelling",
            "entropy",
            "distinct 4",
            "exact bits",
        )
        if name in header
    ]
    low = ""
    if held:
        short = [
            f"{family(p)} at {p['nfe']:.1f} NFE ({p['entropy']:.3f})"
            for p in sorted(shown, key=lambda p: p["nfe"])
            if p["entropy"] - held[0]["entropy"]
            < -2 * math.hypot(p["entropy_se"], held[0]["entropy_se"])
        ]
        low = (
            f"\nEntropy below that of held-out text ({held[0]['entropy']:.3f} nats) by more than "
            f"two standard errors: {series(short) or 'none'}.\n"
        )
    options = " --bf16" if points[0]["bf16"] else ""
    return f"""## Surest first: confidence orders and thresholds

Samplers that reveal what the draft is surest of, at the setting nearest {NEAR:.0f} NFE, and all
thresholds, beside plain sampling, self-speculation and held-out text. A plain step counts
{e.share():.3f}. {shown[0]["num"]} samples a setting, seed {shown[0]["seed"]}, on
{e.weights(points[0])}; {machine(points[0])}. They have no tractable law, so quality without entropy
says little of them. Made by `specmask bench text8-small --data FILE --out docs/chooser{options}`;
every setting, and comparisons at equal entropy, are in [which sampler](choose-a-sampler.md).

{markdown([header[k] for k in columns], [[row[k] for k in columns] for row in rows])}{low}"""
