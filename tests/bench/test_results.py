"""docs/results.md is what its builder makes of the committed files; so is README's picture."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from specmask import CosineWindow, FullWindow, Speculative
from specmask.bench import card, results
from specmask.bench.compare import factors_at_equal
from specmask.bench.evidence import CARD, FIGURES, PAGE, README, SETTINGS, ZOO, Evidence
from specmask.bench.result_quality import entropy_table
from specmask.bench.results import BEGIN, END, Build, build, main, picture, with_picture, wrapped
from specmask.bench.run import Point, describe, json_line, read_points
from specmask.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence(ROOT, draw=False)


@pytest.fixture(scope="module")
def page(evidence: Evidence) -> str:
    return build(evidence)


def test_the_page_is_that_of_the_results(page: str) -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page, "run `make results`"


def test_every_picture_and_page_it_names_is_there(page: str) -> None:
    named = re.findall(r"\]\(([^)]+)\)", page)
    assert len(named) > 10
    assert CARD in named
    for name in named:
        assert (ROOT / PAGE.parent / name.partition("#")[0]).is_file(), name


def test_readme_shows_the_picture_of_the_results(evidence: Evidence) -> None:
    text = (ROOT / README).read_text(encoding="utf-8")
    assert with_picture(text, picture(evidence)) == text, "run `make results`"


def cells(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| ") and set(line) - set("|-: "):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_card_readme_and_page_agree(page: str, evidence: Evidence) -> None:
    """To the last digit, on validation bits and factors, which are those of log and results."""
    shipped = (ROOT / ZOO / "README.md").read_text(encoding="utf-8")
    readme = picture(evidence)
    log = read_points(ROOT / ZOO / "log.jsonl")
    last = [row for row in log if row.get("kind") == "validation"][-1]
    for text in (shipped, readme, page):
        words = " ".join(text.split())
        assert f"draft {last['draft_bits']:.3f}, target {last['target_bits']:.3f} bits" in words
    rows = list(cells(card.factors(evidence.equals)))[1:]
    shown = {text: [row[:5] for row in cells(text)] for text in (shipped, page)}
    assert rows
    for row in rows:
        assert row in shown[shipped]
        assert row in shown[page]
    words = " ".join(readme.split())
    for one in evidence.equals:
        found = sorted(factor.factor for factor in one.factors)
        costs = [factor.nfe for factor in one.factors]
        assert f"{found[0]:.2f} to {found[-1]:.2f} times our passes at equal {one.name}" in words
        told = f"median {statistics.median(found):.2f}, at our {min(costs):.1f} to {max(costs):.1f}"
        assert told in words


# ------------------------------------------------------------------------------- another checkout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that has the shipped model alone; intervals are of few draws."""
    monkeypatch.setattr(card, "factors_at_equal", partial(factors_at_equal, replicates=5))
    shutil.copytree(ROOT / ZOO, tmp_path / ZOO)
    (tmp_path / "docs").mkdir()
    (tmp_path / README).write_text(f"# x\n{BEGIN}\nold\n{END}\ny\n", encoding="utf-8")
    return tmp_path


def grid() -> Iterator[Speculative]:
    for window in (CosineWindow(0.1), FullWindow()):
        for rounds in (1, 2):
            yield (one := Speculative(window, rounds))
            yield replace(one, first="verify")
            yield replace(one, verification="block")
            yield replace(one, order="left-to-right")


def test_what_has_no_file_is_left_out(checkout: Path) -> None:
    main(Build(checkout))
    text = (checkout / PAGE).read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, flags=re.M)
    assert len(heads) == 4
    assert "verification" not in text
    assert sorted(path.stem for path in (checkout / FIGURES).iterdir()) == [
        "acceptance",
        "losses",
        "quality",
        "settings",
    ]
    readme = (checkout / README).read_text(encoding="utf-8")
    assert "old" not in readme
    assert readme.startswith("# x\n")
    assert readme.endswith("y\n")


