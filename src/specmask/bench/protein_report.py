"""What was measured on protein models, as Markdown: losses, cost at equal quality, samples."""

from __future__ import annotations

import json
from collections.abc import Sequence

from specmask.bench.compare import Factor, factors_at_equal, frontier, thin
from specmask.bench.run import Point
from specmask.metrics.entropy import unigram_entropy

UNTOUCHED, HELD_OUT = "untouched", "held-out"
KEY = ("model", "sampler", "settings", "seed")
"""What tells one setting's samples from another's."""

QUALITIES = {
    "nats": ("law", "exact nats per residue, held-out rows"),
    "judge": ("samples", "judge's nats per residue of samples"),
    "rmsd": ("samples", "predicted RMSD of samples, Å"),
}


def report(points: Sequence[Point]) -> str:
    """Markdown: losses, cost at equal quality, and every sampled setting."""
    factors = factor_table(factor_rows(points))
    parts = [_loss_table(points), factors, sample_table(points)]
    return "\n\n".join(part for part in parts if part) + "\n"


def newest(points: Sequence[Point]) -> list[Point]:
    """Without what was measured again: earlier samples of a setting, and structures of those."""
    replaced = {
        "samples": ("samples", "structure"),
        HELD_OUT: (HELD_OUT,),
        "structure": ("structure",),
    }
    kept: list[Point] = []
    for p in points:
        old = replaced.get(p["kind"], ())
        kept = [q for q in kept if q["kind"] not in old or key_of(q) != key_of(p)]
        kept.append(p)
    return kept


def with_structures(points: Sequence[Point]) -> list[Point]:
    """The points, with entropy, and what was predicted of structures, among the figures of a
    setting's samples and of the held-out chains."""
    found = {key_of(p): p for p in points if p["kind"] == "structure"}
    merged = []
    for p in points:
        if p["kind"] in ("samples", HELD_OUT):
            entropy = unigram_entropy([list(map(ord, text)) for text in p["sequences"]])
            p = {**p, "entropy": entropy.mean, "entropy_se": entropy.standard_error}
            fold = found.get(key_of(p))
            if fold is not None:
                told = {key: fold[key] for key in ("rmsd", "rmsd_se")}
                p = {**p, **told, "each": {**p["each"], **fold["each"]}}
        merged.append(p)
    return merged


def key_of(point: Point) -> str:
    """One setting of one model, as text."""
    return json.dumps([point.get(key) for key in KEY], sort_keys=True)


def _loss_table(points: Sequence[Point]) -> str:
    rows = [
        "| model | held-out rows | draft | target | target below draft |",
        "|---|---:|---:|---:|---:|",
    ]
    for p in points:
        if p["kind"] == "loss":
            shown = ("draft", "target", "margin") if p["margin_se"] else ("draft", "", "")
            told = " | ".join(_pm(p, key, 4) for key in shown)
            rows.append(f"| {p['model']} | {p['rows']} | {told} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def curves(points: Sequence[Point], kind: str) -> dict[tuple[str, str], list[Point]]:
    """(model, sampler) → its points of one kind."""
    found: dict[tuple[str, str], list[Point]] = {}
    for p in points:
        if p["kind"] == kind and p["sampler"] != "any_order":
            found.setdefault((p["model"], p["sampler"]), []).append(p)
    return found


def factor_rows(points: Sequence[Point]) -> list[tuple[str, str, str, Factor]]:
    """Plain NFE ÷ NFE of each self-speculative curve, wherever a plain one has its quality.

    Each with what is equal, whose plain sampling it is and whose self-speculation.
    """
    rows = []
    for quality, (kind, title) in QUALITIES.items():
        family = {k: [p for p in v if quality in p] for k, v in curves(points, kind).items()}
        for (model, sampler), ours in family.items():
            if sampler != "speculative":
                continue
            for (other, rule), base in family.items():
                if rule == "speculative":
                    continue
                mine = thin(frontier(ours, quality, -1), 1.4)
                found = factors_at_equal(base, mine, quality, -1)
                rows += [(title, other, model, factor) for factor in found]
    return rows


def factor_table(rows: Sequence[tuple[str, str, str, Factor]]) -> str:
    """Markdown: `factor_rows`."""
    lines = [
        "| equal | plain sampling of | self-speculation of | at | its NFE | plain NFE ÷ its | "
        "95 % interval |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for title, other, model, f in rows:
        lines.append(
            f"| {title} | {other} | {model} | {f.quality:.4f} | {f.nfe:.1f} | "
            f"{f.factor:.2f} | {f.interval} |"
        )
    return "\n".join(lines)


def sample_table(points: Sequence[Point]) -> str:
    """Markdown: every sampled setting, and the data itself."""
    columns = {
        "nfe": ("NFE", 1),
        "judge": ("judge, nats", 3),
        "rmsd": ("predicted RMSD, Å", 3),
        "entropy": ("entropy, nats", 3),
        "substitutions": ("framework substitutions", 2),
        "possible": ("possible", 3),
        "law": ("law, nats", 3),
        "unique": ("unique", 3),
        "composition": ("composition, nats", 4),
    }
    samples = [p for p in points if p["kind"] == "samples"]
    shown = {key: told for key, told in columns.items() if any(key in p for p in samples)}
    rows = [
        "| model | settings | " + " | ".join(name for name, _ in shown.values()) + " |",
        "|---|---|" + "---:|" * len(shown),
    ]
    for p in points:
        if p["kind"] == HELD_OUT:
            told = " | ".join(_pm(p, key, places) for key, (_, places) in shown.items())
            rows.append(f"| {HELD_OUT} | the data itself | {told} |")
    for p in sorted(samples, key=lambda p: (p["model"], p["sampler"], p["nfe"])):
        s = p["settings"]
        what = (
            f"{s['window']}, rounds {s['rounds']}"
            if p["sampler"] == "speculative"
            else f"plain, {s['steps']} steps, {s['schedule']}"
        )
        told = " | ".join(_pm(p, key, places) for key, (_, places) in shown.items())
        rows.append(f"| {p['model']} | {what} | {told} |")
    return "\n".join(rows)


def _pm(point: Point, key: str, places: int) -> str:
    value, error = point.get(key), point.get(f"{key}_se")
    if value is None:
        return "–"
    return f"{value:.{places}f}" + ("" if error is None else f" ± {error:.{places}f}")
