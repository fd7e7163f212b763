"""Recorded histories against the frames they come from, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from specmask import Frame, UserError
from specmask.samplers import Sampler
from specmask.web import replay
from specmask.web.replay import MASKED, NO_DRAFT, Replay, Step

SYMBOLS = list(" abcdefghijklmnopqrstuvwxyz")
MASK = len(SYMBOLS)
LENGTH = 48
GIVEN = {3: 1, 4: 2, 20: 0}  # position → token
SPECULATIVE = specmask.Speculative(window=specmask.CosineWindow(0.1), rounds=2)
ANCESTRAL = specmask.Ancestral(steps=12)


def frames(sampler: Sampler, rows: int = 1) -> list[Frame]:
    """Of a network whose head disagrees with its trunk, on a canvas with three given tokens."""
    config = specmask.HybridConfig(
        vocab_size=len(SYMBOLS), length=LENGTH, width=32, heads=2, trunk_layers=3, head_layers=1
    )
    torch.manual_seed(0)
    network = specmask.HybridTransformer(config)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if name.startswith("head."):
                weights.add_(0.2 * torch.randn_like(weights))
    canvas = torch.full((rows, LENGTH), MASK)
    canvas[:, list(GIVEN)] = torch.tensor(list(GIVEN.values()))
    return list(specmask.stream(specmask.wrap(network), sampler, canvas=canvas))


# --------------------------------------------------------------------------------------- record


@pytest.mark.parametrize("sampler", [SPECULATIVE, ANCESTRAL])
def test_changes_replay_every_frame(sampler: Sampler) -> None:
    run = frames(sampler)
    made = replay.record(run, SYMBOLS, MASK, "title")
    assert len(made.steps) == len(run)
    for step, frame in enumerate(run):
        expected = [MASKED if token == MASK else token for token in frame.tokens[0].tolist()]
        assert made.tokens_at(step) == expected
        assert made.steps[step].nfe == float(frame.passes.nfe[0])
        assert made.steps[step].trunk == int(frame.passes.trunk[0])
        assert made.steps[step].verify == int(frame.passes.verify[0])
    assert made.text == "".join(SYMBOLS[token] for token in run[-1].tokens[0].tolist())
    assert {p: token for p, token in enumerate(made.start) if token != MASKED} == GIVEN
    assert made.steps[0].changes == ()


def test_only_what_changed_is_kept_and_every_rejection_is() -> None:
    run = frames(SPECULATIVE)
    made = replay.record(run, SYMBOLS, MASK, "title")
    changes = [change for step in made.steps for change in step.changes]
    assert len(changes) == LENGTH - len(GIVEN)  # each free position once
    rejections = sum(draft != NO_DRAFT for _, _, draft in changes)
    assert rejections == made.steps[-1].rejected == sum(int(f.info.rejected[0]) for f in run)
    assert rejections > 0, "the toy network must reject, or this test sees nothing"
    assert all(draft != token for _, token, draft in changes)  # a redrawn token differs
    assert made.steps[-1].accepted + rejections == len(changes)
    revealed_in_order = [position for position, _, _ in changes]
    assert revealed_in_order == run[-1].order[0, len(GIVEN) :].tolist()


def test_a_row_of_many_is_that_row_alone() -> None:
    run = frames(SPECULATIVE, rows=3)
    for row in range(3):
        made = replay.record(run, SYMBOLS, MASK, "title", row=row)
        last = [frame for frame in run if row in frame.rows.tolist()][-1]
        tokens = last.tokens[last.rows.tolist().index(row)].tolist()
        assert made.tokens_at(len(made.steps) - 1) == tokens
    assert replay.record(run, SYMBOLS, MASK, "t") == replay.record(run, SYMBOLS, MASK, "t", row=0)


def test_padding_is_cut_off() -> None:
    network = specmask.HybridTransformer(
        specmask.HybridConfig(
            vocab_size=27, length=8, width=32, heads=2, trunk_layers=1, head_layers=1
        )
    )
    run = specmask.stream(specmask.wrap(network), SPECULATIVE, num=1, length=8, lengths=[5])
    made = replay.record(run, SYMBOLS, MASK, "title")
    assert len(made.start) == len(made.text) == 5


def test_symbols_by_function_and_by_table_agree() -> None:
    run = frames(SPECULATIVE)
    table = replay.record(run, SYMBOLS, MASK, "title")
    assert table == replay.record(run, lambda tokens: [SYMBOLS[t] for t in tokens], MASK, "title")


def test_bad_frames_and_symbols_are_refused() -> None:
    run = frames(ANCESTRAL)
    with pytest.raises(UserError, match="step 0"):
        replay.record(run[1:], SYMBOLS, MASK, "title")
    with pytest.raises(UserError, match="step 2"):
        replay.record(run[:2] + run[3:], SYMBOLS, MASK, "title")
    with pytest.raises(UserError, match="row 7"):
        replay.record(run, SYMBOLS, MASK, "title", row=7)
    with pytest.raises(UserError, match="no frame"):
        replay.record([], SYMBOLS, MASK, "title")
    with pytest.raises(UserError, match="5 symbols"):
        replay.record(run, SYMBOLS[:5], MASK, "title")
    with pytest.raises(UserError, match="one each"):
        replay.record(run, lambda tokens: ["".join(SYMBOLS[t] for t in tokens)], MASK, "title")


# ---------------------------------------------------------------------------------------- write

NASTY = ["</script><script>throw 1</script>", "<b>&amp;</b>", "\"'`\\", "\u2028<!--", "\n", "${x}"]


def nasty() -> Replay:
    """Every symbol that could break out of its place, all revealed in one step."""
    changes = tuple((position, position, NO_DRAFT) for position in range(len(NASTY)))
    steps = (Step(0, 0, 0.0, 0, 0, ()), Step(1, 0, 1.0, len(NASTY), 0, changes))
    start = (MASKED,) * len(NASTY)
    return Replay("</title><i>", "a & b", dict(enumerate(NASTY)), start, steps)


def embedded(page: Path) -> Any:
    """The data in a page, found as a browser finds it: up to the next </script."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.S)
    assert found
    return json.loads(found[1])


