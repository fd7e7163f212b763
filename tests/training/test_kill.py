"""kill -9 at any moment costs at most the steps since the last checkpoint, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import specmask
from specmask.training.checkpoints import TENSOR_FILES, newest
from specmask.training.log import TIMINGS

SCRIPT = Path(__file__).with_name("killed_run.py")


def run(out: Path, kills: int) -> None:
    source = str(Path(specmask.__path__[0]).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    command = [sys.executable, str(SCRIPT), str(out), str(kills), "7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def log_of(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, kills: int) -> None:
    run(tmp_path / "whole", 0)
    run(tmp_path / "killed", kills)
    whole, killed = newest(tmp_path / "whole"), newest(tmp_path / "killed")
    assert whole is not None
    assert killed is not None
    assert whole.step == killed.step == 200
    for name in TENSOR_FILES:
        assert (whole.folder / name).read_bytes() == (killed.folder / name).read_bytes(), name
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "killed")
    names = [path.name for path in (tmp_path / "killed/checkpoints").iterdir()]
    assert sorted(names) == ["step-0000195", "step-0000200"]
