"""Checkpoints that survive kill -9, a full disk and a flipped bit.

    out/checkpoints/step-0000100/
        model.safetensors       every weight
        ema.safetensors         the averages of the trained weights
        optimizer.safetensors   optimiser state, named optimizer/parameter/key
        optimizer.json          the optimisers' parameter groups
        state.json              step, config, log in progress, and the SHA-256 of every file

A checkpoint is written beside its place and renamed into it once all of it is on the disk, so
every folder of that name is whole; older ones go only after that. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from specmask.errors import UserError
from specmask.models.checkpoint import file_sha256, write_folder

TENSOR_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
FILES = (*TENSOR_FILES, "optimizer.json")
FORMAT = 1
_DOOMED = ".old-"
_DAMAGED = "damaged-"


class DamagedError(Exception):
    """A checkpoint that cannot be trusted; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole, verified checkpoint. Tensors are read when asked for."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps made."""
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of TENSOR_FILES, on the CPU."""
        return load_file(self.folder / name)


def write(
    out: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    groups: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `state["step"]` and then prune to the newest `keep`.

    Args:
        out: the run's folder.
        state: JSON-able, with "step"; what newest() will give back.
        tensors: one mapping for each of TENSOR_FILES.
        groups: the optimisers' settings, JSON-able.

    Raises:
        UserError: the disk is full or not writable. The half-written checkpoint is gone, the others
            are as before.
    """
    root = out / "checkpoints"
    final = root / f"step-{state['step']:07d}"
    hashes: dict[str, str] = {}

    def tensor_file(name: str) -> Callable[[Path], None]:
        def to(path: Path) -> None:
            save_file(_plain(tensors[name]), path)
            hashes[name] = file_sha256(path)

        return to

    def groups_file(path: Path) -> None:
        path.write_bytes(_json(groups))
        hashes[path.name] = file_sha256(path)

    def state_file(path: Path) -> None:  # last: it holds the hashes of the others
        names = {name: sorted(tensors[name]) for name in TENSOR_FILES}
        whole = {**state, "format": FORMAT, "files": hashes, "tensors": names}
        path.write_bytes(_json({**whole, "sha256": _sha256(whole)}))

    _remove(final)  # a damaged one of the same step; a good one is never written twice
    files = {name: tensor_file(name) for name in TENSOR_FILES}
    write_folder(final, {**files, "optimizer.json": groups_file, "state.json": state_file})
    for old in _folders(root)[keep:]:
        _remove(old)
    return final


def newest(out: Path, console: Console | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none.

    Verifies every hash and that every listed tensor is there. A damaged checkpoint is reported on
    the console, with file and reason, and the one before it is tried. Changes nothing on the disk,
    so it may be called while a training writes there.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    folders = _folders(out / "checkpoints")
    for folder in folders:
        try:
            return Checkpoint(folder, verify(folder))
        except DamagedError as reason:
            if console is not None:
                console.print(
                    f"[yellow]warning:[/] checkpoint {folder.name} is damaged ({reason}); "
                    "using the one before it",
                    soft_wrap=True,
                )
    if folders:
        raise UserError(
            f"all {len(folders)} checkpoints in {out / 'checkpoints'} are damaged: "
            "start again in another folder, or remove that one"
        )
    return None


def exist(out: Path) -> bool:
    """Whether there is any checkpoint, whole or damaged."""
    return bool(_folders(out / "checkpoints"))


def tidy(out: Path, step: int) -> None:
    """Before training goes on from `step`: remove half-written folders, set later ones aside.

    What lies beyond `step` was found damaged. It is renamed to damaged-…, so that it neither
    counts as kept nor gets in the way, and is left for whoever wants to look.
    """
    root = out / "checkpoints"
    if not root.is_dir():
        return
    for leftover in (*root.glob(".step-*.tmp"), *root.glob(f"{_DOOMED}*")):
        shutil.rmtree(leftover)
    for folder in _folders(root):
        if _step(folder) > step:
            aside = root / f"{_DAMAGED}{folder.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)


def verify(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint folder all of whose files are as they were written.

    Raises:
        DamagedError: a file is missing, differs from its hash or lacks a tensor.
    """
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if not isinstance(state, dict):
            raise DamagedError("state.json: not an object")
        if state.pop("sha256", None) != _sha256(state):
            raise DamagedError("state.json: the content does not match its SHA-256")
        if state["format"] != FORMAT:
            raise DamagedError(f"state.json: format {state['format']}, expected {FORMAT}")
        for name in FILES:
            if file_sha256(folder / name) != state["files"][name]:
                raise DamagedError(f"{name}: the content does not match its SHA-256")
        for name in TENSOR_FILES:
            with safe_open(folder / name, "pt") as file:
                missing = set(state["tensors"][name]) - set(file.keys())
            if missing:
                raise DamagedError(f"{name}: tensor {min(missing)} is missing")
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        raise DamagedError(f"{name}: {error.strerror or error}") from error
    except (ValueError, KeyError, SafetensorError) as error:
        raise DamagedError(f"not readable: {error}") from error
    if _step(folder) != state["step"]:
        raise DamagedError(f"state.json: is of step {state['step']}")
    return state


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _sha256(value: Any) -> str:
    return hashlib.sha256(_json(value)).hexdigest()


def _folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [p for p in root.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def _remove(folder: Path) -> None:
    """Remove a checkpoint in a way that a kill cannot leave half a one under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{_DOOMED}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
