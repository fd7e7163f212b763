from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from specmask.errors import UserError
from specmask.training import checkpoints
from specmask.training.checkpoints import FILES, TENSOR_FILES, newest, tidy, write


def store(out: Path, step: int, keep: int = 2) -> Path:
    weight = torch.full((3,), float(step))
    tensors = {name: {"a": weight, "b": -weight} for name in TENSOR_FILES}
    return write(
        out, {"step": step, "config": {"betas": (0.9, 0.95)}}, tensors, {"adamw": []}, keep
    )


def flip(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def truncate(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-5])


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def drop_tensor(folder: Path, name: str) -> None:
    """A file that lacks a tensor, with every hash made to fit it."""
    if name in TENSOR_FILES:
        tensors = load_file(folder / name)
        del tensors["b"]
        save_file(tensors, folder / name)
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    state["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = json.dumps(state, indent=1, sort_keys=True)
    state["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state, indent=1, sort_keys=True))


CASES = [(flip, n) for n in (*FILES, "state.json")]
CASES += [(truncate, n) for n in (*FILES, "state.json")]
CASES += [(remove, n) for n in (*FILES, "state.json")]
CASES += [(drop_tensor, n) for n in TENSOR_FILES]


@pytest.mark.parametrize(("damage", "name"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_a_damaged_newest_is_reported_and_the_one_before_used(
    tmp_path: Path, damage: Callable[[Path, str], None], name: str
) -> None:
    store(tmp_path, 10)
    damage(store(tmp_path, 20), name)
    said = io.StringIO()
    found = newest(tmp_path, Console(file=said))
    assert found is not None
    assert found.step == 10
    assert found.tensors("model.safetensors")["a"].tolist() == [10.0] * 3
    assert "step-0000020" in said.getvalue()
    assert name in said.getvalue() or "not readable" in said.getvalue()


def test_undamaged_is_read_back_in_silence(tmp_path: Path) -> None:
    store(tmp_path, 10)
    store(tmp_path, 20)
    said = io.StringIO()
    found = newest(tmp_path, Console(file=said))
    assert found is not None
    assert found.step == 20
    assert said.getvalue() == ""


def test_none_and_all_damaged(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    flip(store(tmp_path, 10), "model.safetensors")
    with pytest.raises(UserError, match="all 1 checkpoints"):
        newest(tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10_000_000):
        store(tmp_path, step, keep=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-0000002", "step-0000003", "step-10000000"]


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: Exception
) -> None:
    store(tmp_path, 10)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    calls = []

    def full(tensors: object, path: Path) -> None:
        calls.append(path)
        path.write_bytes(b"half")
        if len(calls) > at:
            raise error
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="No space left") as raised:
        store(tmp_path, 20)
    assert "\n" not in str(raised.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-0000010"]


def test_tidy_removes_leftovers_and_sets_damaged_ones_aside(tmp_path: Path) -> None:
    good = store(tmp_path, 10)
    flip(store(tmp_path, 20), "ema.safetensors")
    root = good.parent
    shutil.copytree(good, root / ".step-0000030.123.tmp")
    shutil.copytree(good, root / ".old-step-0000005")
    tidy(tmp_path, 10)
    assert sorted(p.name for p in root.iterdir()) == ["damaged-step-0000020", "step-0000010"]
    store(tmp_path, 20)
    assert sorted(p.name for p in root.glob("step-*")) == ["step-0000010", "step-0000020"]
    assert newest(tmp_path).step == 20


def test_newest_changes_nothing(tmp_path: Path) -> None:
    """`export` calls it beside a running training, whose half-written folder must stay."""
    half = store(tmp_path, 10).parent / ".step-0000020.123.tmp"
    half.mkdir()
    newest(tmp_path)
    assert half.is_dir()
