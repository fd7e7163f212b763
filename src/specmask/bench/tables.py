"""What a benchmark's points are called, and a table of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields

from specmask.bench.compare import at_entropy, countable, is_number, turned
from specmask.bench.run import Point, show
from specmask.errors import UserError
from specmask.samplers import SAMPLERS

METRICS = {
    "spelling": (1, "spelling accuracy"),
    "composition": (-1, "divergence of residue composition (nats)"),
    "distinct_4": (1, "distinct 4-grams of a sample"),
    "entropy": (1, "unigram entropy of a sample (nats)"),  # where rows are too short for more
}
"""Key of a measure → 1 if more is better, −1 if less is, and its name; the first one there is."""

_STEPS = ("steps", "profile")
_KINDS = {
    "ancestral": ("schedule",),
    "confidence": ("score",),
    "star": ("score",),
    "remdm": ("rule",),
    "any_order": ("source",),
}


def variant(point: Point) -> str:
    """What a point's settings say beside its cost: those that differ from the defaults."""
    kind = SAMPLERS[point["sampler"]]
    usual = {item.name: show(item.default) for item in fields(kind)}
    mine = point["settings"]
    return ", ".join(
        f"{key} {value}"
        for key, value in mine.items()
        if key not in _STEPS and value != usual.get(key)
    )


def family(point: Point) -> str:
    """The curve a point belongs to: its sampler, and what of its settings is no matter of cost."""
    mine = point["settings"]
    words = [mine[key] for key in _KINDS.get(point["sampler"], ())]
    words += ["noise"] if mine.get("noise") else []
    words += ["block"] if mine.get("verification") == "block" else []
    return " ".join([point["sampler"].replace("_", "-"), *words])


def metric_of(points: Sequence[Point]) -> str:
    """The measure of quality that these points have.

    Raises:
        UserError: they have none.
    """
    for key in METRICS:
        if any(is_number(point.get(key)) for point in points):
            return key
    raise UserError("nothing is measured yet: expected samples, or held-out rows at least")


def _pm(point: Point, key: str, places: int) -> str:
    value, error = point.get(key), point.get(f"{key}_se")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{places}f}" + (f" ± {error:.{places}f}" if error else "")


_COLUMNS = {
    "nfe": ("NFE", 1),
    "trunk_passes": ("trunk", 1),
    "verify_passes": ("verify", 1),
    "spelling": ("spelling", 4),
    "composition": ("composition", 4),
    "entropy": ("entropy", 3),
    "distinct_4": ("distinct 4", 3),
    "unique": ("unique", 3),
    "seconds_per_sample": ("s a sample", 3),
}


def table(points: Sequence[Point]) -> str:
    """Markdown: every sampled setting by cost, with the exact bits of those that have a law."""
    return markdown(*cells(points))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _value(found: tuple[float, float] | None) -> str:
    return "–" if found is None else f"{found[0]:.3f} ± {found[1]:.3f}"


_BELOW = 0.02  # nats between the columns of `entropy_cells`


def entropy_cells(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Quality at equal entropy, of every sampler with a knob turned: a header and rows.

    The entropies are that of the held-out rows and from it up and down in steps of 0.02 nats, as
    far as two samplers come; no rows where there are no two.
    """
    held = [p["entropy"] for p in points if p["kind"] == "held-out"]
    if not turned(points) or (key := metric_of(points)) == "entropy":
        return [], []
    curves = [
        (knob, curve) for knob, curve in turned(points) if all(countable(p, key) for p in curve)
    ]
    if not held or not curves:
        return [], []
    ends = [p["entropy"] for _, curve in curves for p in curve]
    first, last = (round((end - held[0]) / _BELOW) for end in (max(ends), min(ends)))
    found = {
        step: [at_entropy(curve, key, held[0] + step * _BELOW) for _, curve in curves]
        for step in range(first, last - 1, -1)
    }
    shared = {k: row for k, row in found.items() if sum(value is not None for value in row) > 1}
    header = ["sampler", "settings", "turned", "NFE"]
    header += [f"{key} at {held[0] + step * _BELOW:.3f}" for step in shared]
    rows = []
    for n, (knob, curve) in enumerate(curves):
        if any(row[n] is not None for row in shared.values()):
            cost = sum(p["nfe"] for p in curve) / len(curve)
            values = [_value(row[n]) for row in shared.values()]
            rows.append([curve[0]["sampler"], told(curve[0], knob), knob, f"{cost:.1f}", *values])
    return header, rows


def cells(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of `table`."""
    samples = sorted((p for p in points if p["kind"] == "samples"), key=lambda p: p["nfe"])
    laws = {_key(p): p for p in points if p["kind"] == "law"}
    shown = {k: v for k, v in _COLUMNS.items() if any(p.get(k) is not None for p in samples)}
    header = ["sampler", "settings", *(name for name, _ in shown.values()), "exact bits"]
    rows = []
    for p in (p for p in points if p["kind"] == "held-out"):
        rows.append(["held-out rows", "", *(_pm(p, k, places) for k, (_, places) in shown.items())])
        rows[-1].append("–")
    for p in samples:
        cells = [_pm(p, key, places) for key, (_, places) in shown.items()]
        law = laws.get(_key(p), {})
        rows.append([p["sampler"], told(p), *cells, _pm(law, "bits", 3)])
    return header, rows


def law_cells(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Every exact law by cost: a header and rows.

    The last column is what a plain law of as many steps loses against `optimal`, the mean and
    standard error of the differences row by row, since rows differ more than laws do.
    """
    header = ["sampler", "settings", "NFE", "exact bits", "more than optimal"]
    # a law without value, as of a draft that cannot draw what the rows hold, has no cost either
    told_laws = [p for p in points if p["kind"] == "law" and p["bits"] is not None]
    laws = sorted(told_laws, key=lambda p: p["nfe"])
    best = {_as_plain(p): p for p in laws if p["sampler"] == "optimal"}
    rows = []
    for p in laws:
        same = best.get(_as_plain(p))
        more = "–" if same is None or same is p else _difference(p, same)
        rows.append([p["sampler"], told(p), _pm(p, "nfe", 1), _pm(p, "bits", 4), more])
    return header, rows


def _as_plain(point: Point) -> tuple[object, ...]:
    settings = point["settings"]
    keys = ("steps", "temperature", "top_p")
    return (point["plain"] or point["sampler"], *(settings.get(key) for key in keys))


def _difference(point: Point, other: Point) -> str:
    """Of bits, row by row."""
    pairs = zip(point["each"]["bits"], other["each"]["bits"], strict=True)
    gaps = [a - b for a, b in pairs]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return f"{statistics.fmean(gaps):+.4f} ± {error:.4f}"


def told(point: Point, but: str = "") -> str:
    """Steps, and what else differs from the defaults except one setting."""
    steps = f"{point['settings']['steps']} steps" if "steps" in point["settings"] else ""
    mine = {k: v for k, v in point["settings"].items() if k != but}
    return ", ".join(word for word in (steps, variant({**point, "settings": mine})) if word)


def _key(point: Point) -> str:
    return repr((point["sampler"], sorted(point["settings"].items(), key=lambda item: item[0])))
