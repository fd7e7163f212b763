"""The steps that are timed do what their names say, on small made files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specmask.bench.ingest import STEPS, make_fasta, make_text, one_step
from specmask.data.documents import documents
from specmask.data.fasta import read_fasta


def test_made_files_are_sound_and_the_same_each_time(tmp_path: Path) -> None:
    a, b, text = tmp_path / "a.fasta", tmp_path / "b.fasta", tmp_path / "a.txt"
    make_fasta(a, 100)
    make_fasta(b, 100)
    assert a.read_bytes() == b.read_bytes()
    lengths = [len(record.sequence) for record in read_fasta(a)]
    assert len(lengths) == 100
    assert 50 <= min(lengths) < max(lengths) <= 350
    make_text(text, 1)
    assert 10**6 <= text.stat().st_size < 1.1 * 10**6
    assert sum(1 for _ in documents(text)) > 100


@pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=pytest.mark.slow if s.startswith("tokenise") else ()) for s in STEPS],
)
def test_a_step_tells_seconds_and_memory(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("made.fasta" if "FASTA" in step else "made.txt")
    if "FASTA" in step:
        make_fasta(file, 200)
    else:
        make_text(file, 1)
    one_step(step, file)
    seconds, memory = json.loads(capsys.readouterr().out)
    assert 0 < seconds < 100
    assert memory > 10**7
