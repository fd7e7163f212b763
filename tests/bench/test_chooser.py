"""docs/choose-a-sampler.md says what the results files say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from specmask.bench import seconds
from specmask.bench.run import Point, read_points
from specmask.bench.tables import entropy_cells, law_cells, markdown, table
from specmask.samplers import SAMPLERS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "choose-a-sampler.md"
CHOOSER = DOCS / "chooser"

Row = dict[str, str]
STEPPED = ("ancestral", "optimal", "confidence", "star", "remdm", "p2", "rcr")


def points(folder: str) -> list[Point]:
    return read_points(CHOOSER / folder / "results.jsonl")


def rows_of(text: str) -> Iterator[Row]:
    """Every row of every Markdown table, by its headers; blank cells are left out."""
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
        elif set(line) - set("|-"):
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell}


GENERATED = sorted(CHOOSER.rglob("*.md"))


@pytest.mark.parametrize("folder", [".", "entropy", "cuts", "orders"])
def test_the_tables_are_those_of_the_results(folder: str) -> None:
    found = points(folder)
    made = {"table.md": table(found)}
    if any(p["kind"] == "law" for p in found):
        made["laws.md"] = markdown(*law_cells(found))
    header, rows = entropy_cells(found)
    if rows:
        made["equal-entropy.md"] = markdown(header, rows)
    for name, text in made.items():
        assert (CHOOSER / folder / name).read_text(encoding="utf-8") == text


def test_the_seconds_are_those_of_the_results() -> None:
    text = seconds.table(read_points(CHOOSER / "seconds.jsonl"))
    assert (CHOOSER / "seconds.md").read_text(encoding="utf-8") == text


def tuned() -> tuple[str, Point, Point]:
    """What the page says of the tuned setting, and the lines it says it of."""
    lines = read_points(CHOOSER / "tune-32.jsonl")
    chosen = next(line for line in lines if line.get("chosen"))
    metered = next(line for line in lines if line["kind"] == "metered")
    words = (
        f"{chosen['bits']:.4f} bits on those rows, "
        f"{chosen['nfe']:.2f} ± {chosen['nfe_se']:.2f} NFE predicted. {metered['samples']} "
        f"samples metered {metered['nfe']:.2f} ± {metered['nfe_se']:.2f}."
    )
    return words, chosen, metered


def test_the_tuned_setting_is_that_of_the_results() -> None:
    """And its predicted and metered cost agree within two standard errors, below the budget."""
    words, chosen, metered = tuned()
    assert words in " ".join(PAGE.read_text(encoding="utf-8").split())
    assert chosen["settings"] == metered["settings"]
    assert metered["apart"] < 2
    assert metered["nfe"] < 32


def test_every_measured_row_of_the_page_is_in_a_table() -> None:
    """A row of the page with a column NFE has the same cells as one of the generated tables."""
    measured = [row for file in GENERATED for row in rows_of(file.read_text(encoding="utf-8"))]
    quoted = [row for row in rows_of(PAGE.read_text(encoding="utf-8")) if "NFE" in row]
    assert len(quoted) > 10
    for row in quoted:
        assert any(row.items() <= other.items() for other in measured), row


def test_every_figure_of_the_prose_is_in_a_table() -> None:
    """Numbers with two decimals or more, as they stand there; settings in `code` aside."""
    tables = " ".join(file.read_text(encoding="utf-8") for file in GENERATED) + tuned()[0]
    code = r"^\|[^\n]*$|```.*?```|`[^`]*`"
    prose = re.sub(code, "", PAGE.read_text("utf-8"), flags=re.M | re.S)
    figures = re.findall(r"(?<![\d.])\d+\.\d{2,}", prose)
    assert len(figures) > 5
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", tables), figure


def test_every_setting_of_the_benchmark_has_its_samples_and_its_targets() -> None:
    """256 samples or more at each, and of every sampler that needs no guide.

    Those whose passes are a setting have one within a quarter of every target, and speculation has
    one wherever its tuning found any.
    """
    sampled = [p for p in points(".") if p["kind"] == "samples"]
    assert min(p["num"] for p in sampled) >= 256
    guided = {"policy"}
    assert {p["sampler"] for p in sampled} >= set(SAMPLERS) - guided
    front = [p["nfe"] for p in points(".") if p["kind"] == "tuning"]
    for target in (8, 16, 32, 64, 128):

        def near(costs: list[float], target: int = target) -> bool:
            return any(abs(cost - target) <= target / 4 for cost in costs)

        for name in (*STEPPED, "speculative"):
            if name in STEPPED or near(front):
                costs = [p["nfe"] for p in sampled if p["sampler"] == name]
                assert near(costs), f"{name} at {target} NFE: {sorted(costs)}"


def test_the_optimal_cuts_lose_nothing_against_a_schedule() -> None:
    """On as many rows as the file has: no schedule of as many passes has fewer bits, beyond two
    standard errors of the difference row by row."""
    _, rows = law_cells(points("cuts"))
    gaps = [cell[-1] for cell in rows if cell[-1] != "–"]
    assert len(gaps) >= 8
    for gap in gaps:
        value, error = map(float, gap.split(" ± "))
        assert value > -2 * error
