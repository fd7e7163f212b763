"""The card of the shipped character model: its tables, and cost at equal quality."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import specmask
from specmask.bench.compare import Factor, cost_ratios, factors_at_equal, frontier, thin
from specmask.bench.run import Point

PAPER_TOKENS = 1e6 * 512 * 256
"""Characters of the paper's training on text8: steps × rows × length."""


def sample_table(points: Sequence[Point]) -> str:
    """Markdown: every sampled setting."""
    rows = [
        "| sampler | settings | NFE | spelling accuracy | entropy (nats) |",
        "|---|---|---:|---:|---:|",
    ]
    for p in sorted((p for p in points if p["kind"] == "samples"), key=lambda p: p["nfe"]):
        s = p["settings"]
        what = (
            f"{s['window']}, rounds {s['rounds']}, first {s['first']}"
            if p["sampler"] == "speculative"
            else f"{s['steps']} steps, {s['counts']} counts, {s['schedule']}"
        )
        rows.append(
            f"| {p['sampler']} | {what} | {p['nfe']:.1f} ± {p['nfe_se']:.1f} | "
            f"{p['spelling']:.4f} ± {p['spelling_se']:.4f} | "
            f"{p['entropy']:.4f} ± {p['entropy_se']:.4f} |"
        )
    return "\n".join(rows)


def law_table(points: Sequence[Point]) -> str:
    """Markdown: the frontier of exact bits per character against expected NFE, both families."""
    rows = [
        "| law | settings | expected NFE | bits per character |",
        "|---|---|---:|---:|",
    ]
    laws = [p for p in points if p["kind"] == "law"]
    for plain in (True, False):
        for p in thin(frontier([p for p in laws if p["plain"] is plain], "bits", -1)):
            s = p["settings"]
            names = ("window", "rounds", "first", "steps", "schedule", "source")
            what = ", ".join(f"{name} {s[name]}" for name in names if name in s)
            bits = f"{p['bits']:.4f} ± {p['bits_se']:.4f}"
            rows.append(f"| {p['sampler']} | {what} | {p['nfe']:.1f} | {bits} |")
    return "\n".join(rows)


@dataclass(frozen=True)
class Equal:
    """Plain cost over ours at equal quality of one kind.

    factors: where both curves have a quality. plain_best: plain's best point, and beyond: our
    cheapest one that is better, if any is.
    """

    name: str
    quality: str
    factors: list[Factor]
    plain_best: Point | None
    beyond: Point | None


def families(points: Sequence[Point], kind: str) -> tuple[list[Point], list[Point]]:
    """Plain and self-speculative points of a kind."""
    mine = [p for p in points if p["kind"] == kind]
    plain, ours = (
        [p for p in mine if p["sampler"] == name] for name in ("ancestral", "speculative")
    )
    return plain, ours


def equals(points: Sequence[Point]) -> list[Equal]:
    """At equal spelling accuracy of samples, and at equal exact bits."""
    found = []
    for name, quality, sign, kind in (
        ("spelling accuracy", "spelling", 1, "samples"),
        ("exact bits per character", "bits", -1, "law"),
    ):
        plain, ours = families(points, kind)
        best = frontier(plain, quality, sign)[-1:]
        beyond = [
            p
            for p in frontier(ours, quality, sign)
            if best and sign * p[quality] > sign * best[0][quality]
        ]
        shared = factors_at_equal(plain, thin(frontier(ours, quality, sign)), quality, sign)
        found.append(Equal(name, quality, shared, *(x[0] if x else None for x in (best, beyond))))
    return found


# Plain sampling, from its usual form to the one that is tuned most.
_PLAIN: dict[str, Callable[[Point], bool]] = {
    "cosine schedule": lambda p: p["settings"].get("schedule") == "cosine",
    "linear schedule": lambda p: p["settings"].get("schedule") == "linear",
    "optimal cuts": lambda p: p["sampler"] == "optimal",
}