def test_symbols_cannot_break_out_of_the_script(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    replay.write(page, [nasty()])
    assert embedded(page) == {"replays": [json.loads(json.dumps(asdict(nasty())))]}
    text, template = page.read_text(), Path(replay.__file__).with_name("replay.html").read_text()
    for character in "<>&":
        assert text.count(character) == template.count(character)


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    replay.write(tmp_path / "page.html", [nasty()])
    text = (tmp_path / "page.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"https://arxiv.org/abs/2510.03929", "http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc=|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_page_is_not_overwritten_unasked(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    with pytest.raises(UserError, match="there already"):
        replay.write(page, [nasty()])
    assert page.read_text() == "mine"
    replay.write(page, [nasty()], overwrite=True)
    assert embedded(page)
    assert list(tmp_path.iterdir()) == [page]  # nothing half-written is left


def test_other_places_it_cannot_write_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no replay"):
        replay.write(tmp_path / "page.html", [])
    with pytest.raises(UserError, match="no folder"):
        replay.write(tmp_path / "absent" / "page.html", [nasty()])
    with pytest.raises(UserError, match="is a folder"):
        replay.write(tmp_path, [nasty()], overwrite=True)


# -------------------------------------------------------------------------------------- browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome here")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--virtual-time-budget=3000",
]


class Dom(HTMLParser):
    """What a page shows: the cells of each row, the text of every element with an id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.body: dict[str, str | None] = {}
        self.panels: list[dict[str, str | None]] = []
        self.cells: list[list[dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []  # (tag, id)
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        if tag == "body":
            self.body = has
        if has.get("class") == "replay":
            self.panels.append(has)
        if has.get("class") == "row":
            self.cells.append([])
        if has.get("class") == "cell" and any(key and key[:4] == "row-" for _, key in self._open):
            self.cells[-1].append({**has, "text": ""})
        if tag not in ("meta", "link", "input", "br"):
            self._open.append((tag, has.get("id")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, key in self._open:
            if key:
                self.text[key] = self.text.get(key, "") + data
                if key.startswith("row-"):
                    cell = self.cells[-1][-1]
                    cell["text"] = (cell["text"] or "") + data


Show = Callable[..., Dom]


@pytest.fixture
def show(tmp_path: Path) -> Show:
    """Open a page of some replays at an address's #hash, and read what it then shows.

    A script may be run after the page's own, as a hand on its controls.
    """

    def opened(replays: list[Replay], at: str, script: str = "") -> Dom:
        page = tmp_path / "page.html"
        replay.write(page, replays, overwrite=True)
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [CHROMIUM or "", *FLAGS, profile, "--dump-dom", page.as_uri() + at]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        dom = Dom(done.stdout)
        assert "data-error" not in dom.body, dom.body["data-error"]
        return dom

    return opened


@pytest.fixture(scope="module")
def history() -> Replay:
    return replay.record(frames(SPECULATIVE), SYMBOLS, MASK, "Self-speculation")


def expected_cells(made: Replay, step: int) -> list[tuple[str, str, str, bool, str | None]]:
    """(state, step, text, new, draft) of each cell, by the words of the docstrings."""
    cells: list[tuple[str, int, str, str | None]] = [
        ("masked", 0, "", None) if token == MASKED else ("given", 0, made.symbols[token], None)
        for token in made.start
    ]
    for index, past in enumerate(made.steps[: step + 1]):
        for position, token, draft in past.changes:
            old = None if draft == NO_DRAFT else made.symbols[draft].replace(" ", "␣")
            state = "accepted" if old is None else "resampled"
            cells[position] = (state, index, made.symbols[token], old)
    return [(s, str(n), text, n == step and step > 0, old) for s, n, text, old in cells]


def shown_cells(dom: Dom, index: int = 0) -> list[tuple[Any, ...]]:
    return [
        (c["data-state"], c["data-step"], c["text"], "data-new" in c, c.get("data-draft"))
        for c in dom.cells[index]
    ]


@in_browser
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_page_shows_a_step(show: Show, history: Replay, place: str) -> None:
    last = len(history.steps) - 1
    rejecting = next(n for n, s in enumerate(history.steps) if s.rejected > 0)
    step = {"first": 0, "middle": rejecting, "last": last}[place]
    assert 0 < rejecting < last
    dom = show([history], f"#step={step}")

    assert shown_cells(dom) == expected_cells(history, step)
    states = {state for state, *_ in shown_cells(dom)}
    all_but = {"first": {"accepted", "resampled"}, "middle": set(), "last": {"masked"}}
    assert states == {"masked", "given", "accepted", "resampled"} - all_but[place]
    assert dom.body["data-step"] == dom.panels[0]["data-step"] == str(step)
    totals = history.steps[step]
    for key in ("trunk", "verify", "accepted", "rejected"):
        assert dom.text[f"{key}-0"] == str(getattr(totals, key))
    # One decimal; a tie such as 8.25 rounds up in a browser and to even here.
    assert re.fullmatch(r"\d+\.\d", dom.text["nfe-0"])
    assert float(dom.text["nfe-0"]) == pytest.approx(totals.nfe, abs=0.05 + 1e-9)
    known = sum(token != MASKED for token in history.tokens_at(step))
    assert dom.text["revealed-0"] == f"{known} of {LENGTH}"
    assert dom.text["title-0"] == "Self-speculation"


@in_browser
def test_replays_run_on_one_clock(show: Show, history: Replay) -> None:
    """At tick k each replay stands at its last step that cost no more than the tick's NFE."""
    plain = replay.record(frames(ANCESTRAL), SYMBOLS, MASK, "Plain")
    times = sorted({round(s.nfe, 9) for made in (plain, history) for s in made.steps})
    tick = len(times) // 2
    dom = show([plain, history], f"#step={tick}")
    for index, made in enumerate((plain, history)):
        step = max(n for n, s in enumerate(made.steps) if s.nfe <= times[tick] + 1e-9)
        assert dom.panels[index]["data-step"] == str(step)
        assert shown_cells(dom, index) == expected_cells(made, step)
    assert dom.text["clock"].startswith(f"step {tick} of {len(times) - 1} ")


@in_browser
def test_symbols_are_shown_as_they_are(show: Show) -> None:
    dom = show([nasty()], "#step=9999")  # beyond the end is the end
    assert dom.body["data-step"] == "1"
    texts = [cell["text"] for cell in dom.cells[0]]
    assert texts == [symbol.replace("\n", "↵") for symbol in NASTY]
    assert dom.text["title-0"] == "</title><i>"


@in_browser
def test_without_a_step_in_the_address_it_plays(show: Show, history: Replay) -> None:
    short = replace(history, steps=history.steps[:3])  # 2 passes or so take 3 virtual seconds
    dom = show([short], "")
    assert int(dom.body["data-step"] or 0) > 0
    standing = show([short], "#step=0")
    assert standing.body["data-step"] == "0"
    assert "data-playing" not in standing.body


CONTROLS = """
const seen = [], look = () => seen.push(document.body.dataset.step);
const press = (key) => { document.body.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })); look(); };
const scrubber = document.getElementById("scrubber");
press("ArrowRight"); press("ArrowRight"); press("ArrowLeft");
press("End"); press("ArrowRight"); press("Home"); press("ArrowLeft");
document.getElementById("forward").click(); look();
document.getElementById("back").click(); look();
scrubber.value = Number(scrubber.max) * 0.999;
scrubber.dispatchEvent(new Event("input")); look();
press(" "); seen.push(document.getElementById("play").textContent);
press(" "); seen.push(document.getElementById("play").textContent);
location.hash = "#step=3";
setTimeout(() => { look(); document.body.dataset.seen = seen.join(" "); }, 100);
"""


@in_browser
def test_the_controls_move_it(show: Show, history: Replay) -> None:
    last = len(history.steps) - 1
    dom = show([history], "#step=2", CONTROLS)
    keys = f"3 4 3 {last} {last} 0 0"
    buttons = f"1 0 {last - 1}"  # a scrubber short of the last step stands at the one before
    played = f"{last - 1} Pause {last - 1} Play"
    assert dom.body["data-seen"] == f"{keys} {buttons} {played} 3"


@in_browser
def test_a_row_with_nothing_to_reveal(show: Show) -> None:
    done = Replay("given", "", {0: "a"}, (0, 0), (Step(0, 0, 0.0, 0, 0, ()),))
    dom = show([done], "#step=0")
    assert [cell["data-state"] for cell in dom.cells[0]] == ["given", "given"]
    assert dom.text["revealed-0"] == "2 of 2"
