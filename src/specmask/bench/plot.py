"""Figures from results files alone."""

from __future__ import annotations

from collections.abc import Sequence
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


def protein_figure(path: Path, points: Sequence[Point]) -> None:
    """Quality against NFE, a curve for each model and kind of sampler; what was not measured is
    left out."""
    panels = (
        ("law", "excess", "exact nats per residue above the data's law"),
        ("law", "nats", "exact nats per residue, held-out rows"),
        ("samples", "judge", "judge's nats per residue of samples"),
        ("samples", "rmsd", "predicted RMSD of samples (Å)"),
        ("samples", "substitutions", "framework substitutions per sample"),
        ("samples", "unique", "unique fraction of samples"),
        ("samples", "composition", "divergence of residue composition (nats)"),
    )
    there = [(kind, key, title) for kind, key, title in panels if any(key in p for p in points)]
    if any(key == "excess" for _, key, _ in there):  # the same curve, from where it should end
        there = [panel for panel in there if panel[1] != "nats"]
    columns = min(3, len(there))
    lines = -(-len(there) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    names = list(dict.fromkeys(p["model"] for p in points if "sampler" in p))
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
        axis.set_title(title, fontsize=10)
        if key == "excess" and any(p.get(key, 0) > 0 for p in points if p["kind"] == kind):
            axis.set_yscale("log")
        axis.set_ylim(bottom=0 if key in ("unique", "substitutions") else None)
        nfe_axis(axis)
        axis.set_xlabel("NFE (passes of the pretrained model)")
    axes.flat[0].legend(frameon=False, fontsize=8)
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
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
