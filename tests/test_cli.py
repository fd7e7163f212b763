"""The command line as a user meets it: what it writes, and how it refuses what it cannot use."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

import specmask
from refusal import command
from specmask import cli
from specmask.data.tokenizers import character_tokenizer
from specmask.models.checkpoint import file_sha256
from specmask.models.hybrid import Trunk
from specmask.training.loop import versions

PROGRAM = Path(sys.executable).parent / "specmask"
LENGTH = 16
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
ALPHABET = sorted(set(TEXT))
NETWORK = ("--width", "16", "--heads", "1", "--trunk-layers", "2", "--length", str(LENGTH))
SHORT = (
    *("--steps", "6", "--warmup", "2", "--batch-size", "4", "--save-every", "3"),
    *("--log-every", "2", "--compile", "False", "--precision", "fp32"),
)


def train_words(data: Path, out: Path) -> tuple[object, ...]:
    return ("train", "characters", "--data", data, "--out", out, *NETWORK, *SHORT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text (data.txt) and a run on it (run/), which no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data.txt").write_text(TEXT)
    assert command(*train_words(folder / "data.txt", folder / "run")) == 0
    return folder


@pytest.fixture
def data(trained: Path) -> Path:
    return trained / "data.txt"


@pytest.fixture
def model(trained: Path) -> Path:
    return trained / "run" / "model"


@pytest.fixture
def broken(tmp_path: Path, model: Path) -> Callable[..., Path]:
    """A copy of the model whose tensors were changed, with a hash that fits them again."""

    def make(change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        folder = shutil.copytree(model, tmp_path / "broken")
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        config["sha256"]["model.safetensors"] = file_sha256(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def content(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must fail with one line and code 2 and leave `tmp_path` as it is."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> str:
        before = content(tmp_path)
        capsys.readouterr()
        assert command(*argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("specmask: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert content(tmp_path) == before
        return err

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ----------------------------------------------------------------------------------------- train


def test_train_leaves_a_log_checkpoints_and_a_model(trained: Path) -> None:
    run = trained / "run"
    log = lines(run / "log.jsonl")
    assert log[0]["config"]["steps"] == 6
    assert log[0]["network"]["width"] == 16
    assert log[0]["network"]["vocab_size"] == len(ALPHABET)
    assert [row["step"] for row in log if row["kind"] == "train"] == [2, 4, 6]
    assert [row["step"] for row in log if row["kind"] == "validation"] == [6]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-0000003",
        "step-0000006",
    ]
    network = specmask.load(run / "model").network
    assert (network.trunk_layers, network.length) == (2, LENGTH)


def test_resume_makes_the_same_model(
    tmp_path: Path, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the run had been killed after its checkpoint of step 3."""
    run = shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    assert command(*train_words(data, run), "--resume") == 0
    assert "going on from step 3" in capsys.readouterr().err
    weights = [folder / "model" / "model.safetensors" for folder in (run, trained / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_resume_from_the_checkpoint_before_a_flipped_byte(
    tmp_path: Path, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    flip(run / "checkpoints" / "step-0000006" / "ema.safetensors")
    assert command(*train_words(data, run), "--resume") == 0
    said = capsys.readouterr().err
    assert "step-0000006 is damaged (ema.safetensors" in said
    assert "going on from step 3" in said


def test_resume_refuses_when_every_checkpoint_is_damaged(
    tmp_path: Path, trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each damaged one is named in a line of its own before the refusal."""
    run = shutil.copytree(trained / "run", tmp_path / "run")
    for step in (3, 6):
        flip(run / "checkpoints" / f"step-000000{step}" / "model.safetensors")
    before = content(run)
    capsys.readouterr()
    assert command(*train_words(data, run), "--resume") == 2
    *warnings, last = capsys.readouterr().err.splitlines()
    assert "step-0000006 is damaged" in warnings[0]
    assert "step-0000003 is damaged" in warnings[1]
    assert last.startswith("specmask: all 2 checkpoints")
    assert content(run) == before


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 0x10
    path.write_bytes(whole)


def test_train_refuses_a_folder_that_holds_a_run(
    tmp_path: Path, trained: Path, data: Path, refused: Callable[..., str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    assert "--resume" in refused(*train_words(data, run))


def test_resume_refuses_another_run(
    tmp_path: Path, trained: Path, data: Path, refused: Callable[..., str]
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    said = refused(*train_words(data, run), "--resume", "--lr", "0.5")
    assert "config.lr (was 0.002, now 0.5)" in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ("no file", "data.txt")),
        ("empty", ("is empty",)),
        ("binary", ("is binary", "offset 3")),
        ("folder", ("is a folder",)),
        ("latin1", ("is not UTF-8", "offset 1")),
        ("short", ("4 tokens", "longer text")),
    ],
)
def test_train_refuses_data(
    tmp_path: Path, refused: Callable[..., str], kind: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "data.txt"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        contents = {"empty": b"", "binary": b"abc\0d", "latin1": b"h\xe9", "short": b"to be"}
        path.write_bytes(contents[kind])
    said = refused(*train_words(path, tmp_path / "run"))
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--steps", "0"), ("steps", "at least 1", "got 0")),
        (("--steps", "-5"), ("steps", "at least 1", "got -5")),
        (("--batch-size", "0"), ("batch_size", "got 0")),
        (("--lr", "-1"), ("lr", "above 0")),
        (("--lr", "nan"), ("lr", "nan")),
        (("--precision", "fp16"), ("unknown precision 'fp16'", "bf16, fp32")),
        (("--optimizer", "adam"), ("unknown optimizer 'adam'", "Did you mean 'adamw'")),
        (("--heads", "5"), ("width=16", "divisible")),
        (("--width", "0"), ("width=0",)),
        (("--trunk-layers", "0"), ("trunk_layers=0",)),
        (("--keep", "1"), ("keep", "at least 2")),
    ],
)
def test_train_refuses_settings(
    tmp_path: Path,
    data: Path,
    refused: Callable[..., str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    said = refused(*train_words(data, tmp_path / "run"), *options)
    assert all(word in said for word in words)


def test_init_starts_from_another_model(
    tmp_path: Path, data: Path, model: Path, refused: Callable[..., str]
) -> None:
    """A learning rate that moves nothing shows where the run started."""
    words = (*train_words(data, tmp_path / "run"), "--lr", "1e-30", "--muon-lr", "1e-30")
    assert command(*words, "--init", model, "--ema", "0") == 0
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "model", model)
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    words = train_words(data, tmp_path / "wider")
    assert "another shape" in refused(*words, "--width", "32", "--init", model)
    assert "unknown model" in refused(*words, "--init", tmp_path / "nothing")


def test_train_refuses_a_recipe_and_a_missing_text(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused("train", "charcters", "--out", tmp_path / "run")
    assert "unknown recipe 'charcters'" in said
    assert "Did you mean 'characters'" in said
    said = refused("train", "characters", "--out", tmp_path / "run")
    assert "--data" in said


def test_train_text8_names_the_symbol_outside_the_alphabet(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "data.txt").write_text("hello\nworld")
    said = refused(
        "train", "text8-small", "--data", tmp_path / "data.txt", "--out", tmp_path / "run"
    )
    assert r"'\n' at offset 5" in said


def test_train_refuses_an_out_that_is_a_file(
    tmp_path: Path, data: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "run").write_text("mine")
    assert "run" in refused(*train_words(data, tmp_path / "run"))


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "writer",
    ["specmask.training.checkpoints.save_file", "specmask.models.checkpoint.save_file"],
)
def test_train_on_a_full_disk(
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    monkeypatch.setattr(writer, full_disk)
    assert command(*train_words(data, tmp_path / "run")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("specmask: ")
    assert "No space left on device" in last
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".old"))]
    assert not left
    assert not (tmp_path / "run" / "model").exists()


# ---------------------------------------------------------------------------------------- sample


def sampled(model: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    assert command("sample", model, "--out", out, *options) == 0
    return lines(out)


def test_sample_writes_every_field(tmp_path: Path, model: Path) -> None:
    rows = sampled(
        *(model, tmp_path / "a.jsonl", "--num", 3, "--seed", 7, "--window", "cosine:0.2"),
        *("--rounds", 2, "--temperature", 0.5),
    )
    assert [row["row"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["text"] == "".join(ALPHABET[token] for token in row["tokens"])
        assert len(row["tokens"]) == LENGTH
        assert row["nfe"] == pytest.approx((2 * row["trunk_passes"] + row["verify_passes"]) / 3)
        assert 1 <= row["trunk_passes"] <= LENGTH
        assert row["accepted"] + row["rejected"] == LENGTH
        assert row["seconds"] > 0
        assert row["settings"] == {
            "window": "cosine:0.2",
            "rounds": 2,
            "first": "accept",
            "order": "random",
            "temperature": 0.5,
            "top_p": 1.0,
            "verification": "token",
            "stop": 0.0,
        }
        assert (row["sampler"], row["seed"]) == ("speculative", 7)
        assert row["versions"] == versions()


def test_sample_is_what_the_library_gives(tmp_path: Path, model: Path) -> None:
    rows = sampled(model, tmp_path / "a.jsonl", "--sampler", "any-order", "--num", 3, "--length", 9)
    expected = specmask.sample(specmask.load(model), specmask.AnyOrder(), num=3, length=9, seed=0)
    assert [row["tokens"] for row in rows] == expected.tokens.tolist()


def test_sample_repeats_and_continues(tmp_path: Path, model: Path) -> None:
    whole = [row["text"] for row in sampled(model, tmp_path / "a.jsonl", "--num", 5, "--seed", 3)]
    again = sampled(model, tmp_path / "b.jsonl", "--num", 5, "--seed", 3, "--batch-size", 2)
    later = sampled(model, tmp_path / "c.jsonl", "--num", 2, "--seed", 3, "--first-row", 3)
    other = sampled(model, tmp_path / "d.jsonl", "--num", 5, "--seed", 4)
    assert [row["text"] for row in again] == whole
    assert [row["text"] for row in later] == whole[3:]
    assert [row["row"] for row in later] == [3, 4]
    assert [row["text"] for row in other] != whole


def test_sample_tells_what_auto_comes_to(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = sampled(model, tmp_path / "a.jsonl", "--num", 5)
    capsys.readouterr()
    rows = sampled(model, tmp_path / "b.jsonl", "--num", 5, "--batch-size", "auto")
    assert [row["text"] for row in rows] == [row["text"] for row in few]
    assert re.match(
        r"batches of 8: at most 0\.\d+ GB by estimate, of [\d.]+ GB free\n", capsys.readouterr().err
    )


def test_sample_goes_on_where_memory_runs_out(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line says so, and batches after that are no larger than what fitted."""
    whole = sampled(model, tmp_path / "a.jsonl", "--num", 9)
    forward, asked = Trunk.forward, []

    def scarce(trunk: Trunk, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        asked.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(trunk, tokens, lengths)

    monkeypatch.setattr(Trunk, "forward", scarce)
    capsys.readouterr()
    rows = sampled(model, tmp_path / "b.jsonl", "--num", 9, "--batch-size", 4)
    assert [row["text"] for row in rows] == [row["text"] for row in whole]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "out of memory: going on with batches of 2"
    assert len(said) == 2  # the other says where the samples are
    assert [count for count in asked if count > 2] == [4]


def test_sample_runs_on_as_many_threads_as_it_is_told(tmp_path: Path, model: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        sampled(model, tmp_path / "a.jsonl", "--num", 1, "--threads", 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_sample_prints_text_to_stdout_and_cost_to_stderr(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("sample", model, "--num", 2, "--length", 8, "--sampler", "ancestral") == 0
    out, err = capsys.readouterr()
    drawn = specmask.sample(specmask.load(model), specmask.Ancestral(), num=2, length=8, seed=0)
    assert out == "".join(f"{text}\n" for text in drawn.text or [])
    assert "NFE" in err


@pytest.mark.parametrize("mask", ["_", "?"])
def test_canvas_keeps_what_is_given(tmp_path: Path, model: Path, mask: str) -> None:
    canvas = "the ????? f?x".replace("?", mask)
    rows = sampled(model, tmp_path / "a.jsonl", "--num", 4, "--canvas", canvas, "--mask", mask)
    for row in rows:
        assert len(row["text"]) == len(canvas)
        assert all(a in (b, mask) for a, b in zip(canvas, row["text"], strict=True))
        assert row["accepted"] + row["rejected"] == canvas.count(mask)
    assert len({row["text"] for row in rows}) > 1


def test_canvas_of_masks_alone(tmp_path: Path, model: Path) -> None:
    free = sampled(model, tmp_path / "a.jsonl", "--num", 1, "--length", 6)
    canvas = sampled(model, tmp_path / "b.jsonl", "--num", 1, "--canvas", "______")
    assert free[0]["tokens"] == canvas[0]["tokens"]


SETTINGS_REFUSED = [
    (("--sampler", "speculativ"), ("unknown sampler", "Did you mean 'speculative'")),
    (("--window", "cosin:0.05"), ("unknown window 'cosin'", "Did you mean 'cosine'")),
    (("--window", "cosine"), ("cosine", "expected a number")),
    (("--window", "cosine:-0.1"), ("-0.1", "0 < step <= 1")),
    (("--window", "cosine:1.5"), ("1.5", "0 < step <= 1")),
    (("--window", "linear:0"), ("0.0", "0 < step <= 1")),
    (("--window", "cosine:nan"), ("nan", "0 < step <= 1")),
    (("--window", "constant:0"), ("constant window=0", "from 1")),
    (("--window", "full:3"), ("'full' takes no number",)),
    (("--order", "randm"), ("unknown order", "Did you mean 'random'")),
    (("--first", "verfy"), ("unknown first-rank rule", "Did you mean 'verify'")),
    (("--rounds", "0"), ("rounds=0", "at least 1")),
    (("--rounds", "-2"), ("rounds=-2", "at least 1")),
    (("--top-p", "0"), ("top_p 0", "0 < top_p <= 1")),
    (("--top-p", "1.5"), ("top_p 1.5", "0 < top_p <= 1")),
    (("--temperature", "-1"), ("temperature -1", ">= 0")),
    (("--temperature", "nan"), ("temperature nan",)),
    (("--steps", "8"), ("--steps is not a setting of sampler 'speculative'", "--rounds")),
    (("--sampler", "ancestral", "--rounds", "2"), ("--rounds is not a setting", "--steps")),
    (("--sampler", "ancestral", "--steps", "0"), ("steps=0", "at least 1")),
    (("--sampler", "ancestral", "--steps", "-3"), ("steps=-3", "at least 1")),
    (
        ("--sampler", "ancestral", "--schedule", "cosin"),
        ("unknown schedule", "Did you mean 'cosine'"),
    ),
    (("--sampler", "ancestral", "--counts", "fix"), ("unknown counts", "Did you mean 'fixed'")),
    (("--sampler", "any_order", "--source", "drft"), ("unknown source", "Did you mean 'draft'")),
    (("--device", "cudda"), ("device cudda",)),
    (("--device", "cuda:99"), ("device cuda:99",)),
    (("--device", "meta"), ("device meta", "cannot compute")),
    (("--device", "hpu"), ("device hpu", "cannot compute")),
]
MODES_REFUSED = [
    (("--dtype", "bfloat"), ("unknown dtype 'bfloat'", "Did you mean 'bfloat16'")),
    (("--compile", "graph"), ("unknown compile 'graph'", "Did you mean 'graphs'")),
    (("--compile", "graphs"), ("compile='graphs' on cpu", "CUDA")),
    (("--quantize", "int4"), ("unknown quantize 'int4'", "int8")),
    (("--quantize", "int8", "--compile", "True"), ("quantize='int8'", "leave one")),
    (("--quantize", "int8", "--dtype", "bfloat16"), ("quantize='int8'", "leave one")),
]


@pytest.mark.parametrize(("options", "words"), SETTINGS_REFUSED)
@pytest.mark.parametrize("verb", ["sample", "score"])
def test_settings_refused(
    tmp_path: Path,
    model: Path,
    data: Path,
    refused: Callable[..., str],
    verb: str,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    file = (data,) if verb == "score" else ()
    said = refused(verb, model, *file, "--out", tmp_path / "a.jsonl", *options)
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num", "0"), ("--num 0", "at least 1")),
        (("--num", "-4"), ("--num -4", "at least 1")),
        (("--first-row", "-1"), ("--first-row -1", "at least 0")),
        (("--batch-size", "0"), ("0", "at least 1")),
        (("--batch-size", "-1"), ("-1", "at least 1")),
        (("--threads", "0"), ("--threads 0", f"1 to {os.cpu_count()}")),
        (("--threads", "4096"), ("--threads 4096", f"1 to {os.cpu_count()}")),
        (("--length", "0"), ("--length 0", "at least 1")),
        (("--length", "17"), ("length=17", f"1 to {LENGTH}")),
        (("--seed", "-1"), ("--seed -1", "0 <=")),
        (("--canvas", "the_Fox"), ("--canvas", "'F'", "offset 4")),
        (("--canvas", "_" * 17), ("17", f"at most {LENGTH}")),
        (("--canvas", "the fox"), ("holds no '_'",)),
        (("--canvas", ""), ("holds no '_'",)),
        (("--canvas", "a__", "--mask", "__"), ("--mask", "one symbol")),
        (("--canvas", "a__", "--mask", ""), ("--mask", "one symbol")),
        (("--canvas", "a__", "--length", "5"), ("--length", "--canvas")),
    ],
)
def test_sample_refused(
    tmp_path: Path,
    model: Path,
    refused: Callable[..., str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    said = refused("sample", model, "--out", tmp_path / "a.jsonl", *options)
    assert all(word in said for word in words)


@pytest.mark.parametrize(("options", "words"), MODES_REFUSED)
@pytest.mark.parametrize("verb", ["sample", "bench", "score", "tune"])
def test_modes_refused(
    data: Path,
    refused: Callable[..., str],
    verb: str,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    """Before the model is loaded: this one is not there."""
    files: dict[str, tuple[object, ...]] = {
        "sample": (),
        "bench": ("--data", data),
        "score": (data,),
        "tune": ("--data", data, "--nfe", 8),
    }
    said = refused(verb, "nothing", *files[verb], *options)
    assert all(word in said for word in words)


@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--quantize", "int8")])
def test_bench_refuses_autocast_of_a_rounded_network(
    data: Path, refused: Callable[..., str], options: tuple[str, ...]
) -> None:
    assert "--bf16 with" in refused("bench", "nothing", "--data", data, "--bf16", *options)


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        ((), {}),
        (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
        (("--quantize", "int8"), {"quantize": "int8"}),
    ],
)
def test_sample_in_a_mode_is_what_the_library_gives(
    tmp_path: Path, model: Path, options: tuple[str, ...], modes: dict[str, Any]
) -> None:
    rows = sampled(model, tmp_path / "a.jsonl", "--num", 3, "--seed", 2, *options)
    out = specmask.sample(specmask.load(model, **modes), num=3, seed=2)
    plain = {"dtype": "float32", "compile": False, "quantize": None}
    for row, tokens in zip(rows, out.tokens.tolist(), strict=True):
        assert row["tokens"] == tokens
        assert {name: row[name] for name in plain} == {**plain, **modes}


def test_sample_says_that_it_compiles_before_it_does(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> torch.Tensor:
        assert "compile: the first pass" in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "compile", lambda *_, **__: run)
    monkeypatch.setattr("specmask.models.modes._check_compiler", lambda kind: None)
    assert command("sample", model, "--num", 1, "--compile", "True") == 130


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        *(("sample", (name, "-1")) for name in ("--num", "--first-row", "--batch-size")),
        *(("sample", (name, "-1")) for name in ("--length", "--seed")),
        ("sample", ("--first-row", str((1 << 32) - 1), "--num", "2")),
        ("sample", ("--canvas", "the fox")),
        ("sample", ("--mask", "__", "--canvas", "a__")),
        ("sample", ("--length", "3", "--canvas", "a__")),
        *(("score", (name, "-1")) for name in ("--rows", "--orders", "--batch-size")),
        *(("score", (name, "-1")) for name in ("--length", "--seed")),
    ],
)
def test_refused_before_the_model_is_loaded(
    data: Path, refused: Callable[..., str], verb: str, options: tuple[str, ...]
) -> None:
    """A model that is not there comes up only once the options are sound."""
    file = (data,) if verb == "score" else ()
    said = refused(verb, "nothing", *file, *options)
    assert options[0] in said
    assert "unknown model" not in said


def test_canvas_symbol_is_found_where_the_user_sees_it(refused: Callable[..., str], model: Path):
    """Masks count: the offset is that in the canvas as it was typed."""
    assert "'Q' at offset 5" in refused("sample", model, "--canvas", "a___ Q")


def test_canvas_needs_one_symbol_a_token(
    tmp_path: Path, model: Path, refused: Callable[..., str]
) -> None:
    """Where `th` is one token, the masks of `the ___` would land a place too far."""
    folder = shutil.copytree(model, tmp_path / "copy")
    symbols = [*ALPHABET[:-1], "th"]
    numbers = {symbol: number for number, symbol in enumerate(symbols)}
    Tokenizer(BPE(numbers, [("t", "h")])).save(str(folder / "tokenizer.json"))
    said = refused("sample", folder, "--canvas", "the ___")
    assert "--canvas" in said
    assert "several symbols" in said


# ------------------------------------------------------------------------ models, files, devices


@pytest.mark.parametrize("verb", ["sample", "score"])
def test_unknown_model(verb: str, data: Path, refused: Callable[..., str]) -> None:
    file = (data,) if verb == "score" else ()
    said = refused(verb, "text8-smal", *file)
    assert "unknown model 'text8-smal'" in said
    assert "text8-small" in said


def poison(state: dict[str, torch.Tensor]) -> None:
    state["head.out.weight"][0, 0] = math.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (poison, ("'head.out.weight'", "NaN")),
        (lambda state: state.pop("head.start"), ("misses tensor 'head.start'",)),
        (lambda state: state.update(extra=torch.zeros(1)), ("unexpected tensor 'extra'",)),
        (
            lambda state: state.update({"head.start": torch.zeros(3)}),
            ("'head.start' is (3,)", "(32,)"),
        ),
    ],
)
def test_model_with_wrong_tensors(
    broken: Callable[..., Path],
    refused: Callable[..., str],
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    words: tuple[str, ...],
) -> None:
    said = refused("sample", broken(change), "--out", tmp_path / "a.jsonl")
    assert all(word in said for word in words)


def test_model_with_a_flipped_byte(
    tmp_path: Path, model: Path, refused: Callable[..., str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    flip(folder / "model.safetensors")
    said = refused("sample", folder, "--out", tmp_path / "a.jsonl")
    assert "model.safetensors is damaged" in said


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_model_folder_without_a_file(
    tmp_path: Path, model: Path, refused: Callable[..., str], name: str
) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / name).unlink()
    assert f"holds no {name}" in refused("sample", folder)


def test_model_with_a_damaged_tokenizer(
    tmp_path: Path, model: Path, refused: Callable[..., str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json" in refused("sample", folder)


def test_model_without_a_tokenizer(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    row = sampled(folder, tmp_path / "a.jsonl", "--num", 1)[0]
    assert row["text"] is None
    capsys.readouterr()
    assert command("sample", folder, "--num", 1) == 0
    assert capsys.readouterr().out.split() == [str(token) for token in row["tokens"]]
    assert command("sample", folder, "--canvas", "a_") == 2
    assert command("score", folder, data) == 2
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sample", "score"])
def test_out_is_not_replaced_unasked(
    tmp_path: Path, model: Path, data: Path, refused: Callable[..., str], verb: str
) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("precious")
    file, few = ((data,), ("--rows", 1)) if verb == "score" else ((), ("--num", 1))
    assert "--overwrite" in refused(verb, model, *file, "--out", out, *few)
    assert "is a folder" in refused(verb, model, *file, "--out", tmp_path)
    assert "no folder" in refused(verb, model, *file, "--out", tmp_path / "no" / "a.jsonl")
    assert command(verb, model, *file, "--out", out, "--overwrite", *few) == 0
    assert len(lines(out)) == 1


def test_a_refused_overwrite_keeps_the_old_file(
    tmp_path: Path, model: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("precious")
    refused("sample", model, "--out", out, "--overwrite", "--length", 99)
    assert out.read_text() == "precious"


@pytest.mark.parametrize("old", [True, False])
def test_an_interrupted_overwrite_keeps_the_old_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """And a new file keeps the rows that were done: here those of the first of two batches."""
    batches = iter([specmask.sample])

    def sample(*args: Any, **kwargs: Any) -> specmask.Samples:
        for one in batches:
            return one(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(specmask, "sample", sample)
    out = tmp_path / "a.jsonl"
    if old:
        out.write_text("precious")
    words = ("sample", model, "--num", 4, "--batch-size", 2, "--overwrite")
    assert command(*words, "--out", out) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    if old:
        assert out.read_text() == "precious"
    else:
        assert [row["row"] for row in lines(out)] == [0, 1]


@pytest.mark.parametrize("verb", ["sample", "score"])
def test_overwrite_on_a_full_disk_keeps_the_old_file(
    tmp_path: Path,
    model: Path,
    data: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setattr(f"specmask.cli.{verb}.json_line", full_disk)
    (tmp_path / "a.jsonl").write_text("precious")
    file, few = ((data,), ("--rows", 1)) if verb == "score" else ((), ("--num", 1))
    said = refused(verb, model, *file, "--out", "a.jsonl", "--overwrite", *few)
    assert "No space left on device" in said


def test_overwrite_through_a_link(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.jsonl").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "a.jsonl")
    assert len(sampled(model, tmp_path / "link", "--num", 1, "--overwrite")) == 1
    assert (tmp_path / "link").is_symlink()
    assert len(lines(tmp_path / "a.jsonl")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("verb", ["sample", "score"])
def test_out_on_a_full_disk(
    model: Path, data: Path, refused: Callable[..., str], verb: str
) -> None:
    file, few = ((data,), ("--rows", 1)) if verb == "score" else ((), ("--num", 1))
    said = refused(verb, model, *file, "--out", "/dev/full", "--overwrite", *few)
    assert "No space left on device" in said


# ----------------------------------------------------------------------------------------- score


@pytest.mark.parametrize(
    ("options", "sampler", "left_to_right"),
    [
        (("--window", "cosine:0.3", "--rounds", 2), None, False),
        (("--order", "left-to-right"), specmask.Speculative(), True),
        (
            ("--sampler", "ancestral", "--counts", "fixed", "--steps", 5),
            specmask.Ancestral(steps=5, counts="fixed"),
            False,
        ),
        (
            ("--sampler", "any-order", "--source", "target"),
            specmask.AnyOrder(source="target"),
            False,
        ),
    ],
)
def test_score_agrees_with_the_library(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    sampler: Any,
    left_to_right: bool,
) -> None:
    sampler = sampler or specmask.Speculative(window=specmask.CosineWindow(0.3), rounds=2)
    text = TEXT[: 3 * LENGTH]
    (tmp_path / "text").write_text(text + "\n")
    out = tmp_path / "scores.jsonl"
    words = ("score", model, tmp_path / "text", "--rows", 3, "--orders", 2, "--seed", 5)
    assert command(*words, "--out", out, *options) == 0
    tokens = torch.tensor([ALPHABET.index(symbol) for symbol in text]).view(3, LENGTH)
    loaded, scores = specmask.load(model), lines(out)
    assert [(row["order"], row["row"]) for row in scores] == [
        (n, k) for n in (0, 1) for k in range(3)
    ]
    for number in (0, 1):
        order = specmask.random_orders(tokens, 5, number)
        if left_to_right:
            order = torch.arange(LENGTH).expand(3, LENGTH)
        log_prob = specmask.log_prob(loaded, tokens, order, sampler)
        trunk, verify = specmask.expected_passes(loaded, tokens, order, sampler)
        mine = scores[3 * number : 3 * number + 3]
        close = {"rel": 1e-5}
        assert [row["log_prob"] for row in mine] == pytest.approx(log_prob.tolist(), **close)
        bits = (-log_prob / math.log(2) / LENGTH).tolist()
        assert [row["bits_per_character"] for row in mine] == pytest.approx(bits, **close)
        assert [row["expected_trunk_passes"] for row in mine] == pytest.approx(trunk.tolist())
        assert [row["expected_verify_passes"] for row in mine] == pytest.approx(verify.tolist())
        nfe = ((2 * trunk + verify) / 3).tolist()
        assert [row["expected_nfe"] for row in mine] == pytest.approx(nfe, **close)
    mean = sum(row["bits_per_character"] for row in scores) / 6
    printed = capsys.readouterr().out
    assert printed.startswith(f"{mean:.4f} ± ")
    assert f"3 rows of {LENGTH}, 2 orders each" in printed


@pytest.mark.parametrize(
    ("options", "modes"),
    [
        (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
        (("--quantize", "int8"), {"quantize": "int8"}),
    ],
)
def test_scores_in_a_mode_are_laws_of_the_network_in_it(
    tmp_path: Path, model: Path, options: tuple[str, ...], modes: dict[str, Any]
) -> None:
    """As the library's, and not the float32 network's; each line says the mode."""
    (tmp_path / "text").write_text(TEXT[:LENGTH] + "\n")
    words = ("score", model, tmp_path / "text", "--rows", 1, "--seed", 5, "--overwrite")
    found = {}
    for name, more in (("plain", ()), ("mode", options)):
        assert command(*words, "--out", tmp_path / name, *more) == 0
        (found[name],) = lines(tmp_path / name)
    tokens = torch.tensor([[ALPHABET.index(symbol) for symbol in TEXT[:LENGTH]]])
    order = specmask.random_orders(tokens, 5, 0)
    law = specmask.log_prob(specmask.load(model, **modes), tokens, order, specmask.Speculative())
    assert found["mode"]["log_prob"] == pytest.approx(law.item(), rel=1e-9)
    assert found["mode"]["log_prob"] != pytest.approx(found["plain"]["log_prob"], rel=1e-9)
    plain = {"dtype": "float32", "compile": False, "quantize": None}
    assert {name: found["plain"][name] for name in plain} == plain
    assert {name: found["mode"][name] for name in plain} == {**plain, **modes}


def test_score_refuses_random_counts_by_name(data: Path, model: Path, refused) -> None:
    said = refused("score", model, data, "--sampler", "ancestral")
    assert "Ancestral(counts='random')" in said
    assert "counts='fixed'" in said


def test_score_refuses_a_confidence_order_by_name(data: Path, model: Path, refused) -> None:
    assert "confidence" in refused("score", model, data, "--order", "confidence")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rows", "0"), ("--rows 0", "at least 1")),
        (("--orders", "0"), ("--orders 0", "at least 1")),
        (("--length", "0"), ("--length 0", "at least 1")),
        (("--length", "17"), ("--length 17", f"1 to {LENGTH}")),
        (("--batch-size", "0"), ("0", "at least 1")),
        (("--batch-size", "-2"), ("-2", "at least 1")),
        (("--seed", "-1"), ("--seed -1", "0 <=")),
        (("--seed", str(1 << 64)), (f"--seed {1 << 64}", "0 <=")),
    ],
)
def test_score_refused(
    tmp_path: Path,
    data: Path,
    model: Path,
    refused: Callable[..., str],
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    said = refused("score", model, data, "--out", tmp_path / "a.jsonl", *options)
    assert all(word in said for word in words)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, ("no file",)),
        (b"", ("is empty",)),
        (b"the\0fox", ("is binary", "offset 3")),
        (b"the fox", ("7 tokens", f"a row needs {LENGTH}")),
        (b"the fox\njumps Over the lazy dog", ("'O'", "offset 14", "line 2, column 7")),
    ],
)
def test_score_refuses_text(
    tmp_path: Path,
    model: Path,
    refused: Callable[..., str],
    raw: bytes | None,
    words: tuple[str, ...],
) -> None:
    if raw is not None:
        (tmp_path / "text").write_bytes(raw)
    said = refused("score", model, tmp_path / "text", "--out", tmp_path / "a.jsonl")
    assert all(word in said for word in words)


def test_score_refuses_a_folder(tmp_path: Path, model: Path, refused: Callable[..., str]) -> None:
    assert "is a folder" in refused("score", model, tmp_path)


def test_scores_are_json_even_where_the_text_is_impossible(
    tmp_path: Path, data: Path, model: Path
) -> None:
    """Temperature 0 gives most texts probability 0."""
    out = tmp_path / "a.jsonl"
    assert command("score", model, data, "--rows", 1, "--temperature", 0, "--out", out) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    for line in out.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


# ---------------------------------------------------------------------------------- the whole of it


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("simple",),
        ("sample",),
        ("sample", "text8-small", "--numb", "3"),
        ("sample", "text8-small", "--num", "three"),
        ("sample", "text8-small", "--num", "2.5"),
        ("sample", "text8-small", "--top-p", "most"),
        ("score", "text8-small"),
        ("train", "characters", "--out"),
        ("train", "characters"),
        ("demo", "--nmu", "3"),
    ],
)
def test_words_that_make_no_command(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    assert command(*argv) == 2
    out, err = capsys.readouterr()
    assert err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("verb", ["train", "sample", "score", "tune", "demo"])
def test_help(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert command(verb, "--help") == 0
    said = capsys.readouterr().out
    assert f"usage: specmask {verb}" in said


def test_every_sampler_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    command("sample", "--help")
    said = capsys.readouterr().out
    for kind in specmask.SAMPLERS.values():
        for name in (item.name for item in dataclasses.fields(kind)):
            assert f"--{name.replace('_', '-')} " in said


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, cli.Sample, interrupt)
    assert command("sample", "text8-small") == 130
    assert capsys.readouterr().err == "specmask: interrupted\n"


def test_a_bug_is_not_taken_for_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only UserError becomes a line; a ValueError of our own making must show its traceback."""

    def stumble(_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setitem(cli.COMMANDS, cli.Sample, stumble)
    with pytest.raises(ValueError, match="ours"):
        cli.main(["sample", "text8-small"])


def closed_pipe(*argv: object) -> subprocess.CompletedProcess[str]:
    """`specmask ARGV` where whoever reads stdout has left before anything was written."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [PROGRAM, *argv], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("verb", ["sample", "score", "help"])
def test_a_reader_who_leaves_is_no_error(model: Path, data: Path, verb: str) -> None:
    words: dict[str, tuple[object, ...]] = {
        "sample": ("sample", model, "--num", "2", "--batch-size", "1", "--length", "2"),
        "score": ("score", model, data, "--rows", "1"),
        "help": ("sample", "--help"),
    }
    done = closed_pipe(*words[verb])
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_stdout_on_a_full_disk(model: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [PROGRAM, "sample", model, "--num", "1", "--length", "2"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr == "specmask: No space left on device: output\n"


def test_files_are_utf8_whatever_the_locale(tmp_path: Path, model: Path) -> None:
    """Under a locale of ASCII alone, with a model whose every symbol is outside ASCII."""
    folder = shutil.copytree(model, tmp_path / "copy")
    greek = "".join(chr(0x3B1 + number) for number in range(len(ALPHABET)))
    character_tokenizer(greek).save(str(folder / "tokenizer.json"))
    words = ("sample", folder, "--num", "1", "--out", tmp_path / "a.jsonl")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [PROGRAM, *words], capture_output=True, timeout=120, check=True, env={**os.environ, **plain}
    )
    row = json.loads((tmp_path / "a.jsonl").read_bytes().decode("utf-8"))
    assert row["text"] == "".join(greek[token] for token in row["tokens"])


def test_the_executable(tmp_path: Path, model: Path) -> None:
    """What it writes, and the code it leaves with."""
    words = ("sample", model, "--num", "2", "--out", tmp_path / "a.jsonl")
    for code in (0, 2):  # the second time the file is there
        done = subprocess.run(
            [PROGRAM, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == code
        assert done.stdout == ""
    assert done.stderr.startswith("specmask: --out")
    assert done.stderr.count("\n") == 1
    assert len(lines(tmp_path / "a.jsonl")) == 2