def plain_factors(points: Sequence[Point]) -> dict[str, dict[float, Factor]]:
    """Kind of plain sampling → our NFE → the factor at equal exact bits there."""
    laws = [p for p in points if p["kind"] == "law"]
    usual = {"order": "random", "verification": "token"}
    ours = [
        p
        for p in laws
        if p["sampler"] == "speculative"
        and all(p["settings"].get(name, value) == value for name, value in usual.items())
    ]
    ours = thin(frontier(ours, "bits", -1), 1.3)
    found = {}
    for name, is_of in _PLAIN.items():
        base = [p for p in laws if p["sampler"] in ("ancestral", "optimal") and is_of(p)]
        found[name] = {f.nfe: f for f in factors_at_equal(base, ours, "bits", -1)}
    return found


def factors(found: Sequence[Equal], share: float | None = None) -> str:
    """Markdown: plain cost over ours at equal quality, wherever the two curves overlap.

    With `share`, what a plain step counts in these points, a column tells the factors and their
    intervals with a plain step as 1.
    """
    more = "" if share is None else " with a plain step as 1 |"
    rows = [
        f"| equal | at | our NFE | plain NFE ÷ ours | 95 % interval |{more}",
        "|---|---:|---:|---:|---:|" + ("---:|" if more else ""),
    ]
    blank = " |" if more else ""
    for one in found:
        for f in one.factors:
            told = ""
            if share is not None:
                told = f" {f.over(share).factor:.2f} ({f.over(share).interval}) |"
            rows.append(
                f"| {one.name} | {f.quality:.4f} | {f.nfe:.1f} | {f.factor:.2f} | "
                f"{f.interval} |{told}"
            )
        if not one.factors:
            rows.append(f"| {one.name} | the curves share no quality | | | |{blank}")
        if one.beyond is not None and one.plain_best is not None:
            rows.append(
                f"| {one.name} | better than plain ever is ({one.plain_best[one.quality]:.4f} at "
                f"{one.plain_best['nfe']:.1f} NFE) | from {one.beyond['nfe']:.1f} | | |{blank}"
            )
    return "\n".join(rows)


def first_rule(points: Sequence[Point]) -> str:
    """What the best settings of first="verify" cost, of that of "accept", at equal bits."""
    laws = [p for p in points if p["kind"] == "law" and p["sampler"] == "speculative"]
    curves = {
        rule: frontier([p for p in laws if p["settings"]["first"] == rule], "bits", -1)
        for rule in ("verify", "accept")
    }
    ratios = sorted(cost_ratios(curves["verify"], curves["accept"], "bits", -1))
    if not ratios:
        return "The two first-rank rules have no quality in common on this grid."
    return (
        'At equal bits per character `first="verify"` needs '
        f'{statistics.median(ratios):.3f} × the NFE of `first="accept"` (median over '
        f"{len(ratios)} qualities, {ratios[0]:.3f} to {ratios[-1]:.3f})."
    )


CARD_TEXT = """# text8-small

A self-speculative masked diffusion model of English characters (a–z and space), {length} long:
{trunk_layers} bidirectional layers draft, {head_layers} causal layer verifies, width {width},
{millions:.1f} M parameters, bfloat16 weights ({megabytes:.1f} MB). Made to show and test the
method on a laptop, not to write: it was trained on {tokens:.1f} M characters, {share_seen:.2g} % of
the {paper_tokens:.0f} G that the paper's model saw.

```python
import specmask

model = specmask.load("text8-small")
sampler = specmask.Speculative(window=specmask.CosineWindow(0.05), rounds=2)
print(specmask.sample(model, sampler, num=4, seed=0).text)
```

## Data

102 MB of English in the text8 alphabet (digits spelled out): the State of the Union addresses,
Shakespeare, Austen, Moby Dick, two Bibles, Matthew Henry's commentary, Wikipedia leads, the Brown
corpus, the World Factbook, an FAQ, recipes (about 62 MB), and dictionaries: Webster 1913 / GCIDE,
WordNet, FOLDOC (about 36 MB). Licences of the sources are mixed: public domain, GPL, GFDL,
CC BY-SA, WordNet. The text is not part of this package; sha256 of the raw text `{data}`. The first
90 % trained, the next 5 % validated, the last 5 % is the held-out text below. 4.6 % of the held-out
words lie in a 12-word run that training has too.

**Bits per character here are not comparable with published text8 figures**: only 7 % of the text
is Wikipedia. The compressor xz -9 reaches 1.90 on it.

## Training

`specmask train text8-small --data FILE --out DIR`, in stages, each from the averaged weights of
the one before (`--init`):

{training}

{note}

![losses](losses.png)

Validation at the end (averaged weights, {eval_rows} rows): draft {draft_bits:.3f}, target
{target_bits:.3f} bits per character.

## Measured

NFE counts passes of the whole network, (L_nc·trunk + L_c·verify)/(L_nc + L_c); a plain step runs
the trunk only and counts {share:.3f}. Plain sampling is by the better of two schedules, cosine and
linear. {samples} samples a setting{precision}; ± is one standard error. Spelling accuracy: share of
the words of a sample that occur in the training text, words that the two edges may have cut left
out. {heldout} held-out rows under one random order each give the exact laws. Factors: the paper's
comparison on the same network, at each quality that both curves reach, with a bootstrap interval
over rows or samples.

![quality against cost](quality.png)

{factors}

{first}

{sample_table}

Exact laws, best settings at rising cost ({grid} self-speculative settings scored):

{law_table}

Made by `python -m specmask.bench.ship RUN --data FILE{options}`; with `--card-only` it draws
figures and card again, from results.jsonl and log.jsonl in this folder alone.

## Licence

Weights: Apache-2.0. Word list: the words that occur in the training text.
"""


