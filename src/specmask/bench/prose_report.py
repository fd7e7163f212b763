"""Table, figure and section of `specmask.bench.prose`, from its results.jsonl alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from specmask.bench.benchmark import read_results
from specmask.bench.compare import factors_at_equal, frontier, thin
from specmask.bench.plot import OURS, PLAIN, nfe_axis
from specmask.bench.run import Point, estimate
from specmask.bench.tables import markdown, told

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def near(laws: Sequence[Point], budget: float) -> Point | None:
    """The setting for a budget of NFE, by its exact law: of those that cost from four fifths of it
    to all of it the one of the fewest bits, or else the dearest of the cheaper ones, if any."""
    cheaper = [p for p in laws if p["nfe"] <= budget and p["bits"] is not None]
    close = [p for p in cheaper if p["nfe"] >= 0.8 * budget]
    if close:
        return min(close, key=lambda p: p["bits"])
    return max(cheaper, key=lambda p: p["nfe"], default=None)


def kinds(points: Sequence[Point], kind: str) -> tuple[list[Point], list[Point]]:
    """The points of plain sampling and those of self-speculation, of one kind."""
    mine = [p for p in points if p["kind"] == kind]
    return (
        [p for p in mine if p["sampler"] == "ancestral"],
        [p for p in mine if p["sampler"] == "speculative"],
    )


def report(points: Sequence[Point]) -> str:
    """Markdown: the two samplers at each budget, cost at equal quality, every sampled setting, and
    the frontiers of the exact laws."""
    parts = [_budget_table(points), factor_table(points), _sample_table(points)]
    return "\n".join([*parts, _law_table(points)])


def section(folder: Path) -> str | None:
    """Markdown for a page beside `folder`: table, factors, figure and what was measured on what.

    None where no setting was sampled yet.

    Raises:
        UserError: results.jsonl is no results file.
    """
    file = folder / "results.jsonl"
    points = read_results(file) if file.is_file() else []
    if not any(p["kind"] == "samples" for p in points):
        return None
    figure = f"![nats, perplexity and entropy against NFE]({folder.name}/quality.png)\n"
    return "\n".join([_budget_table(points), factor_table(points), figure, caption(points)])


def caption(points: Sequence[Point]) -> str:
    """Model, data, judge, sizes, seed, versions, machine and command, in Markdown."""
    run = points[0]
    trunk, head = run["layers"]
    grown = next((p for p in points if p["kind"] == "background"), {})
    tokens = grown.get("tokens", 0) / 1e6
    trained = f", trained on about {tokens:.0f} M tokens" if tokens else ""
    if grown.get("draft_nll"):
        trained += (
            f" to {grown['draft_nll']:.3f} nats per token of the draft and "
            f"{grown['target_nll']:.3f} of the target on validation rows"
        )
    products = ", drawn with bfloat16 matrix products" if run["bf16"] else ""
    judge, where, versions = run["judge"], run["machine"], run["versions"]
    lines = [
        f"Model: {trunk} + {head} layers, {run['parameters'] / 1e6:.1f} M parameters, "
        f"{run['vocabulary']} tokens, rows of {run['length']}{trained}.",
        f"Judge: {judge['name']}, {judge['parameters'] / 1e6:.0f} M parameters; perplexities of "
        "two judges do not compare.",
        *([grown["about"]] if grown.get("about") else []),
        f"NFE counts passes of the whole network; a plain step counts {trunk}/{trunk + head}. "
        "For each budget both samplers have the setting of the fewest exact nats, on "
        f"{run['rows']} held-out rows, among those whose expected cost there is four fifths of it "
        "to all of it, or else the dearest below; the NFE told are those metered on the samples. "
        f"{run['num']} samples a setting{products}, and as many held-out rows for the judge; seed "
        f"{run['seed']}; ± is one standard error, intervals are by bootstrap.",
        f"specmask {versions['specmask']}, torch {versions['torch']}, Python "
        f"{versions['python']}, {where['system']} on {where['device']}, "
        f"threads: {where['threads']}. Made by",
        "",
        "```console",
        command(run),
        "```",
    ]
    return "\n".join(lines) + "\n"


def command(run: Point) -> str:
    """What measures the same again, given the model, the text and the judge of a run."""
    name, budgets = run["judge"]["name"], " ".join(f"{budget:g}" for budget in run["budgets"])
    words = ["python -m specmask.bench.prose MODEL --data FILE --judge FOLDER"]
    words += [f"--gguf-file {name}"] if name.endswith(".gguf") else []
    words += [f"--out docs/prose --rows {run['rows']} --num {run['num']} --seed {run['seed']}"]
    return " ".join([*words, f"--nfe {budgets}", *(["--bf16"] if run["bf16"] else [])])


def _key(point: Point) -> str:
    return repr((point["sampler"], sorted(point["settings"].items())))


def _sampled(points: Sequence[Point], laws: Sequence[Point], budget: float) -> Point | None:
    """The samples of the setting that a budget chooses, if they are there."""
    law = near(laws, budget)
    same = [p for p in points if p["kind"] == "samples" and law and _key(p) == _key(law)]
    return same[0] if same else None


def _judgement(point: Point | None) -> list[str]:
    if point is None:
        return ["–"] * 3
    nfe = f"{point['nfe']:.1f}" if "nfe" in point else "–"
    return [nfe, _pm(point, "perplexity", 0), _pm(point, "entropy", 3)]


def _pm(point: Point, key: str, places: int, unit: float = 1.0) -> str:
    error = point[f"{key}_se"]
    told_error = "" if error is None else f" ± {unit * error:.{places}f}"
    return f"{unit * point[key]:.{places}f}{told_error}"


def _budget_table(points: Sequence[Point]) -> str:
    head = ["budget, NFE"]
    for name in ("plain", "self-speculation"):
        head += [f"{name}, NFE", "perplexity of the judge", "unigram entropy, nats"]
    families, rows = kinds(points, "law"), []
    for budget in points[0]["budgets"]:
        found = [_sampled(points, laws, budget) for laws in families]
        if any(found):
            rows.append([f"{budget:g}", *(cell for one in found for cell in _judgement(one))])
    for held in (p for p in points if p["kind"] == "held-out"):
        rows.append(["held-out rows", *_judgement(held), "–", "–", "–"])
    return markdown(head, rows)


_LN2 = math.log(2)
_QUALITIES = (
    ("bits", "law", "exact nats per token", lambda bits: f"{bits * _LN2:.3f}"),
    (
        "judge",
        "samples",
        "e to the judge's mean nats of a text",
        lambda nats: f"{math.exp(nats):.0f}",
    ),
)


def factor_table(points: Sequence[Point]) -> str:
    """Plain NFE ÷ ours at the quality of each of our settings that plain sampling reaches.

    The last column counts a plain step as one pass: what the trunk's quality would cost at the
    price of a plain model of all layers, which is the comparison that the paper calls fair.
    """
    trunk, head = points[0]["layers"]
    rows = []
    for key, kind, name, shown in _QUALITIES:
        plain, ours = kinds(points, kind)
        curve = frontier(ours, key, -1)
        for f in factors_at_equal(plain, thin(curve, 1.4), key, -1):
            times = [f"{n:.2f}" for n in (f.factor, f.factor * (trunk + head) / trunk)]
            high = "∞" if math.isinf(f.high) else f"{f.high:.2f}"
            cells = [f"{f.nfe:.1f}", times[0], f"{f.low:.2f} to {high}", times[1]]
            rows.append([name, shown(f.quality), *cells])
        best = frontier(plain, key, -1)[-1:]
        beyond = [p for p in curve if best and p[key] < best[0][key]]
        if beyond:
            what = f"below {shown(best[0][key])}, plain's best, at {best[0]['nfe']:.1f} NFE"
            what += _gain(best[0], beyond[0]) if kind == "law" else ""
            rows.append([name, what, f"from {beyond[0]['nfe']:.1f}", "–", "–", "–"])
    head_row = ["equal", "at", "our NFE", "plain NFE ÷ ours", "95 % interval"]
    return markdown([*head_row, "with a plain step as 1"], rows)


def _gain(plain: Point, ours: Point) -> str:
    """Nats between two laws, from row to row: rows differ more than laws do."""
    rows = [torch.tensor(p["each"]["bits"], dtype=torch.float64) for p in (plain, ours)]
    gain, error = estimate(_LN2 * (rows[0] - rows[1]))
    return f", by {gain:.3f} ± {error:.3f}"


def _sample_table(points: Sequence[Point]) -> str:
    head = ["sampler", "settings", "NFE", "perplexity of the judge", "unigram entropy, nats"]
    head += ["distinct 2-grams", "distinct 4-grams", "exact nats", "s a sample"]
    laws = {_key(p): p for p in points if p["kind"] == "law"}
    rows = []
    for p in (p for p in points if p["kind"] == "held-out"):
        grams = [_pm(p, "distinct_2", 3), _pm(p, "distinct_4", 3)]
        rows.append(["held-out rows", "", *_judgement(p), *grams, "–", "–"])
    samples = [p for p in points if p["kind"] == "samples"]
    for p in sorted(samples, key=lambda p: p["nfe"]):
        grams = [_pm(p, "distinct_2", 3), _pm(p, "distinct_4", 3)]
        nats = _pm(laws[_key(p)], "bits", 3, _LN2)
        seconds = f"{p['seconds_per_sample']:.2f}"
        rows.append([p["sampler"], told(p), *_judgement(p), *grams, nats, seconds])
    return markdown(head, rows)


def _papers(laws: Sequence[Point]) -> list[Point]:
    """The paper's settings: those under its rule for a pass's first rank."""
    return [p for p in laws if p["settings"]["first"] == "verify" and p["bits"] is not None]


def _law_table(points: Sequence[Point]) -> str:
    """The best settings at rising cost, and the paper's own."""
    plain, ours = kinds(points, "law")
    rows = []
    for name, laws in (
        ("plain", thin(frontier(plain, "bits", -1))),
        ("self-speculation", thin(frontier(ours, "bits", -1))),
        ("self-speculation, the paper's settings", sorted(_papers(ours), key=lambda p: p["nfe"])),
    ):
        for p in laws:
            rows.append([name, told(p), f"{p['nfe']:.1f}", _pm(p, "bits", 3, _LN2)])
    return markdown(["law", "settings", "expected NFE", "exact nats per token"], rows)


