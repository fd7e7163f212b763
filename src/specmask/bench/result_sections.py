"""The sections of the evidence page, each a function of the results files.

A section returns its Markdown, every number computed, or None where its results file is not there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from specmask.bench import prose_report, repeat, report, seconds, variant_tables
from specmask.bench.compare import Factor, at_cost, cost_at, cost_ratios, frontier
from specmask.bench.evidence import (
    CARD,
    CHOOSER,
    EXPERIMENTS,
    PROSE,
    REPEATED,
    SETTINGS,
    ZOO,
    Evidence,
    machine,
)
from specmask.bench.plot import (
    PROTEIN_PANELS,
    evidence_figure,
    loss_figure,
    protein_figure,
    restrictions_figure,
)
from specmask.bench.proteins import (
    HELD_OUT,
    UNTOUCHED,
    factor_rows,
    factor_table,
    sample_table,
    with_structures,
)
from specmask.bench.run import Point
from specmask.bench.ship import factors, families, stages_of
from specmask.bench.tables import cells, family, markdown, told

LOW = 1.5
"""Factors below this are listed."""
NEAR = 32.0
"""NFE at which settings of many costs are shown."""


def training(e: Evidence) -> str | None:
    """Draft and target loss against training tokens (paper, Figure 2)."""
    log = e.points(ZOO / "log.jsonl")
    if not log:
        return None
    picture = e.figure(
        "losses", "both losses against training tokens", lambda path: loss_figure(path, log)
    )
    stages = stages_of(log)
    lengths = series([str(stage[0]["network"]["length"]) for stage in stages])
    seeds = series([str(stage[0]["config"]["seed"]) for stage in stages])
    tokens = sum(stage[-1]["tokens"] for stage in stages) / 1e6
    minutes = sum(stage[-1]["seconds"] for stage in stages) / 60
    return f"""## Two losses from one network (the paper's Figure 2)

{picture}

Draft and target loss in bits per character, of training batches (pale) and of
{stages[-1][0]["config"]["eval_rows"]} validation rows under averaged weights (dots), against
training tokens of all stages, on a logarithmic axis. Made by
`specmask train text8-small --data FILE`, {len(stages)} stages on rows of {lengths} characters,
seeds {seeds}: {tokens:.1f} M tokens, {minutes:.0f} minutes; its text and machine are on the
[card]({CARD}). Where validation rows change their length between two stages, so does their loss.

At the end: draft {validation(log, "draft")}, target {validation(log, "target")} bits per character.
{_parting(stages)}"""


def validation(log: Sequence[Point], name: str) -> str:
    """The last validation loss of draft or target, in bits, as the card tells it."""
    return f"{[row for row in log if row.get('kind') == 'validation'][-1][f'{name}_bits']:.3f}"


def _parting(stages: Sequence[Sequence[Point]]) -> str:
    """From when on the target is below the draft."""
    before, seen = 0, []
    for stage in stages:
        seen += [
            (before + row["tokens"], row["draft_bits"] - row["target_bits"])
            for row in stage
            if row.get("kind") == "validation"
        ]
        before += stage[-1]["tokens"]
    below = list(itertools.takewhile(lambda one: one[1] > 0, reversed(seen)))
    if not below:
        return "The target is not below the draft at the last validation."
    return (
        f"From {below[-1][0] / 1e6:.1f} M tokens on the target is below the draft at every "
        "validation."
    )


def quality(e: Evidence) -> str | None:
    """Quality against cost on the shipped character model (paper, Figure 3)."""
    points = e.points(ZOO / "results.jsonl")
    if not points:
        return None
    picture = e.figure("quality", README_ALT, lambda path: evidence_figure(path, points))
    trunk, head = e.layers()
    low = [(one.name, f) for one in e.equals for f in one.factors if f.factor < LOW]
    return f"""## Quality against cost (the paper's Figure 3)

{picture}

{_quality_caption(e, points)}

**How much cheaper.** NFE of plain sampling ÷ NFE of self-speculation at the quality of one of our
settings, with 95 % intervals of a bootstrap over samples or rows (1000 draws, our settings held
fixed). The last column counts a plain step as 1 pass. That is what the trunk's quality would cost
at the price of a plain model of all {trunk + head} layers; such a model, with as many layers to
draft with, might be better than this trunk of {trunk}, and is not in these files.

