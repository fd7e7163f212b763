"""What is sampled with where no sampler is named: what the folder says, or what the network can."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import specmask
from oracle import Draft, tiny_network
from refusal import refuse
from specmask import Ancestral, AnyOrder, ConstantWindow, CosineWindow, Speculative
from specmask.models.saved_sampler import read_sampler, write_sampler
from specmask.samplers import Sampler, default_sampler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    specmask.save(tmp_path / "model", tiny_network(length=8, dtype=torch.float32))
    return tmp_path / "model"


def says(folder: Path, text: str) -> None:
    (folder / "sampler.json").write_text(text)


@pytest.mark.parametrize(
    ("name", "settings", "sampler"),
    [
        (
            "speculative",
            {"window": "constant:3", "rounds": 2, "first": "verify"},
            Speculative(ConstantWindow(3), 2, "verify"),
        ),
        ("speculative", {"window": "cosine:0.25"}, Speculative(CosineWindow(0.25))),
        ("ancestral", {"steps": 3}, Ancestral(3)),
    ],
)
def test_the_folder_says(
    folder: Path, name: str, settings: dict[str, object], sampler: Sampler
) -> None:
    write_sampler(folder, name, settings, {"why": "a test"})
    assert json.loads((folder / "sampler.json").read_text())["why"] == "a test"
    model = specmask.load(folder)
    assert default_sampler(model) == sampler
    found, wanted = specmask.sample(model, num=20), specmask.sample(model, sampler, num=20)
    for field in ("tokens", "trunk_passes", "verify_passes"):
        assert torch.equal(getattr(found, field), getattr(wanted, field))
    *_, last = specmask.stream(model, num=20)
    assert bool(last.finished.any())


def test_a_named_sampler_goes_before_what_the_folder_says(folder: Path) -> None:
    write_sampler(folder, "ancestral", {"steps": 1}, {})
    out = specmask.sample(specmask.load(folder), AnyOrder(), num=2)
    assert out.trunk_passes.tolist() == [8, 8]
    assert specmask.sample(specmask.load(folder), num=2).trunk_passes.tolist() == [1, 1]


def test_nothing_said(folder: Path) -> None:
    assert read_sampler(folder) is None
    assert default_sampler(specmask.load(folder)) == Speculative()
    headless = specmask.wrap(Draft(tiny_network()))  # type: ignore[arg-type]
    assert default_sampler(headless) == Ancestral()
    assert specmask.sample(headless, num=2).verify_passes.tolist() == [0, 0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"sampler": "ancestral"}', '{"settings": {}}']
)
def test_a_damaged_file_is_refused(folder: Path, text: str) -> None:
    says(folder, text)
    refuse(lambda: specmask.load(folder), str(folder / "sampler.json"), "delete it")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"sampler": "spekulative", "settings": {}}, "Did you mean 'speculative'"),
        ({"sampler": "speculative", "settings": {"round": 2}}, "Did you mean 'rounds'"),
        ({"sampler": "speculative", "settings": {"rounds": 0}}, "rounds=0"),
        ({"sampler": "speculative", "settings": {"rounds": "two"}}, "rounds='two'"),
        ({"sampler": "speculative", "settings": {"window": 3}}, "window=3"),
        ({"sampler": "speculative", "settings": {"temperature": "hot"}}, "temperature 'hot'"),
    ],
)
def test_settings_that_are_not_known_are_refused_when_used(
    folder: Path, said: dict[str, object], word: str
) -> None:
    """The model loads, and samples with a sampler that is named."""
    says(folder, json.dumps(said))
    model = specmask.load(folder)
    assert len(specmask.sample(model, Speculative(), num=1)) == 1
    refuse(
        lambda: specmask.sample(model, num=1), str(folder / "sampler.json"), word, "delete the file"
    )


def test_a_failed_write_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sampler(folder, "ancestral", {"steps": 3}, {})
    before = sorted(path.name for path in folder.iterdir())

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("specmask.models.saved_sampler.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_sampler(folder, "ancestral", {"steps": 4}, {})
    assert default_sampler(specmask.load(folder)) == Ancestral(3)
    assert sorted(path.name for path in folder.iterdir()) == before
