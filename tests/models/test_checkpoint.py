"""The model folder: what goes in comes out, and damage is named in one line."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

import specmask
from oracle import tiny_network
from refusal import refuse
from specmask import FullWindow, HybridTransformer, Speculative
from specmask.models import checkpoint
from specmask.models.checkpoint import file_sha256, write_folder
from specmask.training.loss import draw_masks, loss_terms


def network() -> HybridTransformer:
    return tiny_network(2, dtype=torch.float32)


def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({"a": 0, "b": 1, " ": 2}, unk_token="a"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    made.decoder = Fuse()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    specmask.save(tmp_path / "model", network(), tokenizer(), "# A card\n")
    return tmp_path / "model"


def rehash(folder: Path) -> None:
    """Make config.json agree with changed weights, so that the next check is reached."""
    config = json.loads((folder / "config.json").read_text())
    config["sha256"]["model.safetensors"] = file_sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def set_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


# ------------------------------------------------------------------------------------ round trip


def test_round_trip(folder: Path) -> None:
    model, original = specmask.load(folder), network()
    assert isinstance(model.network, HybridTransformer)
    assert model.network.config == original.config
    assert model.name == "model"
    assert not model.network.training
    for name, value in original.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name
    assert model.tokenizer is not None
    assert model.tokenizer.encode("ab a").ids == [0, 1, 2, 0]
    assert model.tokenizer.decode([0, 1, 2, 0]) == "ab a"
    sampler = Speculative(FullWindow(), rounds=2)
    first = specmask.sample(model, sampler, num=50)
    second = specmask.sample(specmask.wrap(original, tokenizer()), sampler, num=50)
    assert torch.equal(first.tokens, second.tokens)
    assert first.text == second.text
    assert first.text is not None
    assert [len(text) for text in first.text] == [5] * 50


def test_the_folder_holds_what_the_page_says(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert (folder / "README.md").read_text() == "# A card\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["sha256"]["model.safetensors"] == file_sha256(folder / "model.safetensors")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # no scratch left


def test_a_bare_network_round_trips_by_text_path(tmp_path: Path) -> None:
    specmask.save(str(tmp_path / "deep" / "er" / "model"), network())
    model = specmask.load(str(tmp_path / "deep" / "er" / "model"))
    assert model.tokenizer is None


def test_bfloat16_halves_the_file_and_loads_as_float32(folder: Path, tmp_path: Path) -> None:
    specmask.save(tmp_path / "half", network(), dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    whole = (folder / "model.safetensors").stat().st_size
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.75 * whole
    state = specmask.load(tmp_path / "half").network.state_dict()  # type: ignore[attr-defined]
    for name, value in network().state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value.bfloat16().float())


# ---------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("where", [3, 200, -1])
def test_a_flipped_byte_is_found(folder: Path, where: int) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    refuse(lambda: specmask.load(folder), "damaged", "sha256", "model.safetensors")


def test_a_cut_file_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(lambda: specmask.load(folder), "damaged")
    rehash(folder)
    refuse(lambda: specmask.load(folder), "safetensors")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s.pop("head.start"), ("misses", "head.start")),
        (lambda s: s.update(extra=torch.zeros(2)), ("unexpected", "extra")),
        (lambda s: s.update({"head.start": torch.zeros(3)}), ("head.start", "(3,)", "(16,)")),
        (lambda s: s["head.start"].__setitem__(1, torch.nan), ("head.start", "NaN")),
        (lambda s: s["head.start"].__setitem__(1, torch.inf), ("head.start", "infinity")),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], expected: tuple[str, ...]
) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    rehash(folder)
    refuse(lambda: specmask.load(folder), *expected)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuse(lambda: specmask.load(folder), "model.safetensors")
    (folder / "config.json").unlink()
    refuse(lambda: specmask.load(folder), "config.json")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "\x00\xff",
        "[]",
        "null",
        '{"architecture": "other"}',
        '{"architecture": "hybrid"}',
        '{"architecture": "hybrid", "sha256": []}',
        '{"architecture": "hybrid", "network": null}',
    ],
)
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    set_config(folder, text)
    refuse(lambda: specmask.load(folder), "config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": 1}, "colour"),
        ({"width": "wide"}, "config.json"),
        ({"width": 10}, "width=10"),
        ({"width": 16}, "asks for"),
        ({"heads": 1}, "not those it was saved with"),
        ({"residual": False}, "not those it was saved with"),
    ],
)
def test_wrong_network_settings_are_refused(
    folder: Path, change: dict[str, object], expected: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["network"].update(change)
    set_config(folder, json.dumps(config))
    refuse(lambda: specmask.load(folder), expected)


def test_incomplete_network_settings_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["network"]["width"]
    set_config(folder, json.dumps(config))
    refuse(lambda: specmask.load(folder), "width")


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    refuse(lambda: specmask.load(folder), "tokenizer.json")


def test_an_unknown_name_lists_the_known_ones() -> None:
    refuse(lambda: specmask.load("text9-small"), "text9-small", "text8-small")
    refuse(lambda: specmask.load("/nowhere/at/all"), "/nowhere/at/all")


# ----------------------------------------------------------------------------------------- saving


def test_a_folder_is_not_overwritten_unasked(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refuse(lambda: specmask.save(folder, network()), "exists")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_is_replaced_when_asked(folder: Path) -> None:
    other = tiny_network(1, seed=5, dtype=torch.float32)
    specmask.save(folder, other, overwrite=True)
    assert specmask.load(folder).network.config == other.config  # type: ignore[attr-defined]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    broken = network()
    with torch.no_grad():
        broken.head.start[3] = value
    refuse(lambda: specmask.save(tmp_path / "model", broken), "head.start", "NaN")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("call", ["save_file", "fsync", "rename", "last fsync"])
def test_a_full_disk_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, overwrite: bool
) -> None:
    """ENOSPC while the weights are written, while they are synced, and when the new folder is
    moved into place: one line, no scratch left, and the old folder loads as before."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_scratch(self: Path, target: Path, rename: Callable = Path.rename) -> Path:
        if self.name.endswith(".tmp"):
            full()
        return rename(self, target)

    if call == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", full)
    elif call == "fsync":
        monkeypatch.setattr(checkpoint.os, "fsync", full)
    elif call == "rename":
        monkeypatch.setattr(Path, "rename", full_for_scratch)
    else:
        monkeypatch.setattr(
            checkpoint, "_sync", lambda path: full() if path == folder.parent else None
        )
    target = folder if overwrite else folder.parent / "new"
    refuse(
        lambda: specmask.save(target, network(), overwrite=overwrite), "No space left", str(target)
    )
    monkeypatch.undo()
    if call == "last fsync" and not overwrite:  # the new folder is there, and whole
        assert specmask.load(target).name == "new"
        shutil.rmtree(target)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert specmask.load(folder).network.config == network().config  # type: ignore[attr-defined]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuse(lambda: specmask.save(tmp_path / "file" / "model", network()), "could not write")


def test_write_folder_leaves_nothing_behind_when_a_writer_fails(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("not a disk error")

    with pytest.raises(RuntimeError, match="not a disk error"):
        write_folder(tmp_path / "model", {"a": b"whole", "b": fail})
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_weights_mean_what_they_meant() -> None:
    """Both losses of a sentence, in nats per token: a change of the network that its own tests
    cannot see, since training and sampling change alike, makes trained weights worse."""
    model = specmask.load("text8-small")
    text = "the king of the south married the daughter of the king of the north and their children "
    tokens = torch.tensor([model.tokenizer.encode(text * 2).ids])  # type: ignore[union-attr]
    order, _ = draw_masks(0, 0, torch.tensor([tokens.shape[1]]), tokens.shape[1])
    with torch.no_grad():
        terms = loss_terms(model.network, tokens, order, torch.tensor([60]))  # type: ignore[arg-type]
    found = float(terms.draft_nll), float(terms.target_nll)
    assert found == pytest.approx((0.8367, 0.4337), abs=1e-3)