def test_settings_and_progress_are_shown_where_a_file_has_them(checkout: Path) -> None:
    points: list[Point] = [
        {
            **{"kind": "run", "weights": "0" * 64, "layers": [6, 1]},
            "machine": {"system": "Linux", "device": "x", "threads": 3},
        }
    ]
    for k, one in enumerate(grid()):
        law = {"kind": "law", "plain": False, **describe(one, 5), "rows": 7}
        points.append({**law, "bits": 2 + k / 16, "bits_se": 0.1, "nfe": 16.0 - k / 2})
    (checkout / FIGURES).mkdir()
    (checkout / SETTINGS).write_text("".join(map(json_line, points)), encoding="utf-8")
    file = checkout / ZOO / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    progress = {"progress": {"accepted": [9] * 10, "rejected": [1] * 10}, "runs": [0, 30, 10]}
    sampled = [p for p in lines if p["kind"] == "samples" and p["sampler"] == "speculative"]
    sampled[0] |= progress
    file.write_text("".join(map(json_line, lines)), encoding="utf-8")
    text = build(Evidence(checkout, draw=False))
    words = " ".join(text.split())
    assert "an earlier model (weights 00000000; those that are shipped now are" in words
    assert "16 settings on 7 held-out rows, seed 5" in words
    assert "x, 3 threads" in words
    firsts = [row[0] for row in cells(text)]
    for name in ("rounds 2", "first verify", "window full", "verification block"):
        assert name in firsts
    assert "order left-to-right" in firsts
    row = next(row for row in cells(text) if row[-3:] == ["1", "1", "2"])
    assert row[2:6] == ["0.900 ± 0.095", "0.900 ± 0.095", "0.900 ± 0.095", "1.25"]


def sample(sampler: str, nfe: float, spelling: float, entropy: float) -> dict[str, Any]:
    settings = {"window": "full", "rounds": 1, "first": "accept"}
    errors = {"spelling_se": 0.001, "entropy_se": 0.003}
    about = {"kind": "samples", "sampler": sampler, "settings": settings}
    return {**about, "nfe": nfe, "spelling": spelling, "entropy": entropy, **errors}


def test_a_factor_of_lower_entropy_does_not_count() -> None:
    plain = [sample("ancestral", 8, 0.5, 2.8), sample("ancestral", 32, 0.7, 2.7)]
    ours = [
        sample("speculative", 4, 0.6, 2.75),  # as plain is at 16 NFE, half way in log NFE
        sample("speculative", 8, 0.6, 2.72),
        sample("speculative", 16, 0.8, 2.7),  # plain never spells so well
        sample("speculative", 2, 0.4, 2.7),  # nor so badly
    ]
    rows = [row[3:] for row in cells(entropy_table([*plain, *ours]))][1:]
    error = f"{(0.003**2 + 0.003**2 / 2) ** 0.5:.4f}"
    assert rows == [
        ["16.0", "4.00", f"+0.0000 ± {error}", "yes"],
        ["16.0", "(2.00)", f"-0.0300 ± {error}", "no"],
        ["never; best at 32.0", "above 2.00", "+0.0000 ± 0.0042", "yes"],
    ]


# ------------------------------------------------------------------------------------------ input


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log.jsonl: expected a checkout .* --root"):
        main(Build(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_readme_without_its_comments_is_refused() -> None:
    for text in ("nothing", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"):
        with pytest.raises(UserError, match="expected its picture between"):
            with_picture(text, "new")


def test_sections_are_functions_of_the_evidence(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is one more function; None is left out."""
    monkeypatch.setattr(results, "SECTIONS", (lambda e: None, lambda e: "## More\n\nwords\n"))
    assert build(evidence).endswith("standard error.\n\n## More\n\nwords\n")


def test_paragraphs_are_wrapped_and_tables_are_not() -> None:
    words, row = "word " * 40, "| " + "cell " * 40 + "|"
    text = wrapped(f"# Title\n\n\n{words}\n\n{row}\n{row}\n\nend")
    assert max(map(len, text.split(row)[0].splitlines())) <= 100
    assert f"{row}\n{row}\n\nend\n" in text
