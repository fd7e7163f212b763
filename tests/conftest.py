"""Options and settings of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from refusal import Refused, command
from specmask.data.fasta import AMINO_ACIDS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--gpu", action="store_true", help="also run the tests marked gpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, reason in (("slow", "needs --slow"), ("gpu", "needs --gpu and a CUDA device")):
        wanted = config.getoption(f"--{name}")
        if wanted and (name != "gpu" or torch.cuda.is_available()):
            continue
        for item in items:
            if name in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Networks made in a test have the same weights in every run and in every order of tests."""
    torch.manual_seed(0)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail with one line, and leave every file as it is."""

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def run(*argv: object) -> str:
        before = files()
        capsys.readouterr()
        assert command(*argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("specmask: ")
        assert err.count("\n") == 1
        assert files() == before
        return err

    return run


@pytest.fixture(scope="session")
def protein_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT over residues, with a vocab.txt; rows of up to 14."""
    transformers = pytest.importorskip("transformers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *AMINO_ACIDS]
    folder = tmp_path_factory.mktemp("protein")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    model = transformers.AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    # Tied to the output: large enough for the prediction head to say any residue surely.
    nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    return folder
