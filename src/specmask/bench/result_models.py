"""Sections of the evidence page: other trainings, subword text, proteins.

A section returns its Markdown, every number computed, or None where its results file is not there.
"""

from __future__ import annotations

from pathlib import Path

from specmask.bench import prose_report, variant_tables
from specmask.bench.evidence import EXPERIMENTS, PROSE, Evidence, machine
from specmask.bench.plot import PROTEIN_PANELS, protein_figure
from specmask.bench.protein_report import (
    HELD_OUT,
    UNTOUCHED,
    factor_rows,
    factor_table,
    sample_table,
    with_structures,
)
from specmask.bench.result_words import LOW, below, span


def trainings(e: Evidence) -> str | None:
    """What of network and training matters, each variant trained anew."""
    points = e.points(EXPERIMENTS)
    trained = variant_tables.read(points)
    base = [one for one in trained if one.name == variant_tables.BASE]
    if not base:
        return None
    about = base[0].about
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
rows, with that over seeds beside it where there are several; factor: NFE of 6 + 0 ÷ NFE at equal
bits, with a 95 % bootstrap interval over rows, or of each seed where there are several.

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


def proteins(e: Evidence) -> str | None:
    """A pretrained antibody model, adapted (paper, Figure 4)."""
    points = with_structures(e.points(Path("docs/antibody/results.jsonl")))
    shown = [p for p in points if p["model"] != UNTOUCHED]
    samples = [p for p in shown if p["kind"] == "samples"]
    if not samples:
        return None
    told = ("possible", "excess", "judge", "rmsd", "unique")
    panels = [p for name in told for p in PROTEIN_PANELS if p[1] == name]
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
Why there: a head of one block, after a short training, finds the joint law of the first residues;
where nearly all are known it has little to add to its draft ([proteins](proteins.md)).
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
parameters given to two bidirectional blocks and no head (*baseline*), sampled plainly (trainings:
[adapted](../src/specmask/zoo/antibody/log.jsonl), [baseline](antibody/baseline.jsonl)). NFE counts
passes of AntiBERTy, layers run ÷ its layers, so that a plain step of each model counts all of that
model's drafting layers; plain sampling is by the better of two schedules.
{samples[0]["num"]} samples a setting{", bfloat16 products" if samples[0]["bf16"] else ""},
{folded} of them folded, seed {samples[0]["seed"]}, beside held-out chains (dotted); exact laws of
{law["rows"]} held-out chains of {law["length"]} residues; bars are two standard errors. Made by
`python -m specmask.bench.proteins docs/antibody`; arguments, data, judge and folding model:
[proteins](proteins.md). {alike}

Passes of the baseline ÷ passes of self-speculation at equal exact law, judge and predicted error,
with 95 % bootstrap intervals:

{factor_table(rows)}

In this table: {below(LOW, low)}
{why if low else ""}
{sample_table([*samples, *(p for p in shown if p["model"] == HELD_OUT)])}"""
