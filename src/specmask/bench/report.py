"""From results.jsonl alone: a table, the figures and one page that holds them all."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

import specmask
from specmask.bench.compare import frontier, turned
from specmask.bench.plot import OURS, PLAIN, nfe_axis
from specmask.bench.run import Point
from specmask.bench.tables import (
    METRICS,
    cells,
    entropy_cells,
    family,
    law_cells,
    markdown,
    metric_of,
    table,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REMASKING = ("star", "remdm", "p2", "rcr")
_ORDERED = ("confidence", "threshold", "entropy_bound", "klass", "dilated", "policy")

# ---------------------------------------------------------------------------------------- figures


def _style(name: str, others: Sequence[str]) -> dict[str, Any]:
    """Ours and plain stand out; the rest share a palette, dashed where tokens are hidden again."""
    kind = name.split()[0].replace("-", "_")
    if kind == "speculative":
        return {"color": OURS, "linewidth": 2.4, "zorder": 5, "linestyle": _dash("block" in name)}
    if kind in ("ancestral", "optimal"):
        dashes = {"ancestral cosine": "-", "ancestral linear": "--"}
        return {"color": PLAIN, "linewidth": 1.8, "zorder": 4, "linestyle": dashes.get(name, ":")}
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    colour = colours[(2 * others.index(name)) % 20 + (2 * others.index(name)) // 20]
    return {"color": colour, "linewidth": 1.0, "linestyle": _dash(kind in _REMASKING)}


def _dash(dashed: bool) -> str:
    return "--" if dashed else "-"


def _curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Samples by family, by rising NFE; ours and plain first."""
    found: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p["nfe"]):
        found.setdefault(family(point), []).append(point)
    first = ("speculative", "ancestral", "optimal")
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith(first), item[0])))


