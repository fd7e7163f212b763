"""Figures from results files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from specmask.bench.compare import frontier
from specmask.bench.run import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PLAIN = "#0b6e4f", "#b04a2f"
_MODELS = ("#777777", OURS, PLAIN, "#2f5fb0")
_TICKS = (2, 4, 8, 16, 32, 64, 128, 256)


def quality_figure(path: Path, points: Sequence[Point]) -> None:
    """Spelling accuracy, entropy and exact bits per character against NFE, plain and ours."""
    samples = [p for p in points if p["kind"] == "samples"]
    laws = [p for p in points if p["kind"] == "law"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for label, colour, mine in (("plain", PLAIN, False), ("self-speculative", OURS, True)):
        drawn = sorted(
            (p for p in samples if (p["sampler"] == "speculative") is mine), key=lambda p: p["nfe"]
        )
        for axis, key in ((axes[0], "spelling"), (axes[1], "entropy")):
            axis.errorbar(
                [p["nfe"] for p in drawn],
                [p[key] for p in drawn],
                yerr=[2 * p[f"{key}_se"] for p in drawn],
                color=colour,
                marker="o",
                markersize=4,
                linewidth=1.5,
                label=label,
            )
        best = frontier([p for p in laws if p["plain"] is not mine], "bits", -1)
        axes[2].errorbar(
            [p["nfe"] for p in best],
            [p["bits"] for p in best],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.5,
            label=label,
        )
    titles = (
        "spelling accuracy of samples",
        "unigram entropy of samples (nats)",
        "exact bits per character, held-out rows",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        nfe_axis(axis)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def evidence_figure(path: Path, points: Sequence[Point]) -> None:
    """Spelling accuracy against NFE and against entropy; below, exact bits against expected NFE.

    The sweep is drawn beside the frontiers: a thin curve a window, along its numbers of rounds.
    """
    figure, axes = plt.subplot_mosaic("AB;CC", figsize=(9, 7), layout="constrained")
    samples = [p for p in points if p["kind"] == "samples"]
    laws = [p for p in points if p["kind"] == "law"]
    for label, colour, mine in (("plain", PLAIN, False), ("self-speculative", OURS, True)):
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "label": label}
        drawn = sorted(
            (p for p in samples if (p["sampler"] == "speculative") is mine), key=lambda p: p["nfe"]
        )
        for name, x in (("A", "nfe"), ("B", "entropy")):
            axes[name].errorbar(
                [p[x] for p in drawn],
                [p["spelling"] for p in drawn],
                xerr=[2 * p["entropy_se"] for p in drawn] if x == "entropy" else None,
                yerr=[2 * p["spelling_se"] for p in drawn],
                linewidth=0,
                elinewidth=1,
                **style,
            )
        best = frontier(drawn, "spelling", 1)
        axes["A"].plot(*([p[k] for p in best] for k in ("nfe", "spelling")), color=colour)
        best = frontier([p for p in laws if p["plain"] is not mine], "bits", -1)
        axes["C"].plot(
            [p["nfe"] for p in best], [p["bits"] for p in best], linewidth=2.6, zorder=5, **style
        )
    ours = [p for p in laws if p["sampler"] == "speculative" and _usual(p)]
    windows = list(dict.fromkeys(p["settings"]["window"] for p in ours))
    kinds = list(dict.fromkeys(window.partition(":")[0] for window in windows))
    labelled = set()
    for window in windows:
        kind = window.partition(":")[0]
        curve = [p for p in ours if p["settings"]["window"] == window]
        curve = sorted(curve, key=lambda p: p["settings"]["rounds"])
        axes["C"].plot(
            *([p["nfe"] for p in curve], [p["bits"] for p in curve]),
            color=plt.get_cmap("viridis")(kinds.index(kind) / max(1, len(kinds) - 1)),
            marker=".",
            markersize=4,
            linewidth=0.9,
            label=f"{kind} window" if kind not in labelled else None,
        )
        labelled.add(kind)
    axes["A"].set_ylabel("spelling accuracy of samples")
    axes["B"].set_xlabel("unigram entropy of samples (nats)")
    axes["B"].set_ylabel("spelling accuracy of samples")
    axes["B"].locator_params(axis="x", nbins=5)
    if ours:  # plain's cheapest steps are so much worse that the sweep would be a line
        low, high = (
            f(p["bits"] for p in laws if p["sampler"] == "speculative") for f in (min, max)
        )
        axes["C"].set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
        axes["C"].set_xlim(left=0.8 * min(p["nfe"] for p in ours))
    axes["C"].set_ylabel("exact bits per character, held-out rows")
    nfe_axis(axes["A"])
    nfe_axis(axes["C"])
    _plain(axes["B"])
    axes["A"].legend(frameon=False)
    axes["C"].legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _usual(point: Point) -> bool:
    """Whether all settings but window and rounds are the defaults."""
    usual = {"first": "accept", "verification": "token", "order": "random", "stop": 0.0}
    return all(point["settings"].get(key, value) == value for key, value in usual.items())


def restrictions_figure(path: Path, panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    """Exact bits against expected NFE: a panel a setting, the frontier of each of its values."""
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        lines, 2, figsize=(9, 3.4 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        for k, (label, points) in enumerate(curves.items()):
            best = frontier(points, "bits", -1)
            axis.plot(
                *([p["nfe"] for p in best], [p["bits"] for p in best]),
                color=plt.get_cmap("viridis")(0.92 * k / max(1, len(curves) - 1)),
                marker="o",
                markersize=3,
                linewidth=1.4,
                label=label,
            )
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("exact bits per character")
        nfe_axis(axis)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


Panels = Sequence[tuple[str, str, str]]
"""Kind of point, key of a measure, title."""
PROTEIN_PANELS: Panels = (
    ("law", "excess", "exact nats per residue above the data's law"),
    ("law", "nats", "exact nats per residue, held-out rows"),
    ("samples", "judge", "judge's nats per residue of samples"),
    ("samples", "rmsd", "predicted RMSD of samples (Å)"),
    ("samples", "possible", "share of samples that the data's law can make"),
    ("samples", "substitutions", "framework substitutions per sample"),
    ("samples", "unique", "unique fraction of samples"),
    ("samples", "composition", "divergence of residue composition (nats)"),
)


def protein_figure(
    path: Path, points: Sequence[Point], panels: Panels = PROTEIN_PANELS, columns: int = 3
) -> None:
    """Quality against NFE, a curve for each model and kind of sampler; what was not measured is
    left out."""
    there = [(kind, key, title) for kind, key, title in panels if any(key in p for p in points)]
    if any(key == "excess" for _, key, _ in there):  # the same curve, from where it should end
        there = [panel for panel in there if panel[1] != "nats"]
    columns = min(columns, len(there))
    lines = -(-len(there) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    # the first colour is that of the untouched model, shown or not
    names = list(dict.fromkeys(["untouched", *(p["model"] for p in points if "sampler" in p)]))
    for axis in axes.flat[len(there) :]:
        axis.axis("off")
    for axis, (kind, key, title) in zip(axes.flat, there, strict=False):
        for model in names:
            for sampler, style in (("ancestral", "--"), ("speculative", "-")):
                mine = [
                    p
                    for p in points
                    if p["kind"] == kind and p["model"] == model and p.get("sampler") == sampler
                ]
                mine = frontier(mine, key, -1) if kind == "law" else mine
                mine = sorted((p for p in mine if key in p), key=lambda p: p["nfe"])
                if not mine:
                    continue
                axis.errorbar(
                    [p["nfe"] for p in mine],
                    [p[key] for p in mine],
                    yerr=[2 * (p.get(f"{key}_se") or 0) for p in mine] if kind != "law" else None,
                    color=_MODELS[names.index(model) % len(_MODELS)],
                    linestyle=style,
                    marker="o",
                    markersize=4,
                    linewidth=1.5,
                    label=f"{model}, {'plain' if sampler == 'ancestral' else 'self-speculative'}",
                )
        for p in points:
            if p["kind"] == "held-out" and key in ("judge", "rmsd") and key in p:
                axis.axhline(p[key], color="0.5", linestyle=":", label="held-out chains")
        axis.set_title(title, fontsize=10)
        if key == "excess" and any(p.get(key, 0) > 0 for p in points if p["kind"] == kind):
            axis.set_yscale("log")
        if key == "unique":
            axis.set_ylim(top=1.1)
        axis.set_ylim(bottom=0 if key in ("unique", "substitutions", "possible") else None)
        nfe_axis(axis)
        axis.set_xlabel("NFE (passes of the pretrained model)")
    curves = [pair for a in axes.flat for pair in zip(*a.get_legend_handles_labels(), strict=True)]
    by_label = {label: handle for handle, label in reversed(curves)}
    drawn = [by_label[k] for k in sorted(by_label)], sorted(by_label)
    if len(there) < axes.size:  # where nothing is drawn there is room
        axes.flat[-1].legend(*drawn, frameon=False, loc="center")
    else:
        axes.flat[0].legend(*drawn, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def loss_figure(path: Path, log: Sequence[dict[str, Any]]) -> None:
    """Both losses against training tokens, in bits per character (paper, Figure 2)."""
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    curves: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    before = last = 0  # tokens of earlier stages count too
    for row in log:
        if "config" in row:  # a header: the next stage begins
            before += last
        else:
            last = row["tokens"]
            curves[row["kind"]].append({**row, "tokens": before + last})
    for name, colour in (("draft", PLAIN), ("target", OURS)):
        for kind, style in (
            ("train", {"alpha": 0.3, "linewidth": 1}),
            ("validation", {"marker": "o", "markersize": 4, "label": f"{name}, validation"}),
        ):
            x = [row["tokens"] for row in curves[kind]]
            axis.plot(x, [row[f"{name}_bits"] for row in curves[kind]], color=colour, **style)
    axis.set_xscale("log")
    axis.set_xlabel("training tokens")
    axis.set_ylabel("bits per token")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def nfe_axis(axis: Axes) -> None:
    """NFE on a logarithmic axis, ticks at powers of two."""
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set_xlabel("NFE (passes of the whole network)")
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
