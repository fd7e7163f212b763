"""What `python -m specmask.bench.NAME` says of bad input: one line, and 2."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import specmask.bench

COMMANDS = sorted(
    path.stem
    for path in Path(specmask.bench.__file__).parent.glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
BAD = {
    "prose": (["--data", "nothing.txt"], "specmask: "),
    "repeat": (["--seed", "0"], "specmask: seed 0 is that of the first run"),
    "results": (["--root", "nowhere"], "specmask: no nowhere"),
    "settings": (["text8-small", "--data", "nothing.txt"], "specmask: no file nothing.txt"),
    "variants": (["out", "--only", "nothing"], "specmask: unknown variant 'nothing'"),
}


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """A command's exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, f"specmask.bench.{name}", raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"specmask.bench.{name}", run_name="__main__", alter_sys=True)
    return left.value.code


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[name]
    assert run(name, arguments, monkeypatch) == 2
    told = capfd.readouterr().err
    assert told.startswith(message)
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_so(name: str) -> None:
    """Whatever it is that it refuses."""
    source = Path(specmask.bench.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    assert source.rstrip().splitlines()[-1].startswith("    raise SystemExit(exit_code(lambda: ")
