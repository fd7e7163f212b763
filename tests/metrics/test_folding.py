from __future__ import annotations

import importlib
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from refusal import refuse
from specmask.metrics import FoldReport, fold_confidence, load_folder
from specmask.metrics.folding import Folder
from specmask.metrics.proteins import AMINO_ACIDS

transformers = pytest.importorskip("transformers")

PROTEINS = ("MKV", "ACDEFGHIKLMNPQRSTVWY", "W", "GGGGGGG", "MKTAYIAKQR", "MKV")


def esm(**settings: Any) -> Any:
    return transformers.EsmConfig(
        vocab_size=33, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=64, pad_token_id=1, mask_token_id=32,
        token_dropout=True, position_embedding_type="rotary", **settings,
    )  # fmt: skip


def esmfold() -> Any:
    structure = {
        "sequence_dim": 8, "pairwise_dim": 8, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2,
        "num_qk_points": 2, "num_v_points": 2, "num_blocks": 2, "num_resnet_blocks": 1,
    }  # fmt: skip
    trunk = {
        "num_blocks": 1, "sequence_state_dim": 8, "pairwise_state_dim": 8, "position_bins": 4,
        "sequence_head_width": 4, "pairwise_head_width": 4, "max_recycles": 2, "chunk_size": None,
        "structure_module": structure,
    }  # fmt: skip
    config = esm(is_folding_model=True, esmfold_config={"lddt_head_hid_dim": 8, "trunk": trunk})
    model = transformers.EsmForProteinFolding(config)
    with torch.no_grad():
        for weight in model.parameters():  # so that residues and lengths matter
            weight.add_(0.5 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("esmfold")
    torch.manual_seed(0)
    esmfold().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(saved: Path) -> Folder:
    return load_folder(saved)


def made_up(sequences: list[str]) -> list[Any]:
    """pLDDT that depend on the residues and their places alone."""
    return [np.array([(7 * ord(x) + 11 * k) % 101 for k, x in enumerate(s)]) for s in sequences]


# ------------------------------------------------------------------------------------- the value


def test_plddt_is_the_mean_over_alpha_carbons(folder: Folder) -> None:
    report = fold_confidence(PROTEINS, folder)
    wanted = []
    for sequence in PROTEINS:  # alone, hence without padding, and from the logits
        logits = folder.model.infer([sequence]).lddt_head[-1, 0, :, 1].double()
        bins = 100 * (torch.arange(50) + 0.5).double() / 50
        wanted.append(float((logits.softmax(-1) @ bins).mean()))
    assert report.sequences_plddt == pytest.approx(wanted, abs=1e-3)
    assert max(wanted) - min(wanted) > 1  # else any order of the values would pass


def test_means_standard_errors_and_the_share_above_70() -> None:
    values = {"AC": [60, 80], "A": [90.5], "AAA": [70.25, 80, 90], "CA": [0, 100]}
    report = fold_confidence(list(values), lambda batch: [values[s] for s in batch], batch_size=3)
    means = [70, 90.5, statistics.mean([70.25, 80, 90]), 50]
    assert report.sequences_plddt == pytest.approx(means)
    assert report.plddt.mean == pytest.approx(statistics.mean(means))
    assert report.plddt.standard_error == pytest.approx(statistics.stdev(means) / 2)
    assert report.confident.mean == 0.5  # 70 itself is not above
    assert report.confident.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert report.plddt.count == report.confident.count == 4


@pytest.mark.parametrize("scale", [1, 100])
def test_both_scales_of_esmfold_and_neither_padding_nor_other_atoms(scale: int) -> None:
    plddt = torch.full((2, 3, 37), 0.03)
    plddt[0, :, 1] = torch.tensor([0.2, 0.4, 0.9])
    plddt[1, :1, 1] = 0.8
    model = SimpleNamespace(infer=lambda sequences: SimpleNamespace(plddt=scale * plddt))
    report = fold_confidence(["W", "ACD"], Folder(model))
    assert report.sequences_plddt == pytest.approx([80, 50], abs=1e-4)


def test_the_lowest_plddt_of_either_scale_is_told_apart() -> None:
    for lowest in (0.01, 1.01):  # the centres of the first bin, the second rounded up
        plddt = torch.full((1, 2, 37), lowest)
        model = SimpleNamespace(infer=lambda _, plddt=plddt: SimpleNamespace(plddt=plddt))
        assert Folder(model)(["AC"])[0] == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_batch_size_does_not_matter(folder: Folder, batch_size: int) -> None:
    # Batches of 2 and more pad: the lengths are 20, 10, 7, 3 and 1.
    one = fold_confidence(PROTEINS, folder, batch_size=1)
    many = fold_confidence(PROTEINS, folder, batch_size=batch_size)
    assert many.sequences_plddt == pytest.approx(one.sequences_plddt, abs=1e-3)
    assert many.plddt.mean == pytest.approx(one.plddt.mean, abs=1e-3)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.text(AMINO_ACIDS, min_size=2, max_size=9), min_size=1, max_size=9),
    st.integers(1, 9),
)
def test_any_function_folds_and_values_keep_their_order(
    sequences: list[str], batch_size: int
) -> None:
    report = fold_confidence(sequences, made_up, batch_size=batch_size)
    assert report.sequences_plddt == tuple(float(row.mean()) for row in made_up(sequences))