def figure(path: Path, points: Sequence[Point]) -> None:
    """Exact nats, the judge's perplexity and unigram entropy against NFE, plain and ours."""
    drawing, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    panels = (
        ("bits", "law", "exact nats per token, held-out rows", _LN2),
        ("perplexity", "samples", "judge's perplexity of samples", 1.0),
        ("entropy", "samples", "unigram entropy of a sample (nats)", 1.0),
    )
    for axis, (key, kind, title, unit) in zip(axes, panels, strict=True):
        for label, colour, mine in zip(
            ("plain", "self-speculation"), (PLAIN, OURS), kinds(points, kind), strict=True
        ):
            drawn = frontier(mine, key, -1) if kind == "law" else mine
            drawn = sorted(drawn, key=lambda p: p["nfe"])
            axis.errorbar(
                [p["nfe"] for p in drawn],
                [unit * p[key] for p in drawn],
                yerr=None if kind == "law" else [2 * p[f"{key}_se"] for p in drawn],
                color=colour,
                marker="o",
                markersize=4,
                linewidth=1.5,
                label=label,
            )
        for held in (p for p in points if p["kind"] == "held-out" and kind == "samples"):
            axis.axhline(held[key], color="#444444", linewidth=0.8, linestyle=":")
        axis.set_title(title, fontsize=10)
        nfe_axis(axis)
    paper = _papers(kinds(points, "law")[1])
    axes[0].plot(
        [p["nfe"] for p in paper],
        [_LN2 * p["bits"] for p in paper],
        "x",
        color=OURS,
        markersize=5,
        label="self-speculation, the paper's settings",
    )
    axes[0].legend(frameon=False, fontsize=8)
    _perplexity_axis(axes[1])
    axes[1].plot([], [], color="#444444", linewidth=0.8, linestyle=":", label="held-out rows")
    axes[1].legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def _perplexity_axis(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
