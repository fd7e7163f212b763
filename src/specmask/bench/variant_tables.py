"""Tables and figure of training choices, from their results file alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from specmask.bench.compare import cost_at, factors_at_equal, frontier
from specmask.bench.plot import OURS, PLAIN, nfe_axis
from specmask.bench.run import Point
from specmask.bench.tables import markdown
from specmask.errors import UserError

BUDGETS = (6, 8, 12, 16)
"""NFE at which variants are compared."""
STEPS = (8, 12, 16)
"""Of the plain network, whose quality the factors are at."""
BASE = "5 + 1"
PLAIN_NAME = "6 + 0"


class Trained:
    """What the file says of one variant trained with one seed."""

    def __init__(self, about: Point, laws: Sequence[Point]) -> None:
        self.name, self.seed, self.about = about["name"], about["seed"], about
        has_head = about["layers"][1] > 0
        self.points = [p for p in laws if p["plain"] is not has_head]
        """Its laws: self-speculative where it has a head, else plain."""
        self.frontier = frontier(self.points, "bits", -1)

    def at(self, nfe: float) -> NDArray[np.float64] | None:
        """(rows,) bits at a cost, on the line in log NFE between two settings of the frontier.

        None for a cost below its cheapest setting; beyond its dearest it has that one's.
        """
        curve = self.frontier
        costs = [p["nfe"] for p in curve]
        if nfe < costs[0]:
            return None
        high = next((k for k, cost in enumerate(costs) if cost >= nfe), len(costs) - 1)
        low = max(0, high - 1)
        a, b = (np.array(curve[k]["each"]["bits"]) for k in (low, high))
        if costs[high] <= nfe or low == high:
            return b
        share = math.log(nfe / costs[low]) / math.log(costs[high] / costs[low])
        return (1 - share) * a + share * b


def read(points: Sequence[Point]) -> list[Trained]:
    """The variants of a results file, in its order."""
    laws: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        if point["kind"] == "law" and "variant" in point:
            laws.setdefault((point["variant"], point["train_seed"]), []).append(point)
    return [
        Trained(point, laws[point["name"], point["seed"]])
        for point in points
        if point["kind"] == "variant" and (point["name"], point["seed"]) in laws
    ]


def table(trained: Sequence[Trained], base: str, groups: Sequence[str]) -> str:
    """Markdown: the variants of some groups against the base, over all seeds there are.

    Differences are paired: the same rows, orders and seed. Their error is that over rows, and with
    several seeds that over seeds beside it.
    """
    by_name: dict[str, list[Trained]] = {}
    for one in trained:
        by_name.setdefault(one.name, []).append(one)
    bases = {one.seed: one for one in by_name.get(base, [])}
    plain = {one.seed: one for one in by_name.get(PLAIN_NAME, [])}
    header = ["variant", "layers", "what differs", "seeds", "draft", "target"]
    header += [f"bits − base at {nfe} NFE" for nfe in BUDGETS]
    header += [f"factor at plain's {steps} steps" for steps in STEPS]
    rows = []
    for name, ones in by_name.items():
        about = ones[0].about
        if about["group"] not in groups:
            continue
        row = [name, " + ".join(map(str, about["layers"])), about["why"], str(len(ones))]
        row += [f"{np.mean([one.about[f'{law}_bits'] for one in ones]):.3f}" for law in _LAWS]
        row += [_difference(ones, bases, nfe, name == base) for nfe in BUDGETS]
        row += [_factor(ones, plain, steps) for steps in STEPS]
        rows.append(row)
    return markdown(header, rows)


_LAWS = ("draft", "target")


def _difference(ones: Sequence[Trained], bases: dict[int, Trained], nfe: float, own: bool) -> str:
    """In bits per character; the base itself has its own bits."""
    each = []
    for one in ones:
        mine = one.at(nfe)
        theirs = np.zeros(1) if own else bases[one.seed].at(nfe) if one.seed in bases else None
        if mine is None or theirs is None:
            return "–"
        each.append(mine - theirs)
    value = float(np.mean([x.mean() for x in each]))
    rows = np.mean(
        each, axis=0
    )  # the same rows for every seed: their error does not fall with seeds
    error = float(rows.std(ddof=1)) / math.sqrt(len(rows))
    if len(each) > 1:
        seeds = float(np.std([x.mean() for x in each], ddof=1)) / math.sqrt(len(each))
        error = math.hypot(error, seeds)
    return f"{value:.3f} ± {error:.3f}" if own else f"{value:+.3f} ± {error:.3f}"


def _factor(ones: Sequence[Trained], plain: dict[int, Trained], steps: int) -> str:
    """`_factor_of` each seed that plain was trained with; with its interval where there is one."""
    each = [_factor_of(one, plain, steps) for one in ones]
    each = [told for told in each if told != "–"]
    if len(each) > 1:
        each = [told.partition(" (")[0] for told in each]
    return ", ".join(each) or "–"


def _factor_of(one: Trained, plain: dict[int, Trained], steps: int) -> str:
    """NFE of the plain network of all blocks ÷ ours at its quality, and a bootstrap interval."""
    if one.seed not in plain or one.name == PLAIN_NAME:
        return "–"
    theirs = [p for p in plain[one.seed].frontier if p["settings"]["steps"] == steps]
    if not theirs:
        return "–"
    cost = cost_at(one.frontier, "bits", -1, theirs[0]["bits"])
    if cost == math.inf:
        return "never as good"
    if cost == 0:  # its cheapest setting is better already
        return f"above {theirs[0]['nfe'] / one.frontier[0]['nfe']:.2f}"
    (found,) = factors_at_equal(one.frontier, theirs, "bits", -1)  # our cost ÷ plain's
    low, high = (math.inf if f == 0 else 1 / f for f in (found.high, found.low))
    interval = f"{low:.2f}–{'∞' if high == math.inf else f'{high:.2f}'}"
    return f"{theirs[0]['nfe'] / cost:.2f} ({interval})"


def figure(
    path: Path, trained: Sequence[Trained], panels: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Exact bits against expected NFE: a panel of some variants each, first seed."""
    shown = [
        (title, [o for n in names for o in trained if o.name == n and o.seed == 0])
        for title, names in panels
    ]
    drawn, axes = plt.subplots(
        1, len(shown), figsize=(5 * len(shown), 4), layout="constrained", squeeze=False
    )
    for axis, (title, ones) in zip(axes[0], shown, strict=True):
        colours = iter(plt.get_cmap("tab10").colors)  # type: ignore[attr-defined]
        for one in ones:
            style: dict[str, Any] = {"linewidth": 1.3, "markersize": 3}
            if one.about["layers"][1] == 0:
                style |= {"color": PLAIN, "linewidth": 2}
            elif one.name == BASE:
                style |= {"color": OURS, "linewidth": 2.4}
            else:
                style |= {"color": next(colours)}
            x, y = ([p[key] for p in one.frontier] for key in ("nfe", "bits"))
            axis.plot(x, y, marker="o", label=one.name, **style)
        axis.set_title(title, fontsize=10)
        nfe_axis(axis)
        axis.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel("exact bits per character, held-out rows")
    drawn.savefig(path, dpi=150)
    plt.close(drawn)


def panels(trained: Sequence[Trained]) -> list[tuple[str, list[str]]]:
    """Title and variants of each panel of the figure; base and plain stand in both."""
    groups = {one.name: one.about["group"] for one in trained}
    both = [BASE, PLAIN_NAME]

    def names(wanted: str) -> list[str]:
        return both + [n for n, group in groups.items() if group == wanted and n not in both]

    return [("the network", names("ablation")), ("its training", names("gain"))]


def tables(trained: Sequence[Trained]) -> list[str]:
    """The table of each panel."""
    every = ("ablation", "gain")
    return [
        table([o for o in trained if o.name in names], BASE, every) for _, names in panels(trained)
    ]


def write_page(out: Path, points: Sequence[Point]) -> None:
    """ablations.md, gain.md and frontiers.png in `out`."""
    trained = read(points)
    if not any(one.name == BASE for one in trained):
        raise UserError(
            f"no law of {BASE}, the network that all others are compared with: train it first"
        )
    for name, text in zip(("ablations.md", "gain.md"), tables(trained), strict=True):
        (out / name).write_text(text, encoding="utf-8")
    figure(out / "frontiers.png", trained, panels(trained))
