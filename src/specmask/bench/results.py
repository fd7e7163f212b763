"""The evidence page, docs/results.md with its figures, from the committed results files alone.

    python -m specmask.bench.results

No model is run: it takes seconds. Every number on the page, in a table or a sentence, is computed
from a results file, or quoted from the paper; a section whose file is not there is left out.
README's picture and its caption are written too, between two comments.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from specmask.bench.evidence import CHOOSER, FIGURES, PAGE, README, ZOO, Evidence
from specmask.bench.result_models import proteins, subwords, trainings
from specmask.bench.result_quality import (
    README_ALT,
    quality,
    second_seed,
    training,
    validation,
)
from specmask.bench.result_samplers import acceptance, baselines, sampler_settings, wall_clock
from specmask.bench.result_words import series, span
from specmask.errors import UserError, exit_code

console = Console(stderr=True)


@dataclass(frozen=True)
class Build:
    """Write docs/results.md, its figures, and README's picture, from results files."""

    root: Path = Path(".")
    """Folder of the checkout."""


# ------------------------------------------------------------------------------------------- page

HEAD = """# Results

<!-- Made by `python -m specmask.bench.results`: change results files or that, not this page. -->

Made by `make results` from the results files of this repository, figures and all; no model is run
for it, and every number is computed from a file, but those quoted from the paper.

**NFE** counts passes of the whole network, (L_nc·trunk + L_c·verify)/(L_nc + L_c), per sample; the
meter's counts are those of hooks on the network's blocks ([test](../tests/test_nfe.py), which says
what is not counted). Plain masked diffusion here is the trunk of the same network, so a plain step
counts {trunk}/{whole} = {share:.3f} in every figure and table of `text8-small`, unless it says
otherwise. The comparison that the paper calls fair is with a plain model of all layers, 1 NFE a
step. ± is one standard error.
"""


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


def build(e: Evidence) -> str:
    """The page's Markdown; its figures are drawn on the way.

    Raises:
        UserError: not the folder of a checkout.
    """
    if not (e.root / ZOO / "log.jsonl").is_file():
        raise UserError(
            f"no {e.root / ZOO / 'log.jsonl'}: expected a checkout of specmask with its results "
            "files; name its folder with --root"
        )
    trunk, head = e.layers()
    top = HEAD.format(trunk=trunk, whole=trunk + head, share=e.share())
    parts = [part for section in SECTIONS if (part := section(e)) is not None]
    return wrapped("\n\n".join((top, *parts)))


_AS_IT_IS = ("|", "#", "!", "<", "```", "- ", "* ")


def wrapped(text: str) -> str:
    """Markdown whose paragraphs have lines of at most 100 characters, where words allow it."""
    blocks = []
    for block in text.strip().split("\n\n"):
        block = block.strip("\n")
        if block and not block.startswith(_AS_IT_IS):
            block = textwrap.fill(
                " ".join(block.split()), 100, break_long_words=False, break_on_hyphens=False
            )
        if block:
            blocks.append(block)
    return "\n\n".join(blocks) + "\n"


BEGIN = "<!-- picture: made by `make results` -->"
END = "<!-- end of picture -->"


def picture(e: Evidence) -> str:
    """README's picture and what it shows, between its two comments."""
    points, log = e.points(ZOO / "results.jsonl"), e.points(ZOO / "log.jsonl")
    samples = next(p for p in points if p["kind"] == "samples")
    law = next(p for p in points if p["kind"] == "law")
    ours = [
        f"{span([f.factor for f in one.factors], 2)} times our passes at equal {one.name} "
        f"(median {statistics.median(f.factor for f in one.factors):.2f}, at our "
        f"{span([f.nfe for f in one.factors], 1)} NFE)"
        for one in reversed(e.equals)
        if one.factors
    ]
    cheaper = f"Plain sampling needs {series(ours)}" if ours else ""
    tuned = [f.factor for f in e.plain_factors["optimal cuts"].values()]
    if ours and tuned:
        rows = next(p["rows"] for p in e.points(CHOOSER) if p["kind"] == "law")
        cheaper += f", with cuts optimised for the model {span(tuned, 2)} times at equal bits"
        cheaper += f" of {rows} other rows"
    cheaper += "; " if ours else ""
    caption = f"""*The shipped character model (draft {validation(log, "draft")}, target
{validation(log, "target")} bits per character of validation text): spelling accuracy of
{samples["num"]} samples a setting, with two standard errors, and exact bits per character of
{law["rows"]} held-out rows, against passes of the whole network (NFE). {cheaper}a plain step counts
{e.share():.3f}. Intervals, data, command and more figures: [results]({PAGE}).*"""
    shown = f"![{README_ALT}]({FIGURES}/quality.png)"
    caption = textwrap.fill(caption, 100, break_long_words=False, break_on_hyphens=False)
    return f"{BEGIN}\n{shown}\n\n{caption}\n{END}"


def with_picture(text: str, new: str) -> str:
    """README with its picture and caption replaced.

    Raises:
        UserError: the comments that hold them are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise UserError(
            f"README.md: expected its picture between the lines {BEGIN} and {END}; put them back"
        )
    return before + new + after


def main(args: Build) -> None:
    """Write the page, its figures and README's picture."""
    e = Evidence(args.root)
    page = build(e)
    readme = with_picture((args.root / README).read_text(encoding="utf-8"), picture(e))
    (args.root / PAGE).write_text(page, encoding="utf-8")
    (args.root / README).write_text(readme, encoding="utf-8")
    console.print(f"{args.root / PAGE}, {args.root / FIGURES} and the picture in {README}")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Build))))
