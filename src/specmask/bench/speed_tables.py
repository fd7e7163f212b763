"""speed.jsonl → tables of ratios and a figure of where a pass's time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from specmask.bench.plot import OURS
from specmask.bench.run import Point
from specmask.bench.speed_parts import PARTS
from specmask.bench.tables import markdown

_COLOURS = (OURS, "#5fb49c", "#2f5fb0", "#e0a030", "#b04a2f")  # of PARTS


def write_speed(folder: Path, points: Sequence[Point]) -> list[str]:
    """speed.md and speed.png; the names of what was made."""
    (folder / "speed.md").write_text(speed_tables(points), encoding="utf-8")
    made = ["speed.md"]
    if any(p["kind"] == "parts" for p in points):
        speed_figure(folder / "speed.png", points)
        made.append("speed.png")
    return made


def speed_tables(points: Sequence[Point]) -> str:
    """Markdown: every table that there are points for, each under a line that says what it is."""
    devices = sorted({f"{p['machine']['device']}, {p['threads']} threads" for p in points})
    models = sorted(
        {
            f"{p['model']} (weights {p.get('weights', 'unknown')[:8]})"
            for p in points
            if "model" in p
        }
    )
    found = [
        f"Measured on: {'; '.join(devices)}. Model: {', '.join(models)}. Medians over rounds of "
        "ratios within a round."
    ]
    for title, made in _TABLES.items():
        header, rows = made(points)
        if rows:
            found.append(f"**{title}**\n\n{markdown(header, rows)}")
    return "\n\n".join(part.strip() for part in found) + "\n"


def setting(point: Point) -> str:
    """The sampler's settings that the cases differ in."""
    mine = point["settings"]
    return f"{mine['window']}, {mine['rounds']} rounds"


def ratio(mine: Sequence[float], others: Sequence[float], factor: float = 1.0) -> str:
    """Median of mine ÷ others, round by round, times a factor, and the range."""
    values = [factor * a / b for a, b in zip(mine, others, strict=True)]
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


Cells = tuple[list[str], list[list[str]]]
_CASE = ("scale", "batch", "length", "known", "vocab_size", "settings")


def _loops(points: Sequence[Point]) -> list[dict[str, Point]]:
    """Loops of a case by name, case by case."""
    found: dict[str, dict[str, Point]] = {}
    for p in points:
        if p["kind"] == "loop":
            found.setdefault(repr([p[key] for key in _CASE]), {})[p["loop"]] = p
    return list(found.values())


def _per_pass(points: Sequence[Point]) -> Cells:
    """A pass of ours beside one of each loop; and of left-to-right, a token."""
    header = ["sizes", "batch", "length", "symbols", "window", "tokens a pass", "ours ÷ bare trunk"]
    header += ["textbook ÷ ours", "ours ÷ left-to-right token", "break-even tokens a pass"]
    rows = []
    for loops in _loops(points):
        mine, plain = loops["ours"], loops["textbook"]
        right = loops.get("left-to-right")
        row = [
            mine["scale"],
            str(mine["batch"]),
            str(mine["length"]),
            str(mine["vocab_size"] or ""),
        ]
        row += [setting(mine), f"{mine['tokens'] / mine['row_passes']:.1f}"]
        row.append(ratio(mine["seconds"], loops["bare"]["seconds"]))
        row.append(ratio(plain["seconds"], mine["seconds"], mine["passes"] / plain["passes"]))
        if right is None:
            row += ["–", "–"]
        else:
            factor = right["passes"] / mine["passes"]
            row.append(ratio(mine["seconds"], right["seconds"], factor))
            row.append(row[-1].split()[0])
        rows.append(row)
    return header, rows


def _sizes(point: Point) -> list[str]:
    return [point["scale"], *(str(point[key] or "") for key in ("batch", "length", "vocab_size"))]


def _parts(points: Sequence[Point]) -> Cells:
    """Shares of a pass's time."""
    header = ["sizes", "batch", "length", "symbols", "window", *PARTS, "outside the network"]
    rows = []
    for p in (p for p in points if p["kind"] == "parts"):
        shares = _shares(p)
        outside = shares["draws"] + shares["bookkeeping"]
        rows.append(
            [*_sizes(p), setting(p)]
            + [f"{100 * shares[part]:.1f} %" for part in PARTS]
            + [f"{100 * outside:.1f} %"]
        )
    return header, rows


def _shares(point: Point) -> dict[str, float]:
    """Median over rounds of each part's share, made to add up to one."""
    seconds = point["seconds"]
    totals = [sum(each) for each in zip(*seconds.values(), strict=True)]
    middle = {
        part: statistics.median(a / b for a, b in zip(values, totals, strict=True))
        for part, values in seconds.items()
    }
    whole = sum(middle.values())
    return {part: value / whole for part, value in middle.items()}


def _half(points: Sequence[Point]) -> Cells:
    header = ["batch", "length", "half of the rows early ÷ none"]
    return header, [
        [
            str(p["batch"]),
            str(p["length"]),
            ratio(p["seconds"]["half early"], p["seconds"]["none early"]),
        ]
        for p in points
        if p["kind"] == "half"
    ]


def _later(points: Sequence[Point]) -> Cells:
    header = ["batch", "length", "window", "window ÷ length", "later round ÷ head on the row"]
    return header, [
        [
            str(p["batch"]),
            str(p["length"]),
            str(p["width"]),
            f"{p['width'] / p['length']:.3f}",
            _later_ratio(p),
        ]
        for p in points
        if p["kind"] == "later round"
    ]


def _later_ratio(point: Point) -> str:
    values = [
        a / b for a, b in zip(point["seconds"]["window"], point["seconds"]["row"], strict=True)
    ]
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _quality(points: Sequence[Point]) -> Cells:
    header = ["batch", "length", "ours", "textbook loop", "textbook ÷ ours, whole rows"]
    return header, [
        [str(p["batch"]), str(p["length"]), setting(p), name, ratio(seconds, p["seconds"]["ours"])]
        for p in points
        if p["kind"] == "equal quality"
        for name, seconds in p["seconds"].items()
        if name != "ours"
    ]


def _memory(points: Sequence[Point]) -> Cells:
    header = ["sizes", "batch", "length", "window", "GB over the weights at the peak"]
    return header, [
        [p["scale"], str(p["batch"]), str(p["length"]), p["window"], f"{p['gigabytes']:.2f}"]
        for p in points
        if p["kind"] == "memory"
    ]


_TABLES: dict[str, Callable[[Sequence[Point]], Cells]] = {
    "A pass beside other loops": _per_pass,
    "Where a pass's time goes": _parts,
    "Whole rows at equal quality": _quality,
    "Rows that finish early": _half,
    "Later rounds": _later,
    "Peak memory": _memory,
}


def speed_figure(path: Path, points: Sequence[Point]) -> None:
    """Shares of a pass's time, a bar a case."""
    shown = [p for p in points if p["kind"] == "parts"]
    names = [
        f"{p['scale']}, {p['batch']} × {p['length']}"
        + (f", {p['vocab_size']} symbols" if p["vocab_size"] else "")
        + f"\n{setting(p)}"
        for p in shown
    ]
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(shown) + 1.2), layout="constrained")
    left = [0.0] * len(shown)
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        widths = [100 * _shares(p)[part] for p in shown]
        axis.barh(range(len(shown)), widths, left=left, color=colour, label=part, height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(shown)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("share of a pass's time (%), median over rounds")
    axis.legend(ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