def quality(points: Sequence[Point]) -> Figure:
    """Quality and entropy against NFE, and one against the other."""
    key = metric_of(points)
    untempered = [p for p in points if p["kind"] == "samples" and _tempering(p) == (1.0, 1.0)]
    curves = _curves(untempered)
    others = [name for name in curves if not name.startswith(("spec", "anc", "opt"))]
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    for name, curve in curves.items():
        style = _style(name, others)
        for axis, shown in ((axes[0], key), (axes[1], "entropy")):
            axis.errorbar(
                [p["nfe"] for p in curve],
                _values(curve, shown),
                yerr=[2 * error for error in _values(curve, f"{shown}_se")],
                marker="o",
                markersize=3,
                label=name,
                **style,
            )
        axes[2].plot(
            _values(curve, "entropy"),
            _values(curve, key),
            marker="o",
            markersize=3,
            label=name,
            **style,
        )
    for p in (p for p in points if p["kind"] == "held-out"):
        if p.get(key) is not None:
            axes[0].axhline(p[key], color="#444444", linewidth=0.8, linestyle=":")
            axes[2].plot(p["entropy"], p[key], "*", color="#444444", markersize=9)
        axes[1].axhline(p["entropy"], color="#444444", linewidth=0.8, linestyle=":")
    axes[0].set_title(METRICS[key][1], fontsize=10)
    axes[1].set_title("unigram entropy of a sample (nats)", fontsize=10)
    axes[2].set_title(f"{METRICS[key][1]} against entropy", fontsize=10)
    _entropy_axis(axes[2], points)
    for axis in axes[:2]:
        nfe_axis(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    return figure


def entropy(points: Sequence[Point]) -> Figure:
    """Quality against entropy: what a sampler trades of one for the other, its knob turned."""
    key = metric_of(points)
    figure, axis = plt.subplots(figsize=(7.5, 5), layout="constrained")
    curves = turned(points)
    others = list(dict.fromkeys(family(curve[0]) for _, curve in curves))
    dearest: dict[str, float] = {}
    for _, curve in curves:
        name, cost = family(curve[0]), _mean_cost(curve)
        dearest[name] = max(cost, dearest.get(name, 0.0))
    for knob, curve in curves:
        name, cost = family(curve[0]), _mean_cost(curve)
        axis.errorbar(
            _values(curve, "entropy"),
            _values(curve, key),
            xerr=_values(curve, "entropy_se"),
            yerr=_values(curve, f"{key}_se"),
            marker={"temperature": "o", "top_p": "s", "noise": "^"}[knob],
            markersize=4,
            alpha=1.0 if cost > 0.9 * dearest[name] else 0.45,  # a cheaper one is paler
            label=f"{name}, {cost:.0f} NFE, {knob.replace('_', '-')}",
            **_style(name, others) | {"linewidth": 1.2},
        )
    for p in (p for p in points if p["kind"] == "held-out"):
        axis.plot(p["entropy"], p[key], "*", color="#444444", markersize=9)
    axis.set_title(f"{METRICS[key][1]} against entropy", fontsize=10)
    _entropy_axis(axis, points)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _mean_cost(points: Sequence[Point]) -> float:
    return float(sum(p["nfe"] for p in points) / len(points))


def _entropy_axis(axis: Axes, points: Sequence[Point]) -> None:
    """As far down as half a nat below held-out text: beyond it a sample repeats itself."""
    axis.set_xlabel("unigram entropy of a sample (nats)")
    text = [p["entropy"] for p in points if p["kind"] == "held-out"]
    shown = [p["entropy"] for p in points if p["kind"] == "samples"]
    if text and (left := sum(value < text[0] - 0.5 for value in shown)):
        axis.set_xlim(text[0] - 0.5, max([*shown, *text]) + 0.03)
        axis.annotate(
            f"{left} settings of lower entropy", (0.02, 0.02), xycoords="axes fraction", fontsize=8
        )
    _plain_axis(axis)


def _values(points: Sequence[Point], key: str) -> list[float]:
    """NaN, which is not drawn, where there was nothing to measure."""
    return [math.nan if p.get(key) is None else p[key] for p in points]


def _tempering(point: Point) -> tuple[float, float]:
    return point["settings"].get("temperature", 1.0), point["settings"].get("top_p", 1.0)


def bits(points: Sequence[Point]) -> Figure:
    """Exact bits per token of held-out rows against exact expected NFE, the best of each family."""
    laws = [p for p in points if p["kind"] == "law" and _tempering(p) == (1.0, 1.0)]
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    curves = _curves([p for p in laws if p.get("bits") is not None])
    others = [name for name in curves if not name.startswith(("spec", "anc", "opt"))]
    shapes = itertools.cycle("Ds^vPX")
    for name, curve in curves.items():
        best = frontier(curve, "bits", -1)
        style: dict[str, Any] = {"marker": "o", "markersize": 3} | _style(name, others)
        if len(curve) == 1:  # a point that lies on others stays seen
            style |= {"marker": next(shapes), "markersize": 8, "fillstyle": "none"}
            style |= {"linestyle": "none", "zorder": 6}
        axis.plot([p["nfe"] for p in best], [p["bits"] for p in best], label=name, **style)
    axis.set_title("exact bits per token on held-out rows", fontsize=10)
    if curves:
        nfe_axis(axis)
        axis.legend(frameon=False, fontsize=8)
    return figure


def acceptance(points: Sequence[Point]) -> Figure:
    """Accepted share of drafts by progress of generation, and drafts accepted a trunk pass.

    Bars are two standard errors of a share of so many drafts (binomial).
    """
    mine = [p for p in points if p["kind"] == "samples" and p["sampler"] == "speculative"]
    mine = [p for p in mine if family(p) == "speculative" and _tempering(p) == (1.0, 1.0)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    colours = plt.get_cmap("viridis")
    for k, p in enumerate(sorted(mine, key=lambda p: p["nfe"])):
        colour = colours(0.9 * k / max(1, len(mine) - 1))
        told = f"{p['nfe']:.0f} NFE: {p['settings']['window']}, rounds {p['settings']['rounds']}"
        accepted, rejected = p["progress"]["accepted"], p["progress"]["rejected"]
        shares = [
            a / (a + r) if a + r else math.nan for a, r in zip(accepted, rejected, strict=True)
        ]
        bars = [
            2 * math.sqrt(share * (1 - share) / (a + r)) if a + r else math.nan
            for share, a, r in zip(shares, accepted, rejected, strict=True)
        ]
        middles = [(n + 0.5) / len(shares) for n in range(len(shares))]
        axes[0].errorbar(
            middles, shares, yerr=bars, color=colour, marker="o", markersize=3, label=told
        )
        total = sum(p["runs"])
        survival = [sum(p["runs"][n:]) / total for n in range(1, len(p["runs"]))]
        if survival:  # none where every draft was rejected, and no logarithm of that
            axes[1].plot(range(1, len(p["runs"])), survival, color=colour, label=told)
    axes[0].set_xlabel("share of the row known before the pass")
    axes[0].set_title("share of scanned drafts accepted", fontsize=10)
    if axes[1].lines:
        axes[1].set_xscale("log", base=2)
        axes[1].set_yscale("log")
    axes[1].set_xlabel("drafts accepted after one trunk pass, at least")
    axes[1].set_title("share of trunk passes", fontsize=10)
    for axis in axes:
        _plain_axis(axis)
    if mine:  # below, where it hides no curve
        lines = axes[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def losses(points: Sequence[Point]) -> Figure:
    """Loss of a masked token by how many are known, of draft and target."""
    (profile,) = (p for p in points if p["kind"] == "profile")
    figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for name, colour in (("draft", PLAIN), ("target", OURS)):
        values = [value / math.log(2) for value in profile[name]]
        if values:
            axis.plot(range(len(values)), values, color=colour, label=name)
    axis.set_xlabel("known tokens")
    axis.set_title("bits per masked token", fontsize=10)
    axis.set_ylim(bottom=0)
    _plain_axis(axis)
    axis.legend(frameon=False)
    return figure


def _plain_axis(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


# ------------------------------------------------------------------------------------------ files

_FIGURES: dict[str, tuple[Callable[[Sequence[Point]], Figure], str]] = {
    "quality": (
        quality,
        "Left and middle: samples against what they cost, with two standard errors; the dotted "
        "line is the held-out text itself. Right: one against the other, since quality is cheap "
        "where entropy is given up; the star is the held-out text. Dashed: samplers that hide "
        "tokens again.",
    ),
    "bits": (
        bits,
        "No samples are drawn here: bits are the exact law's on held-out rows, each along one "
        "random order, and NFE are its exact expected passes on the same rows.",
    ),
    "entropy": (
        entropy,
        "Each curve is one sampler at one cost, with its temperature (dots), top-p (squares) or "
        "noise (triangles) turned; bars are one standard error; the star is the held-out text. "
        "Of two samplers at equal cost the upper right one is better.",
    ),
    "acceptance": (
        acceptance,
        "Self-speculative settings, token by token verification. Left: the share of drafts that "
        "were scanned and accepted, with two standard errors of a share of so many. Right: how "
        "many are accepted after one trunk pass.",
    ),
    "losses": (
        losses,
        "What the draft loses at a masked token, and the target, which also sees the row's tokens "
        "of lower rank; means over held-out rows, orders and masked tokens.",
    ),
}


def _drawable(points: Sequence[Point]) -> list[str]:
    kinds = {point["kind"] for point in points}
    sampled = any(p["kind"] == "samples" and p["sampler"] == "speculative" for p in points)
    profiled = any(p["kind"] == "profile" and p["draft"] for p in points)
    there = {
        "quality": "samples" in kinds,
        "bits": "law" in kinds,
        "entropy": bool(turned(points)) and metric_of(points) != "entropy",
        "acceptance": sampled,
        "losses": profiled,
    }
    return [name for name, drawable in there.items() if drawable]


def write_report(folder: Path, points: Sequence[Point], *, page: bool = False) -> list[str]:
    """Write table.md and the figures into `folder`, and report.html if asked; their names."""
    made = ["table.md"]
    (folder / "table.md").write_text(table(points), encoding="utf-8")
    for name, (header, rows) in {
        "equal-entropy.md": entropy_cells(points),
        "laws.md": law_cells(points),
    }.items():
        if rows:
            made.append(name)
            (folder / name).write_text(markdown(header, rows), encoding="utf-8")
        else:  # what an earlier report of other points has left would be no table of these
            (folder / name).unlink(missing_ok=True)
    vectors: dict[str, str] = {}
    for name in _drawable(points):
        figure = _FIGURES[name][0](points)
        figure.savefig(folder / f"{name}.png", dpi=130)
        made.append(f"{name}.png")
        if page:
            held = io.BytesIO()
            figure.savefig(held, format="svg", metadata={"Date": None})
            vectors[name] = base64.b64encode(held.getvalue()).decode()
        plt.close(figure)
    if page:
        (folder / "report.html").write_text(_page(points, vectors), encoding="utf-8")
        made.append("report.html")
    return made


def _page(points: Sequence[Point], vectors: dict[str, str]) -> str:
    run = points[0]
    header, rows = cells(points)
    shown = "".join(
        f'<figure><img alt="{name}" src="data:image/svg+xml;base64,{vectors[name]}">'
        f"<figcaption>{html.escape(_FIGURES[name][1])}</figcaption></figure>"
        for name in vectors
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    texts = "".join(
        f"<dt>{html.escape(family(p))}, {p['nfe']:.1f} NFE</dt>"
        + "".join(f"<dd>{html.escape(text)}</dd>" for text in p.get("texts", [])[:1])
        for p in sorted((p for p in points if p["kind"] == "samples"), key=lambda p: p["nfe"])
    )
    about = {
        "model": f"{run['model']}, {' + '.join(map(str, run['layers']))} layers",
        "weights": run["weights"][:16],
        "held-out rows": f"{run['rows']} of {run['length']} tokens from {run['data']['file']}",
        "samples": f"{run['num']} at each setting, seed {run['seed']}",
        "machine": ", ".join(f"{key} {value}" for key, value in run["machine"].items()),
        "versions": ", ".join(f"{key} {value}" for key, value in run["versions"].items()),
    }
    facts = "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in about.items())
    template = files("specmask.web").joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=html.escape(f"Samplers on {run['model']}"),
        version=html.escape(specmask.__version__),
        facts=facts,
        figures=shown,
        header="".join(f"<th>{html.escape(name)}</th>" for name in header),
        rows=body,
        texts=texts,
    )