{factors(e.equals, e.share())}

In this table: {_below(LOW, low)}

**At equal entropy too.** Each sampled setting of ours beside plain sampling at the cost at which it
spells as well, both on straight lines between measured settings in log NFE. A factor counts if the
entropies there differ by no more than two standard errors, which are those of the samples; how sure
the cost is, the table above says. Where plain sampling never spells as well, by the
measured means, its best setting is compared.

{entropy_table(points)}"""


README_ALT = "spelling accuracy and exact bits per character against passes of the whole network"


def _quality_caption(e: Evidence, points: Sequence[Point]) -> str:
    samples = next(p for p in points if p["kind"] == "samples")
    law = next(p for p in points if p["kind"] == "law")
    plain, ours = families(points, "samples")
    counts = series(sorted({p["settings"]["counts"] for p in plain}))
    fixed = series(sorted({p["settings"]["counts"] for p in families(points, "law")[0]}))
    trunk, head = e.layers()
    return f"""Top: spelling accuracy of samples, the share of their words that the training text
has, against NFE, and against unigram entropy, since spelling is cheap where entropy is given up.
{samples["num"]} samples a setting, {len(plain)} plain settings ({counts} counts) and {len(ours)} of
ours, seed {samples["seed"]}{", bfloat16 products" if samples["bf16"] else ""}; bars are two
standard errors. Bottom: exact bits per character of {law["rows"]} held-out rows against exact
expected NFE, no
samples drawn: the bold curves are the best settings at rising cost, of
{len(families(points, "law")[1])} self-speculative ones and of plain sampling ({fixed} counts); each
thin curve is one window, along its numbers of rounds. The axis is cut above our settings. All rows
have one random order each (seed {law["seed"]}); a setting's bits have a standard error of
{span([p["bits_se"] for p in points if p["kind"] == "law"])}, over rows that all settings
share. A plain step counts {trunk}/{trunk + head} NFE in this figure, since it runs
the trunk alone. Made by `python -m specmask.bench.ship RUN --data FILE`, torch
{law["versions"]["torch"]}; the data are the last 5 % of the model's text, see its
[card]({CARD})."""


def entropy_table(points: Sequence[Point]) -> str:
    """Markdown: our samples beside plain ones that spell as well, and both entropies."""
    plain, ours = families(points, "samples")
    curve = frontier(plain, "spelling", 1)
    rows = []
    for p in sorted(ours, key=lambda p: p["nfe"]):
        cost = cost_at(curve, "spelling", 1, p["spelling"])
        if cost == 0:  # it spells worse than plain sampling ever does
            continue
        there = curve[-1]["nfe"] if math.isinf(cost) else cost
        entropy, error = at_cost(curve, "entropy", there)
        gap, error = p["entropy"] - entropy, math.hypot(error, p["entropy_se"])
        counts = abs(gap) <= 2 * error
        factor = f"above {there / p['nfe']:.2f}" if math.isinf(cost) else f"{cost / p['nfe']:.2f}"
        s = p["settings"]
        rows.append(
            (
                f"{s['window']}, rounds {s['rounds']}, first {s['first']}",
                f"{p['nfe']:.1f}",
                f"{p['spelling']:.4f} ± {p['spelling_se']:.4f}",
                f"never; best at {there:.1f}" if math.isinf(cost) else f"{there:.1f}",
                factor if counts else f"({factor})",
                f"{gap:+.4f} ± {error:.4f}",
                "yes" if counts else "no",
            )
        )
    header = (
        *("our setting", "our NFE", "spelling accuracy", "plain NFE", "factor"),
        *("our entropy − plain's (nats)", "counts"),
    )
    return markdown(header, rows)


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
                dearer = f"{ratios[len(ratios) // 2]:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
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
    if grid:
        about += (
            f", on {e.weights(grid[0])}; {machine(grid[0])}. Made by "
            f"`python -m specmask.bench.settings text8-small --data FILE --rows {laws[0]['rows']}`."
        )
    else:
        about += ": those of the figure above."
    tables = restricted(panels.values())
    block = {} if "verification" in panels else ablations(chooser).get("verification", {})
    if block:
        panels["verification"] = block
        mine = [p for curve in block.values() for p in curve]
        tables += (
            f"\nHow drafts are verified, on {mine[0]['rows']} other rows, seed {mine[0]['seed']}, "
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
over those points of the free front whose bits the restricted one comes to. It is read off a
straight line between two settings, in log NFE, and so may be a little below 1.

{tables}
{kept if "verification" in panels else ""}"""


