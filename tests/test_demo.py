"""The demo on the shipped model, whatever its quality."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import specmask
from specmask import cli


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page and what was printed, of the smallest demo that has two samples."""
    page = tmp_path_factory.mktemp("demo") / "demo.html"
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("specmask.demo.Console", lambda: recorder(said))
        patch.setenv("COLUMNS", "80")
        assert cli.main(["demo", "--num", "2", "--show", "1", "--out", str(page)]) == 0
    return page, "".join(said)


def recorder(said: list[str]) -> Any:
    """A console as narrow as a terminal, whose words are kept."""
    from rich.console import Console

    class Words:
        def write(self, text: str) -> int:
            said.append(text)
            return len(text)

        def flush(self) -> None: ...

    return Console(file=Words(), width=80)  # type: ignore[arg-type]


def numbers(printed: str, label: str) -> list[float]:
    """The numbers of a row of the table."""
    row = next(line for line in printed.splitlines() if re.match(rf"│ {label} +│", line))
    return [float(number) for number in re.findall(r"\d+\.\d+", row)]


def test_the_table_compares_at_equal_cost(shown: tuple[Path, str]) -> None:
    printed = shown[1]
    ours, plain = numbers(printed, "self-speculative"), numbers(printed, "plain")
    assert len(ours) == len(plain) == 6
    spelling, entropy, nfe = ours[0], ours[2], ours[4]
    assert 0 <= spelling <= 1
    assert 0 < entropy < 3.3  # nats; 27 symbols have at most 3.296
    # Steps are whole, and a random count may leave a few of them without anything to reveal.
    assert 0.85 * nfe - 1 < plain[4] <= nfe + 1


def test_samples_are_shown(shown: tuple[Path, str]) -> None:
    for title in ("plain", "self-speculative"):
        assert re.search(rf"╭─ {title} ─+╮\n│[ a-z]+│\n", shown[1])


def test_the_commands_it_prints_can_be_copied(
    shown: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(re.findall(r"^(infill|score|train): +specmask (.+)$", shown[1], re.MULTILINE))
    assert found.keys() == {"infill", "score", "train"}
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "infill.jsonl"
    words = shlex.split(found["infill"])
    assert cli.main([*words, "--num", "1", "--window", "full", "--out", str(out)]) == 0
    canvas = words[words.index("--canvas") + 1]
    text = json.loads(out.read_text().splitlines()[0])["text"]
    assert all(a in (b, "_") for a, b in zip(canvas, text, strict=True))
    (tmp_path / "FILE").write_text("the quick brown fox jumps over the lazy dog " * 6)
    short = ("--rows", "1", "--length", "8")
    assert cli.main([*shlex.split(found["score"]), *short]) == 0
    with pytest.raises(SystemExit) as leaving:  # read, not run
        cli.main([*shlex.split(found["train"]), "--help"])
    assert leaving.value.code == 0


class Outside(HTMLParser):
    """Gathers what a page would fetch, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script"
        for name, value in attrs:
            fetches = name == "src" or (tag == "link" and name == "href")
            if fetches and not (value or "").startswith("data:"):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)
        self._inside = False


def test_the_page_is_self_contained(shown: tuple[Path, str]) -> None:
    source = shown[0].read_text()
    page = Outside()
    page.feed(source)
    assert not page.fetched
    assert not re.search(r"url\((?!['\"]?(data:|#))|@import|fetch\(|XMLHttpRequest", source)
    assert list(shown[0].parent.iterdir()) == [shown[0]]


def test_the_page_replays_the_first_row_of_both(shown: tuple[Path, str]) -> None:
    page = Outside()
    page.feed(shown[0].read_text())
    data = next(json.loads(text) for text in page.scripts if text.lstrip().startswith("{"))
    plain, ours = data["replays"]
    assert plain["title"] == "Plain masked diffusion"
    assert ours["title"] == "Self-speculation"
    model = specmask.load("text8-small")
    sampler = specmask.Speculative(window=specmask.CosineWindow(0.3), rounds=3)
    drawn = specmask.sample(model, sampler, rows=[0], seed=0)
    row = list(ours["start"])
    for step in ours["steps"]:
        for position, token, _ in step["changes"]:
            row[position] = token
    assert row == drawn.tokens[0].tolist()
    assert "".join(ours["symbols"][str(token)] for token in row) == (drawn.text or [])[0]
    last = ours["steps"][-1]
    assert (last["trunk"], last["verify"]) == (drawn.trunk_passes[0], drawn.verify_passes[0])
    assert all(step["verify"] == 0 for step in plain["steps"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num", "0"), ("--num 0", "at least 1")),
        (("--show", "-1"), ("--show -1",)),
        (("--window", "cosin"), ("unknown window", "Did you mean 'cosine'")),
        (("--rounds", "0"), ("rounds=0",)),
        (("--model", "text8-smal"), ("'text8-smal'", "text8-small")),
        (("--out", "no/such/folder.html"), ("--out", "folder")),
        (("--out", "."), ("--out",)),
        (("--seed", "-1"), ("seed=-1",)),
        (("--device", "cudda"), ("cudda",)),
    ],
)
def test_refused_before_anything_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("specmask.models.hybrid.HybridTransformer.draft_features", drawn)
    assert cli.main(["demo", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("specmask: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert not list(tmp_path.iterdir())