def test_repeats_are_folded_once_the_longest_first_in_batches() -> None:
    batches: list[list[str]] = []
    seen: list[tuple[int, int]] = []

    def fold(sequences: list[str]) -> list[Any]:
        batches.append(sequences)
        return made_up(sequences)

    fold_confidence(
        PROTEINS, fold, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert batches == [["ACDEFGHIKLMNPQRSTVWY", "MKTAYIAKQR"], ["GGGGGGG", "MKV"], ["W"]]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_one_sequence_has_no_standard_error() -> None:
    report = fold_confidence(["X"], lambda _: [[12.0]])
    assert isinstance(report, FoldReport)
    assert report.plddt.mean == 12
    assert math.isnan(report.plddt.standard_error)


# --------------------------------------------------------------------------------------- loading


def test_the_language_model_has_the_dtype_and_the_rest_float32(saved: Path, folder: Folder) -> None:
    half = load_folder(str(saved), dtype=torch.bfloat16)
    for loaded, dtype in ((folder, torch.float32), (half, torch.bfloat16)):
        kinds = {key.startswith("esm."): set() for key, _ in loaded.model.named_parameters()}
        for key, weight in loaded.model.named_parameters():
            kinds[key.startswith("esm.")].add(weight.dtype)
        assert kinds == {True: {dtype}, False: {torch.float32}}
        assert not loaded.model.training
        # Of two pairs of channels, to float16's rounding; bfloat16's would be eight times that.
        frequencies = loaded.model.esm.rotary_embeddings.inv_freq.tolist()
        assert frequencies == pytest.approx([1, 0.01], rel=2**-11)
    full, rounded = (fold_confidence(PROTEINS, x).sequences_plddt for x in (folder, half))
    assert rounded == pytest.approx(full, abs=3)
    assert rounded != full


def copy_without(saved: Path, path: Path, prefix: str) -> Path:
    weights = load_file(saved / "model.safetensors")
    kept = {key: weight for key, weight in weights.items() if not key.startswith(prefix)}
    assert len(kept) < len(weights)
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text((saved / "config.json").read_text())
    return path


@pytest.mark.parametrize("prefix", ["trunk.", "esm.encoder.", "lddt_head.1.weight"])
def test_weights_that_are_missing_are_not_drawn(saved: Path, tmp_path: Path, prefix: str) -> None:
    path = copy_without(saved, tmp_path, prefix)
    refuse(lambda: load_folder(path), "lacks", f"e.g. {prefix}", "complete checkpoint")


def test_the_contact_head_may_be_missing(saved: Path, tmp_path: Path, folder: Folder) -> None:
    without = load_folder(copy_without(saved, tmp_path, "esm.contact_head."))
    assert fold_confidence(PROTEINS, without) == fold_confidence(PROTEINS, folder)


def test_models_that_are_not_esmfold(tmp_path: Path) -> None:
    refuse(lambda: load_folder(tmp_path / "none"), "no ESMFold", "check the name")
    refuse(lambda: load_folder(tmp_path), "no ESMFold", "facebook/esmfold_v1")
    esm().save_pretrained(tmp_path)
    refuse(lambda: load_folder(tmp_path), "type 'esm'", "does not fold", "expected ESMFold")


def test_a_folding_configuration_without_weights(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    refuse(lambda: load_folder(tmp_path), "no ESMFold", "safetensors")


def test_settings_of_loading(saved: Path) -> None:
    refuse(lambda: load_folder(saved, dtype=torch.int8), "dtype=torch.int8", "torch.bfloat16")
    refuse(lambda: load_folder(saved, device="meta"), "device meta", "cannot compute there")


def test_transformers_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    refuse(lambda: load_folder("facebook/esmfold_v1"), "pip install 'specmask[pretrained]'")


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([], ("no sequences",)),
        ("MKV", ("got one string",)),
        (["MKV", ""], ("sequence 1 is empty",)),
        (["MKV", 3], ("sequence 1 is a int",)),
    ],
)
def test_sequences_that_no_folder_takes(sequences: Any, words: tuple[str, ...]) -> None:
    refuse(lambda: fold_confidence(sequences, made_up), *words)