def second_seed(e: Evidence) -> str | None:
    """The samples of the first figure drawn again with another seed."""
    again = e.points(REPEATED)
    both = repeat.pairs(e.points(ZOO / "results.jsonl"), again)
    if not both:
        return None
    sums = []
    for measure, name in (
        ("nfe", "NFE"),
        ("spelling", "spelling accuracy"),
        ("entropy", "entropy"),
    ):
        total, count, odds = repeat.tally(both, measure)
        sums.append(f"{name} {total:.1f} over {count} settings (exceeded with odds of {odds:.2f})")
    return f"""## A second seed

The settings of up to {max(one["nfe"] for one, _ in both):.0f} NFE of the first figure,
{both[0][1]["num"]} samples each with seed {both[0][0]["seed"]} and seed {again[0]["seed"]}, on
{e.weights(again[0])}. The first seed's were drawn where the card says, the second's on
{machine(again[0])}. How far two runs lie apart is in standard errors of
their difference; if the errors are right its square is one on average. Sums of squares:
{series(sums)}. Made by `python -m specmask.bench.repeat text8-small`.

{repeat.table(both, told)}"""


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
    header, rows = cells([*held, *shown])
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
    return f"""## Surest first: confidence orders and thresholds

Samplers that reveal what the draft is surest of, at the setting nearest {NEAR:.0f} NFE, and all
thresholds, beside plain sampling, self-speculation and held-out text. A plain step counts
{e.share():.3f}. {shown[0]["num"]} samples a setting, seed {shown[0]["seed"]}, on
{e.weights(points[0])}; {machine(points[0])}. They have no tractable law, so quality without entropy
says little of them. Made by `specmask bench text8-small --data FILE --out docs/chooser`; every
setting, and comparisons at equal entropy, are in [which sampler](choose-a-sampler.md).

{markdown([header[k] for k in columns], [[row[k] for k in columns] for row in rows])}{low}"""


def proteins(e: Evidence) -> str | None:
    """A pretrained antibody model, adapted (paper, Figure 4)."""
    points = with_structures(e.points(Path("docs/antibody/results.jsonl")))
    shown = [p for p in points if p["model"] != UNTOUCHED]
    samples = [p for p in shown if p["kind"] == "samples"]
    if not samples:
        return None
    validity = ("samples", "possible", "share of samples that the data's law can make")
    panels = [
        validity,
        *(p for p in PROTEIN_PANELS if p[1] in ("excess", "judge", "rmsd", "unique")),
    ]
    picture = e.figure(
        "antibody",
        "validity, exact law, judge, predicted error and unique fraction against NFE",
        lambda path: protein_figure(path, shown, panels, columns=2),
    )
    fair = [p for p in shown if p["model"] != "adapted" or p.get("sampler") == "speculative"]
    rows = factor_rows(fair)
    low = [(title, f) for title, _, _, f in rows if f.factor < LOW]
    law = next(p for p in shown if p["kind"] == "law")
    folded = next((p["num"] for p in points if p["kind"] == "structure"), 0)
    why = """
Why there: a head of one block, trained for half an hour, finds the joint law of the first residues;
where nearly all are known it is a little worse than its draft, and every residue it replaces
carries that ([proteins](proteins.md)).
"""
    unique = {p["unique"] for p in samples}
    alike = (
        f"Unique fraction of samples: {span(sorted(unique))}."
        if len(unique) > 1
        else f"The unique fraction is {unique.pop():.3f} at every setting."
    )
    return f"""## A pretrained protein model (the paper's Figure 4)

{picture}

AntiBERTy with a causal head and a bidirectional block on it (*adapted*), sampled by
self-speculation and plainly, and the fair baseline: the same rows, time and about as many
parameters given to two bidirectional blocks and no head (*baseline*), sampled plainly. NFE counts
passes of AntiBERTy, layers run ÷ its layers, so that a plain step of each model counts all of that
model's drafting layers.
{samples[0]["num"]} samples a setting, {folded} of them folded, seed {samples[0]["seed"]}; exact
laws of {law["rows"]} held-out chains of {law["length"]} residues; bars are two standard errors.
Made by `python -m specmask.bench.proteins docs/antibody`; arguments, data, judge and folding model:
[proteins](proteins.md). {alike}

Passes of the baseline ÷ passes of self-speculation at equal exact law, judge and predicted error,
with 95 % bootstrap intervals:

{factor_table(rows)}

In this table: {_below(LOW, low)}
{why if low else ""}
{sample_table([*samples, *(p for p in shown if p["model"] == HELD_OUT)])}"""


