"""`specmask sample` of proteins: templates, and lengths drawn from a file."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from oracle import FALSE_ALARM, chi_square
from specmask.cli import main
from specmask.data.fasta import AMINO_ACIDS, read_fasta
from specmask.models.checkpoint import save

LENGTH = 14


@pytest.fixture(scope="module")
def model(protein_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = specmask.from_pretrained_trunk(protein_model, tokenizer=protein_model / "vocab.txt")
    folder = tmp_path_factory.mktemp("canvases") / "model"
    network = found.network
    assert isinstance(network, specmask.models.hybrid.HybridNetwork)
    with torch.no_grad():
        network.head.out.weight.normal_(std=0.1)
    save(folder, network, found.tokenizer)
    return folder


def sample(model: Path, out: Path, *options: object) -> int:
    return main([str(one) for one in ("sample", model, "--out", out, *options)])


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_template_keeps_its_residues(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.fasta"
    assert sample(model, out, "--template", "EV-{3}wX?_Y", "--num", 5) == 0
    records = list(read_fasta(out))
    assert len(records) == 5
    for record in records:
        sequence = record.sequence
        assert (sequence[:2], sequence[5], sequence[9], len(sequence)) == ("EV", "W", "Y", 10)
        assert set(sequence) <= set(AMINO_ACIDS)
        assert "template=template" in record.description.split()


def test_each_template_of_a_file_is_filled_in(model: Path, tmp_path: Path) -> None:
    """Ragged, gzip, by name; the same whatever the batch size, and alone as in company."""
    templates = tmp_path / "loops.fasta.gz"
    with gzip.open(templates, "wt") as file:
        file.write(">long\nAC----------DE\n>short\nW-X\n>middle\n-----KK\n")
    found = []
    for batch in (1, 3, 8):
        out = tmp_path / f"{batch}.jsonl"
        options = ("--template", templates, "--num", 4, "--batch-size", batch, "--seed", 3)
        assert sample(model, out, *options) == 0
        found.append([(row["row"], row["template"], row["text"], row["nfe"]) for row in lines(out)])
    assert found[0] == found[1] == found[2]
    assert [row[0] for row in found[0]] == list(range(12))
    assert [row[1] for row in found[0]] == ["long"] * 4 + ["short"] * 4 + ["middle"] * 4
    for _, name, text, _ in found[0]:
        assert isinstance(text, str)
        assert len(text) == {"long": 14, "short": 3, "middle": 7}[str(name)]
        start, end = {"long": ("AC", "DE"), "short": ("W", ""), "middle": ("", "KK")}[str(name)]
        assert text.startswith(start)
        assert text.endswith(end)


def test_rows_of_like_length_ride_together(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they stand apart in the file, and it is written in its order."""
    fasta = tmp_path / "loops.fasta"
    fasta.write_text("".join(f">{k}\n{'A' + '-' * (9 if k % 2 else 2)}\n" for k in range(8)))
    frames: list[specmask.Frame] = []
    real = specmask.sample

    def look(*args: Any, on_frame: Any, **settings: Any) -> specmask.Samples:
        return real(*args, on_frame=frames.append, **settings)

    monkeypatch.setattr(specmask, "sample", look)
    out = tmp_path / "a.jsonl"
    assert sample(model, out, "--template", fasta, "--num", 1, "--batch-size", 4) == 0
    starts = [frame.lengths.tolist() for frame in frames if frame.step == 0]
    assert starts == [[10] * 4, [3] * 4]
    assert [len(str(row["text"])) for row in lines(out)] == [3, 10] * 4


def test_lengths_are_those_of_the_file(model: Path, tmp_path: Path) -> None:
    """χ² of 2000 rows at the suite's odds; a row's length is its own, whatever the batch."""
    fasta = tmp_path / "seen.fasta"
    sizes = [3] * 5 + [4] * 3 + [7] * 2
    fasta.write_text("".join(f">{k}\n{'A' * size}\n" for k, size in enumerate(sizes)))
    few = []
    for name, options in (("a", ("--num", 30)), ("b", ("--num", 10, "--first-row", 20))):
        out = tmp_path / f"{name}.jsonl"
        assert sample(model, out, "--lengths-from", fasta, "--batch-size", 7, *options) == 0
        few.append({row["row"]: row["text"] for row in lines(out)})
    assert {row: few[0][row] for row in few[1]} == few[1]
    out = tmp_path / "many.jsonl"
    steps = ("--sampler", "ancestral", "--steps", 1, "--batch-size", 500)
    assert sample(model, out, "--lengths-from", fasta, "--num", 2000, *steps) == 0
    counts = Counter(len(str(row["text"])) for row in lines(out))
    assert set(counts) == {3, 4, 7}
    seen = torch.tensor([counts[3], counts[4], counts[7]], dtype=torch.float64)
    assert chi_square(seen, torch.tensor([0.5, 0.3, 0.2])) > FALSE_ALARM


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--template", "EVZ-"), ("Z", "position 3")),
        (("--template", "ACDE"), ("no free position", "-")),
        (("--template", "-{15}"), ("15 positions", "at most 14")),
        (("--template", "gone.fasta"), ("gone.fasta",)),
        (("--template", "A-", "--length", "4"), ("--length and --template",)),
        (("--canvas", "A_", "--lengths-from", "x.fasta"), ("--canvas and --lengths-from",)),
        (("--lengths-from", "gone.fasta"), ("gone.fasta",)),
    ],
)
def test_bad_options_are_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    refused(capsys, sample(model, tmp_path / "out.jsonl", *options), *expected)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("option", ["--template", "--lengths-from"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b">a\n\n>b\nAC-\n", "'a'"),
        (gzip.compress(b">a\nAC--\n" * 500, mtime=0)[:40], "download it again"),
    ],
)
def test_bad_files_are_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    content: bytes,
    expected: str,
) -> None:
    file = tmp_path / "bad.fasta"
    file.write_bytes(content)
    refused(capsys, sample(model, tmp_path / "out.jsonl", option, file), "bad.fasta", expected)


def test_lengths_beyond_the_model_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = tmp_path / "long.fasta"
    fasta.write_text(">a\nACD\n>b\n" + "A" * 20 + "\n>c\n" + "A" * 15 + "\n")
    status = sample(model, tmp_path / "out.jsonl", "--lengths-from", fasta)
    refused(capsys, status, "2 of 3", "14", "longest 20")


def test_a_text_model_has_no_residues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["sample", "text8-small", "--template", "AC--", "--out", str(tmp_path / "o.jsonl")]
    )
    refused(capsys, status, "residues", "--canvas")


def refused(capsys: pytest.CaptureFixture[str], status: int, *expected: str) -> None:
    assert status == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("specmask: ")
    for word in expected:
        assert word in line
