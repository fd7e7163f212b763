"""docs/performance.md says what the results files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specmask.bench.run import read_points
from specmask.bench.speed_tables import speed_tables

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "performance"


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "h200"])
def test_the_table_is_that_of_the_results(folder: Path) -> None:
    text = speed_tables(read_points(folder / "speed.jsonl"))
    assert (folder / "speed.md").read_text(encoding="utf-8") == text


def test_every_figure_of_the_prose_is_in_a_table() -> None:
    """Numbers with two decimals or more, as they stand there."""
    tables = " ".join(file.read_text(encoding="utf-8") for file in sorted(FOLDER.rglob("*.md")))
    prose = re.sub(r"```.*?```", "", (DOCS / "performance.md").read_text("utf-8"), flags=re.S)
    figures = re.findall(r"(?<![\d.])\d+\.\d{2,}", prose)
    assert len(figures) > 5
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", tables), figure