def trainings(e: Evidence) -> str | None:
    """What of network and training matters, each variant trained anew."""
    points = e.points(EXPERIMENTS)
    trained = variant_tables.read(points)
    if not trained:
        return None
    about = trained[0].about
    config, network = about["train"], about["network"]
    law = next(p for p in points if p["kind"] == "law")
    picture = e.figure(
        "trainings",
        "exact bits against NFE of networks trained in different ways",
        lambda path: variant_tables.figure(path, trained, variant_tables.panels(trained)),
    )
    ablations, gain = variant_tables.tables(trained)
    return f"""## Other networks and trainings

{picture}

Small networks of {sum(about["layers"])} blocks in all, width {network["width"]}, rows of
{network["length"]} characters, {about["tokens"] / 1e6:.1f} M characters each
({config["steps"]} steps of {config["batch_size"]} rows, {config["optimizer"]}, masked tokens
weighted alike), of the text of `text8-small`; {machine(about)}, a core to each. Exact laws on
{law["rows"]} held-out rows under one random order each, the same for all; curves are the best of
{sum(p["kind"] == "law" and not p["plain"] and p["variant"] == about["name"] for p in points)}
self-speculative settings, for 6 + 0 plain sampling. NFE are passes of {sum(about["layers"])}
blocks for every network, so a plain step of 6 + 0 counts 1: the comparison that the paper calls
fair. Made by `python -m specmask.bench.variants docs/experiments --data FILE`; what was tried and
what of it was kept: [experiments](experiments.md).

Differences to the base in bits per character, ± the standard error of the paired difference over
rows (over seeds where there are several); factor: NFE of 6 + 0 ÷ NFE at equal bits, with a 95 %
bootstrap interval over rows.

{ablations}
The same for choices of training:

{gain}"""


def subwords(e: Evidence) -> str | None:
    """Subword text under a judge."""
    told = prose_report.section(e.root / PROSE)
    if told is None:
        return None
    return f"""## Subword text under a judge (the paper's Table 1)

{told}
What the two say of each other, and how the model was trained: [data](data.md#a-small-run). The
paper's own table is of OpenWebText, of a network of 150 M parameters and of another judge, so that
no number of it stands beside these."""


Section = Callable[[Evidence], str | None]
SECTIONS: tuple[Section, ...] = (
    training,
    quality,
    sampler_settings,
    second_seed,
    trainings,
    acceptance,
    wall_clock,
    baselines,
    subwords,
    proteins,
)
"""The page, from top to bottom. A section returns its Markdown, or None where its results file is
not there."""


# ------------------------------------------------------------------------------------------ words


def series(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def span(values: Sequence[float], digits: int = 3) -> str:
    """The least to the largest, or the only one."""
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _below(limit: float, low: Sequence[tuple[str, Factor]]) -> str:
    """Which factors are below a limit, with their intervals."""
    if not low:
        return f"no factor is below {limit}."
    parts: dict[str, list[str]] = {}
    for name, f in low:
        parts.setdefault(name, []).append(f"{f.factor:.2f} at {f.nfe:.1f} NFE ({f.interval})")
    return f"below {limit}: " + "; ".join(f"{k} {series(v)}" for k, v in parts.items()) + "."
