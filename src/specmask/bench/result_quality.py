"""Sections of the evidence page: the shipped character model, its training and its figure.

A section returns its Markdown, every number computed, or None where its results file is not there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from specmask.bench import repeat
from specmask.bench.card import PAPER_TOKENS, factors, families, options, stages_of
from specmask.bench.compare import Factor, at_cost, cost_at, crossed_factors, frontier
from specmask.bench.evidence import CARD, CHOOSER, REPEATED, ZOO, Evidence, machine
from specmask.bench.plot import evidence_figure, loss_figure
from specmask.bench.result_words import LOW, below, series, span
from specmask.bench.run import Point
from specmask.bench.tables import markdown, told


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
    tokens = _tokens(e) / 1e6
    minutes = sum(stage[-1]["seconds"] for stage in stages) / 60
    return f"""## Two losses from one network (the paper's Figure 2)

{picture}

Draft and target loss in bits per character, of training batches (pale) and of
{stages[-1][0]["config"]["eval_rows"]} validation rows under averaged weights (dots), against
training tokens of all stages, on a logarithmic axis. Made by
`specmask train text8-small --data FILE`, {len(stages)} stages on rows of {lengths} characters,
seeds {seeds}: {tokens:.1f} M tokens, {minutes:.0f} minutes; its text, machine and the options of
each stage are on the [card]({CARD}). Where validation rows change their length between two stages,
so does their loss.

At the end: draft {validation(log, "draft")}, target {validation(log, "target")} bits per character.
{_parting(stages)}"""


def _tokens(e: Evidence) -> float:
    """Characters that the shipped model has seen, in all stages."""
    return sum(stage[-1]["tokens"] for stage in stages_of(e.points(ZOO / "log.jsonl")))


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

The paper's own figure is of text8 itself, another word list and a network that has seen
{PAPER_TOKENS / 1e9:.0f} G characters, where this one saw {_tokens(e) / 1e9:.2f} G: there cosine
windows from 0.01 to 0.083 take 80 to 21 NFE and spell 0.91 to 0.87 of the words. Other data, so
only the two curves' distance can be compared, not their heights.

**How much cheaper.** NFE of plain sampling, by the better of a cosine and a linear schedule, ÷ NFE
of self-speculation at the quality of one of our settings, with 95 % intervals of a bootstrap over
samples or rows (1000 draws, our settings held fixed). The last column counts a plain step as 1
pass. That is what the trunk's quality would cost at the price of a plain model of all
{trunk + head} layers; such a model, with as many layers to draft with, might be better than this
trunk of {trunk}, and is not in these files.

{factors(e.equals, e.share())}

In this table: {below(LOW, low)}

{crossed(points)}{schedules(e)}**At equal entropy too.** Each sampled setting of ours beside plain
sampling at the cost at which it spells as well, both on straight lines between measured settings in
log NFE. A factor counts if the entropies there differ by no more than two standard errors, which
are those of the samples; how sure the cost is, the first table says. Where plain sampling never
spells as well, by the measured means, its best setting is compared.

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
expected NFE, no samples drawn: the bold curves are the best settings at rising cost, of
{len(families(points, "law")[1])} self-speculative ones and of {len(families(points, "law")[0])} of
plain sampling ({fixed} counts, cosine and linear schedules); each thin curve is one window, along
its numbers of rounds. The axis is cut above our settings. All rows
have one random order each (seed {law["seed"]}); a setting's bits have a standard error of
{span([p["bits_se"] for p in points if p["kind"] == "law"])}, over rows that all settings
share. A plain step counts {trunk}/{trunk + head} NFE in this figure, since it runs
the trunk alone. Made by `python -m specmask.bench.ship RUN --data FILE{options(points)}`, torch
{law["versions"]["torch"]}; the data are the last 5 % of the model's text, see its
[card]({CARD})."""


def crossed(points: Sequence[Point]) -> str:
    """What choosing the settings on the rows that score them is worth."""
    plain, ours = families(points, "law")
    if len(ours[0]["each"]["bits"]) < 2:
        return ""
    medians = [f"{statistics.median(f):.2f}" for f in crossed_factors(plain, ours) if f]
    return f"""Settings are chosen on the rows that score them here, {len(ours)} of ours and
{len(plain)} plain ones. Chosen on one half of the rows and scored on the other, median factors in
exact bits are {series(medians)}, for either half.

"""


def schedules(e: Evidence) -> str:
    """Against which plain sampling: the factors of each kind of it."""
    found, points = e.plain_factors, e.points(CHOOSER)
    every = {nfe: f.quality for each in found.values() for nfe, f in each.items()}
    rows = [
        (f"{nfe:.1f}", f"{every[nfe]:.4f}", *(_factor(each.get(nfe)) for each in found.values()))
        for nfe in sorted(every)
    ]
    if not rows:
        return ""
    law = next(p for p in points if p["kind"] == "law")
    return f"""**Which plain sampling.** Above, plain sampling may choose between two schedules.
Here is each by itself, and plain sampling whose cuts are optimised for this model (`Optimal`; its
profile was measured on other rows), on {law["rows"]} other held-out rows, seed {points[0]["seed"]},
on {e.weights(points[0])}, by `specmask bench` ([which sampler](choose-a-sampler.md)); plain NFE ÷
ours at equal exact bits:

{markdown(("our NFE", "bits per character", *found), rows)}
"""


def _factor(f: Factor | None) -> str:
    return "–" if f is None else f"{f.factor:.2f} ({f.interval})"


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
{_apart(e, both)}
{repeat.table(both, told)}"""


def _apart(e: Evidence, both: Sequence[tuple[Point, Point]]) -> str:
    """Where the two seeds' spelling is furthest apart, what of the factors is owed to that."""
    if repeat.tally(both, "spelling")[2] > 0.05:
        return ""
    plain = families(e.points(ZOO / "results.jsonl"), "samples")[0]
    one, other = max(both, key=lambda ab: abs(repeat.deviation(ab[0], ab[1], "spelling")))
    factors = [
        f"{cost_at(plain, 'spelling', 1, p['spelling']) / one['nfe']:.2f}" for p in (one, other)
    ]
    return f"""
That is more than the errors explain: at {told(one)} the first seed spells {one["spelling"]:.4f},
the second {other["spelling"]:.4f}. With the one plain sampling needs {factors[0]} times our passes
there, with the other {factors[1]}.
"""