def card(folder: Path, points: Sequence[Point], log: Sequence[dict[str, Any]]) -> str:
    """The model card, every figure from the results and the log."""
    run = next(p for p in points if p["kind"] == "run")
    network = specmask.load(folder).network
    assert isinstance(network, specmask.HybridTransformer)
    stages = stages_of(log)
    held_out = [row for row in stages[-1] if row.get("kind") == "validation"][-1]
    samples = next(p for p in points if p["kind"] == "samples")
    tokens = sum(stage[-1]["tokens"] for stage in stages)
    return CARD_TEXT.format(
        **asdict(network.config),
        millions=sum(p.numel() for p in network.parameters()) / 1e6,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        tokens=tokens / 1e6,
        share_seen=100 * tokens / PAPER_TOKENS,
        paper_tokens=PAPER_TOKENS / 1e9,
        data=run["data"],
        note=run["note"],
        training="\n".join(_stage_line(n, stage) for n, stage in enumerate(stages, 1)),
        eval_rows=stages[-1][0]["config"]["eval_rows"],
        draft_bits=held_out["draft_bits"],
        target_bits=held_out["target_bits"],
        share=network.trunk_layers / (network.trunk_layers + network.head_layers),
        samples=samples["num"],
        precision=", drawn with bfloat16 matrix products" if samples["bf16"] else "",
        heldout=next(p["rows"] for p in points if p["kind"] == "law"),
        factors=factors(equals(points)),
        first=first_rule(points),
        sample_table=sample_table(points),
        law_table=law_table(points),
        options=options(points),
        grid=len(families(points, "law")[1]),
    )


def options(points: Sequence[Point]) -> str:
    """What the shipping command was told besides the run and its text."""
    run, samples = (next(p for p in points if p["kind"] == kind) for kind in ("run", "samples"))
    if run.get("samples_from") is not None:
        return f" --samples-from {run['samples_from']}"
    return " --bf16" if samples["bf16"] else ""


def stages_of(log: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each stage of training; a header begins a stage."""
    begins = [k for k, row in enumerate(log) if "config" in row] + [len(log)]
    return [list(log[a:b]) for a, b in itertools.pairwise(begins)]


def _stage_line(number: int, stage: Sequence[dict[str, Any]]) -> str:
    config, length, last = stage[0]["config"], stage[0]["network"]["length"], stage[-1]
    names = (
        *("batch_size", "optimizer", "lr", "muon_lr", "final_lr", "ema", "precision"),
        *("weighting", "head_lr", "distil", "seed"),
    )
    settings = ", ".join(f"{name} {config[name]}" for name in names if name in config)
    return (
        f"{number}. rows of {length}, {last['step']} of {config['steps']} steps, "
        f"{last['tokens'] / 1e6:.1f} M tokens, {last['seconds'] / 60:.0f} minutes: {settings}."
    )