@pytest.mark.parametrize(("sequence", "residue"), [("MKX", "X"), ("MKv", "v"), ("MK\n", r"\n")])
def test_esmfold_takes_standard_residues_only(folder: Folder, sequence: str, residue: str) -> None:
    words = (f"sequence 1 has '{residue}' at index 2", f"expected residues of {AMINO_ACIDS}")
    refuse(lambda: fold_confidence(["MKV", sequence], folder), *words)
    refuse(lambda: folder(["MKV", sequence]), *words)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], ("gives 0 arrays for 2 sequences",)),
        (None, ("gives a NoneType, no arrays for 2 sequences",)),
        ([[50, 50, 50]], ("gives 1 arrays for 2 sequences",)),
        ([[50, 50, 50], [50, 50, 50]], ("sequence 0", "shape (3,)", "expected (2,)")),
        ([[50, 50, 50], 50], ("sequence 0", "shape ()")),
        ([[50, 50, 50], ["high", "low"]], ("sequence 0", "no array")),
        ([[50, math.nan, 50], [50, 50]], ("sequence 1", "index 1 is nan")),
        ([[50, 50, 100.5], [50, 50]], ("sequence 1", "index 2 is 100.5", "0 to 100")),
        ([[50, 50, 50], [-0.5, 50]], ("sequence 0", "index 0 is -0.5")),
        ([[0.5, 0.9, 0.5], [0.5, 0.5]], ("highest pLDDT is 0.9", "multiply by 100")),
    ],
)
def test_answers_of_a_folder_that_are_no_plddt(answer: Any, words: tuple[str, ...]) -> None:
    refuse(lambda: fold_confidence(["AC", "ACD"], lambda _: answer), *words)


def test_a_model_that_gives_no_number_is_refused(saved: Path) -> None:
    broken = load_folder(saved)
    with torch.no_grad():
        broken.model.lddt_head[3].bias.fill_(math.nan)
    refuse(lambda: fold_confidence(["MKV"], broken), "sequence 0", "index 0 is nan")


def test_settings_out_of_range() -> None:
    refuse(lambda: fold_confidence(["MKV"], made_up, batch_size=0), "batch_size=0")
    name: Any = "facebook/esmfold_v1"
    refuse(lambda: fold_confidence(["MKV"], name), "folder is a str", "load_folder")
