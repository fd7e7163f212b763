"""Loops that are timed do what they are said to do; tables say what the lines say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from oracle import tiny_network
from specmask.bench import speed, speed_parts
from specmask.bench.run import read_points, write_points
from specmask.bench.speed_cases import Case
from specmask.bench.speed_loops import ours, textbook
from specmask.bench.speed_tables import speed_tables
from specmask.cli import main
from specmask.data.tokenizers import character_tokenizer
from specmask.masking import ConstantWindow
from specmask.samplers import Ancestral, Speculative, speculative

LENGTH = 16
CASE = Case("tiny", 3, LENGTH, Speculative(ConstantWindow(4), rounds=2))


@pytest.fixture
def model(tmp_path: Path) -> specmask.Model:
    network = tiny_network(vocab_size=4, length=LENGTH, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer("ab c"))
    return specmask.load(tmp_path / "model")


def test_ours_is_the_whole_of_sampling(model: specmask.Model) -> None:
    timed = ours(model, CASE, seed=5)
    out = specmask.sample(model, CASE.sampler, num=3, seed=5)
    assert timed.tokens == 3 * LENGTH
    assert timed.passes == int(out.trunk_passes.max())
    assert sum(timed.rows) == int(out.trunk_passes.sum())  # rows that are done have left


def test_a_number_of_passes_is_kept(model: specmask.Model) -> None:
    timed = ours(model, replace(CASE, passes=2, known=0.5), seed=5)
    assert timed.passes == len(timed.rows) == 2
    assert 2 * 3 * 2 <= timed.tokens <= 2 * 3 * 4  # two ranks at least, the window at most


def test_the_textbook_loop_fills_every_row(model: specmask.Model) -> None:
    seen: list[torch.Tensor] = []
    network: Any = model.network
    network.trunk.register_forward_pre_hook(
        lambda _, inputs: seen.append((inputs[0] == network.mask_id).sum(1))
    )
    timed = textbook(model, CASE, 5)
    assert timed.tokens == 3 * LENGTH
    assert [row.tolist() for row in seen] == [[n] * 3 for n in (16, 13, 10, 7, 4)]
    assert timed.passes == 5


def test_parts_add_up_and_none_is_counted_twice(model: specmask.Model) -> None:
    found = speed_parts.parts(model, CASE, seed=5)
    assert tuple(found) == speed_parts.PARTS
    assert min(found.values()) > 0
    clock = speed_parts.Clock(torch.device("cpu"))
    with clock("outer"), clock("inner"):
        pass
    assert list(clock.seconds) == ["outer"]


def test_timing_leaves_no_trace_in_the_samplers(model: specmask.Model) -> None:
    def functions() -> dict[str, Any]:
        return {name: vars(speculative).get(name) for name in speed_parts._DRAWS}

    before = functions()
    speed_parts.parts(model, CASE)
    assert functions() == before


def test_a_later_round_asks_for_the_window_alone(model: specmask.Model) -> None:
    point = speed.later_rounds(model, 2, LENGTH, 4, 3)
    assert len(point["seconds"]["window"]) == len(point["seconds"]["row"]) == 3
    assert min(point["seconds"]["window"]) > 0


def test_half_of_the_rows_have_little_to_fill(model: specmask.Model) -> None:
    point = speed.half_finished(model, 4, LENGTH, 1)
    assert set(point["seconds"]) == {"none early", "half early"}


def test_equal_quality_names_the_steps(model: specmask.Model) -> None:
    point = speed.equal_quality(model, 2, 2, [Ancestral(3, "fixed"), Ancestral(6, "fixed")])
    assert {name: len(x) for name, x in point["seconds"].items()} == {
        "ours": 2,
        "3 steps": 2,
        "6 steps": 2,
    }


def line(loop: str, seconds: list[float], passes: int, tokens: int) -> dict[str, object]:
    return {
        "kind": "loop",
        "loop": loop,
        **CASE.about(),
        "passes": passes,
        "tokens": tokens,
        "row_passes": 3 * passes,
        "seconds": seconds,
        "machine": {"device": "a chip"},
        "threads": 2,
    }


def test_ratios_are_within_a_round_and_per_pass(tmp_path: Path) -> None:
    """The machine is twice as slow in the second round; the textbook loop makes twice the passes,
    and left to right a token costs a tenth of a pass."""
    points = [
        line("ours", [1.0, 2.0, 1.0], 10, 120),
        line("bare", [0.8, 1.6, 0.8], 10, 0),
        line("textbook", [6.0, 12.0, 4.0], 20, 120),
        line("left-to-right", [0.4, 0.8, 0.4], 40, 120),
    ]
    write_points(tmp_path / "speed.jsonl", points)
    row = speed_tables(read_points(tmp_path / "speed.jsonl")).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[5:] == [
        "4.0",
        "1.25 (1.25–1.25)",
        "3.00 (2.00–3.00)",
        "10.00 (10.00–10.00)",
        "10.00",
    ]


def test_the_command_goes_on_where_it_was_stopped(
    model: specmask.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["bench-speed", str(tmp_path / "model"), "--out", str(out), "--scales", "model"]
    command += ["--batches", "2", "--rounds", "1"]
    stopped = RuntimeError("stopped")

    def stop(*args: object) -> None:
        raise stopped

    with monkeypatch.context() as patch:
        patch.setattr(speed, "half_finished", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            main(command)
    before = (out / "speed.jsonl").read_text(encoding="utf-8")
    assert main(command) == 0
    after = (out / "speed.jsonl").read_text(encoding="utf-8")
    assert after.startswith(before)
    assert '"half"' in after.removeprefix(before)
    assert '"loop"' not in after.removeprefix(before)
    assert (out / "speed.png").stat().st_size > 10_000
    text = (out / "speed.md").read_text(encoding="utf-8")
    assert main(["bench-speed", "--out", str(out)]) == 0  # from the results alone
    assert (out / "speed.md").read_text(encoding="utf-8") == text
    assert main([*command, "--equal-steps", "3"]) == 0  # other steps are timed beside
    more = (out / "speed.jsonl").read_text(encoding="utf-8").removeprefix(after)
    assert more.count("\n") == 1
    assert '"3 steps"' in more
    other = (
        (out / "speed.jsonl").read_text(encoding="utf-8").replace('"weights": "', '"weights": "0')
    )
    (out / "speed.jsonl").write_text(other, encoding="utf-8")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["nowhere"], "nowhere"),
        (["MODEL", "--rounds", "0"], "--rounds 0"),
        (["MODEL", "--batches", "0"], "--batches 0"),
        (["MODEL", "--device", "tpu"], "tpu"),
        ([], "no "),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    expected: str,
    model: specmask.Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [str(tmp_path / "model") if word == "MODEL" else word for word in options]
    assert main(["bench-speed", *named, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
