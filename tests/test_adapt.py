"""`specmask adapt`: from a pretrained model and a file to a self-speculative model.

The pretrained model is a random BERT over residues, `protein_model`, of 14 positions.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import specmask
from specmask.cli import main
from specmask.data.fasta import AMINO_ACIDS, read_fasta
from specmask.data.sequences import SequenceStore
from specmask.models.hybrid import is_new

transformers = pytest.importorskip("transformers")

LENGTH = 12
FAST = ("--batch-size", "16", "--eval-rows", "16", "--precision", "fp32", "--log-every", "5")


def copies(path: Path, count: int = 600) -> Path:
    """Every residue stands twice in a row: alone it says nothing, its neighbour says it all.
    Lengths vary."""
    generator = torch.Generator().manual_seed(1)
    with path.open("w") as file:
        for k in range(count):
            size = int(torch.randint(4, LENGTH // 2 + 1, (), generator=generator))
            half = torch.randint(4, (size,), generator=generator).tolist()
            file.write(f">{k}\n" + "".join(AMINO_ACIDS[i] * 2 for i in half) + "\n")
    return path


def adapt(model: Path, data: object, out: Path, *options: object) -> int:
    arguments = ["adapt", model, "--data", data, "--out", out, "--tokenizer", model / "vocab.txt"]
    return main([str(argument) for argument in (*arguments, *FAST, *options)])


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_head_learns_what_no_independent_draft_can(protein_model: Path, tmp_path: Path) -> None:
    """With every position masked the draft knows nothing of the copy; the head reads it off the
    prefix. And the folder loads, samples residues, and holds no weight of the pretrained model."""
    data, out = copies(tmp_path / "copies.fasta", 3000), tmp_path / "run"
    steps = ("--steps", 600, "--optimizer", "muon", "--lr", 0.01, "--ema", 0.9)
    assert adapt(protein_model, data, out, *steps) == 0
    rows = log(out)
    last = [row for row in rows if row["kind"] == "validation"][-1]
    assert last["target_nll"] < last["draft_nll"] - 0.1
    assert last["draft_nll"] < math.log(20) - 1  # the block has learned which residues there are
    model = specmask.load(out / "model")
    drawn = specmask.sample(model, specmask.Speculative(), num=64, length=8, seed=0)
    assert drawn.text is not None
    assert all(set(text) <= set(AMINO_ACIDS) for text in drawn.text)
    weights = load_file(out / "model" / "model.safetensors")
    assert all(is_new(name) for name in weights)


def test_the_plain_baseline_has_no_head(protein_model: Path, tmp_path: Path) -> None:
    data, out = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    assert adapt(protein_model, data, out, "--head", "none", "--steps", 6) == 0
    model = specmask.load(out / "model")
    assert model.network.head_layers == 0
    assert model.network.trunk_layers == 3
    for row in log(out)[1:]:  # without a head, the target is the draft
        assert row["target_nll"] == row["draft_nll"]


def test_a_frozen_draft_stays_the_originals(protein_model: Path, tmp_path: Path) -> None:
    data, out = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    assert adapt(protein_model, data, out, "--draft", "frozen", "--steps", 6, "--lr", 0.1) == 0
    model = specmask.load(out / "model")
    untouched = specmask.from_pretrained_trunk(
        protein_model, tokenizer=protein_model / "vocab.txt", head_layers=0
    )
    tokens = torch.full((1, 7), model.network.mask_id)
    positions = torch.arange(7)[None]
    with torch.no_grad():
        ours, theirs = (
            m.network.draft_logits(m.network.trunk(tokens, torch.tensor([7])), positions)
            for m in (model, untouched)
        )
    torch.testing.assert_close(ours, theirs)


def test_a_full_model_needs_nothing_else(
    protein_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "run"
    shutil.copytree(protein_model, source)
    data = copies(tmp_path / "copies.fasta", 200)
    assert adapt(source, data, out, "--steps", 3, "--full") == 0
    assert "peak memory" in capsys.readouterr().err
    before = specmask.sample(specmask.load(out / "model"), specmask.Speculative(), num=4, length=8)
    shutil.rmtree(source)
    after = specmask.sample(specmask.load(out / "model"), specmask.Speculative(), num=4, length=8)
    assert torch.equal(before.tokens, after.tokens)
    shutil.rmtree(out / "model" / "trunk")
    with pytest.raises(specmask.UserError, match="does not load"):
        specmask.load(out / "model")


def test_the_trunk_can_be_trained_too(protein_model: Path, tmp_path: Path) -> None:
    """Every weight is then in the saved model, and moves."""
    data, out = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    assert adapt(protein_model, data, out, "--frozen-trunk", "False", "--steps", 4) == 0
    untouched = specmask.from_pretrained_trunk(
        protein_model, tokenizer=protein_model / "vocab.txt", draft_layers=1
    )
    start = dict(untouched.network.state_dict())  # type: ignore[attr-defined]
    trained = dict(specmask.load(out / "model").network.state_dict())  # type: ignore[attr-defined]
    assert start.keys() == trained.keys()
    moved = [name for name in start if not torch.equal(start[name], trained[name])]
    assert any(name.startswith("trunk.backbone.") for name in moved)
    assert any(name.startswith("head.") for name in moved)


def test_the_log_begins_where_both_laws_are_the_originals(
    protein_model: Path, tmp_path: Path
) -> None:
    data, out = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    settings = ("--steps", 1, "--lr", 1e-9, "--warmup", 0, "--log-every", 1)
    assert adapt(protein_model, data, out, *settings) == 0
    first = log(out)[1]
    assert first["target_nll"] == pytest.approx(first["draft_nll"], abs=1e-6)


def test_data_free_rows_are_the_models_own(protein_model: Path, tmp_path: Path) -> None:
    """Drawn from its any-order law, kept, and the same when drawn in two goes."""
    out, other = tmp_path / "run", tmp_path / "other"
    settings = ("--self-length", 7, "--self-batch", 10, "--steps", 4)
    assert adapt(protein_model, "self", out, "--self-rows", 150, *settings) == 0
    lines = (out / "self.jsonl").read_text().splitlines()
    rows = torch.tensor([json.loads(line) for line in lines[1:]])
    untouched = specmask.from_pretrained_trunk(
        protein_model, tokenizer=protein_model / "vocab.txt", head_layers=0
    )
    own = specmask.sample(untouched, specmask.AnyOrder(), num=150, length=7, seed=0)
    assert torch.equal(rows, own.tokens)
    assert len(SequenceStore(out / "data")) == 150
    other.mkdir()
    (other / "self.jsonl").write_text("\n".join(lines[:57]) + "\n[5, 6")  # torn by a kill
    assert adapt(protein_model, "self", other, "--self-rows", 150, *settings) == 0
    assert (other / "self.jsonl").read_text() == (out / "self.jsonl").read_text()


def test_data_free_rows_can_be_added_to(protein_model: Path, tmp_path: Path) -> None:
    """What was drawn for a shorter run counts; fewer than are there are the first of them."""
    out, settings = tmp_path / "run", ("--self-length", 7, "--steps", 4)
    assert adapt(protein_model, "self", out, "--self-rows", 60, *settings) == 0
    drawn = (out / "self.jsonl").read_text()
    for count in (100, 80):
        for left in ("checkpoints", "model", "log.jsonl"):
            path = out / left
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert adapt(protein_model, "self", out, "--self-rows", count, *settings) == 0
        assert len(SequenceStore(out / "data")) == count
        lines = (out / "self.jsonl").read_text()
        assert len(lines.splitlines()) == 101
        assert lines.startswith(drawn)


def test_low_rank_updates_adapt_the_draft(protein_model: Path, tmp_path: Path) -> None:
    data, out = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    assert adapt(protein_model, data, out, "--draft", "lora", "--lora-rank", 2, "--steps", 6) == 0
    assert specmask.load(out / "model").network.config.lora_rank == 2  # type: ignore[attr-defined]


def test_an_interrupted_run_goes_on(protein_model: Path, tmp_path: Path) -> None:
    data = copies(tmp_path / "copies.fasta", 200)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert adapt(protein_model, data, whole, "--steps", 8) == 0
    assert adapt(protein_model, data, parts, "--steps", 8, "--save-every", 4) == 0
    (parts / "model").rename(tmp_path / "away")
    for folder in (parts / "checkpoints").iterdir():
        if folder.name.endswith("8"):
            folder.rename(tmp_path / "gone")
    assert adapt(protein_model, data, parts, "--steps", 8, "--save-every", 4, "--resume") == 0
    a, b = (specmask.load(run / "model").network.own_state() for run in (whole, parts))  # type: ignore[attr-defined]
    assert all(torch.equal(a[name], b[name]) for name in a)


def refused(capsys: pytest.CaptureFixture[str], *expected: str) -> None:
    error = capsys.readouterr().err.strip()
    line = error.splitlines()[-1]
    assert line.startswith("specmask: ")
    for word in expected:
        assert word in line


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (">a\nACDE\n>b\nACZE\n", (), ("'b'", "line 4", "Z")),
        (">a\n\n>b\nAC\n", (), ("'a'", "line 1")),
        ("", (), ("empty",)),
        (">a\n" + "A" * 40 + "\n" + ">b\nACD\n", (), ("14 tokens", "crop")),
        (">a\nACDE\n", (), ("too few",)),
        (">a\nACDE\n", ("--draft", "frozen", "--head", "none"), ("nothing to train",)),
        (">a\nACDE\n", ("--draft", "frozen", "--draft-layers", "2"), ("leave one of the two out",)),
        (">a\nACDE\n", ("--draft", "lora", "--draft-layers", "1"), ("leave one of the two out",)),
        (">a\nACDE\n", ("--draft", "lora", "--frozen-trunk", "False"), ("leave one of the two",)),
        (">a\nACDE\n", ("--draft", "lora", "--lora-rank", "0"), ("lora_rank=0", "at least 1")),
        (">a\nACDE\n", ("--length", "99"), ("length=99", "14")),
        (">a\nACDE\n", ("--lr", "-1"), ("lr",)),
    ],
)
def test_bad_input_is_one_line(
    protein_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    options: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    data = tmp_path / "data.fasta"
    many = "".join(f">x{k}\n{'ACDEFGHIK'[: 2 + k % 8]}{'LMN'[k % 3]}\n" for k in range(400))
    data.write_text(text + many if "A" * 40 in text else text)
    assert adapt(protein_model, data, tmp_path / "run", *options) == 2
    refused(capsys, *expected)


def test_records_with_strange_residues_can_be_left_out(
    protein_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copies(tmp_path / "copies.fasta", 200)
    data.write_text(data.read_text() + ">odd\nACXZ\n")
    assert adapt(protein_model, data, tmp_path / "run", "--unknown", "drop", "--steps", 2) == 0
    assert "1 records left out" in capsys.readouterr().err


def test_a_text_model_takes_text(tmp_path: Path) -> None:
    """Words of a WordPiece vocabulary, from a plain text file; a FASTA is refused."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b", "cab", "bad"]
    model = tmp_path / "model"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(words) + "\n")
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(" ".join("abcdefgh"[k // 8**j % 8] for j in range(3)) for k in range(400))
    )
    run = tmp_path / "run"
    command = ["adapt", str(model), "--out", str(run), *FAST, "--steps", "3"]
    assert main([*command, "--data", str(text)]) == 0
    out = specmask.sample(specmask.load(run / "model"), specmask.Speculative(), num=2, length=9)
    assert out.text is not None
    assert main([*command, "--data", str(copies(tmp_path / "x.fasta")), "--resume"]) == 2


def test_sequences_come_out_as_fasta(protein_model: Path, tmp_path: Path) -> None:
    """With the passes and settings in the header; and a canvas keeps what is given."""
    data, run = copies(tmp_path / "copies.fasta", 200), tmp_path / "run"
    assert adapt(protein_model, data, run, "--steps", 2) == 0
    out = tmp_path / "drawn.fasta"
    command = ["sample", str(run / "model"), "--num", "3", "--window", "full", "--seed", "5"]
    assert main([*command, "--canvas", "AC__DE__", "--out", str(out)]) == 0
    records = list(read_fasta(out))
    model = specmask.load(run / "model")
    canvas = torch.tensor([[5, 6, 4, 4, 7, 8, 4, 4]]).expand(3, -1)
    sampler = specmask.Speculative(window=specmask.FullWindow())
    drawn = specmask.sample(model, sampler, canvas=canvas, seed=5)
    assert [record.sequence for record in records] == drawn.text
    for record, nfe in zip(records, drawn.nfe.tolist(), strict=True):
        assert record.sequence[:2] + record.sequence[4:6] == "ACDE"
        assert f"nfe={nfe:.2f}" in record.description.split()
        assert {"window=full", "rounds=1", "seed=5"} <= set(record.description.split())
    assert main([*command, "--out", str(out)]) == 2  # it exists
