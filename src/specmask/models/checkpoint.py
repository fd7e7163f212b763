"""The model folder: config.json, model.safetensors, tokenizer.json, README.md (the card), and
sampler.json where one was tuned.

Written to a temporary sibling, synced and renamed, so that a folder is whole or absent. Nothing is
pickled: loading a folder from a stranger runs no code of theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from specmask.checks import check_device
from specmask.errors import UserError, unknown
from specmask.models.hybrid import DraftNetwork, HybridConfig, build, is_new
from specmask.models.modes import Compile, check_modes, prepare
from specmask.models.protocol import Denoiser
from specmask.models.saved_sampler import SavedSampler, read_sampler
from specmask.models.zoo import ZOO, zoo_folder

_Config = TypeVar("_Config")
TRUNK = "trunk"
"""Folder inside a model folder for a copy of its pretrained model."""
CONFIG, WEIGHTS, TOKENIZER, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "README.md",
)


@dataclass(frozen=True)
class Model:
    """A network and, where it reads text, its tokenizer; what every public function takes.

    default_sampler: what the model's folder recommends, if it does.
    """

    network: Denoiser
    tokenizer: Tokenizer | None = None
    name: str = "network"
    default_sampler: SavedSampler | None = None

    @property
    def device(self) -> torch.device:
        parameters = getattr(self.network, "parameters", None)
        first = next(iter(parameters()), None) if parameters else None
        return first.device if first is not None else torch.device("cpu")


def wrap(network: Denoiser, tokenizer: Tokenizer | None = None) -> Model:
    """A bare network as a model, for tests and research. Put in eval mode if it has one."""
    if isinstance(network, torch.nn.Module):
        network.eval()
    return Model(network, tokenizer)


# ----------------------------------------------------------------------------------------- files


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(
    folder: Path, files: Mapping[str, bytes | Callable[[Path], None]], *, overwrite: bool = False
) -> None:
    """Make `folder` with all of `files` or not at all.

    Args:
        folder: the folder to make; its parents are made too.
        files: name → content, or a function that writes the file at the path it is given.
        overwrite: replace a folder that exists.

    Raises:
        UserError: the folder exists, or the disk is full or not writable; nothing old is lost.
    """
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists: choose another folder or pass --overwrite")
    scratch = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    aside = folder.parent / f".{folder.name}.{os.getpid()}.old"
    try:
        scratch.mkdir(parents=True)
        for name, content in files.items():
            path = scratch / name
            if callable(content):
                content(path)
            else:
                path.write_bytes(content)
            _sync(path)
        _sync(scratch)
        if folder.exists():  # aside, not away: a kill in between loses nothing
            folder.rename(aside)
        scratch.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"could not write {folder}: {error}. Nothing that was saved before is lost; "
            "free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if aside.exists() and folder.exists():  # the new one is there and whole
            shutil.rmtree(aside, ignore_errors=True)
        elif aside.exists():
            aside.rename(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------ save, load


_ARCHITECTURES = {"HybridConfig": "hybrid", "PretrainedConfig": "pretrained"}


def save(
    folder: str | Path,
    network: DraftNetwork,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model folder. Of a network on a frozen pretrained trunk, what is new on the trunk.

    Args:
        folder: where to. network: its weights and config. tokenizer: optional.
        card: Markdown for README.md. dtype: e.g. torch.bfloat16 to halve the file; default as is.
        overwrite: replace an existing folder.

    Raises:
        UserError: a weight is not finite; the network was prepared in bfloat16 or int8, so that its
            weights are rounded; the folder exists; the disk is full.
    """
    if network.rounded is not None:
        raise UserError(
            f"the network was prepared in {network.rounded}, its weights are rounded: load it in "
            "float32 and save that, with dtype=torch.bfloat16 for half the file"
        )
    state = {
        name: value.detach().to("cpu", dtype or value.dtype).contiguous()
        for name, value in network.own_state().items()
    }
    _check_finite(state, str(folder))
    folder = Path(folder)

    def write_config(path: Path) -> None:
        sizes = asdict(network.config)
        config = {
            "architecture": _ARCHITECTURES[type(network.config).__name__],
            "network": sizes,
            "sha256": {WEIGHTS: file_sha256(path.parent / WEIGHTS), "network": _digest(sizes)},
        }
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    files: dict[str, bytes | Callable[[Path], None]] = {
        WEIGHTS: lambda path: save_file(state, path),
        CONFIG: write_config,
    }
    if tokenizer is not None:
        files[TOKENIZER] = tokenizer.to_str(pretty=True).encode()
    if card is not None:
        files[CARD] = card.encode()
    write_folder(folder, files, overwrite=overwrite)


def load(
    name_or_folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    trunk: str | Path | None = None,
    dtype: str = "float32",
    compile: Compile = False,
    quantize: str | None = None,
) -> Model:
    """A model from the zoo by name, or from a folder; eval mode.

    Args:
        name_or_folder: see `ZOO`, or what `save` wrote.
        device: where the network goes.
        trunk: for a model on a pretrained trunk, the folder (or name) of the pretrained model, if
            it is not where it was when the head was trained, and no copy is in the folder.
        dtype: "float32" or "bfloat16". compile: True, or "graphs" on CUDA. quantize: "int8" on a
            CPU. See `models.modes.prepare`: bfloat16 and int8 round, so that the law is a network's
            nearby; a row's tokens are independent of its batch, to the last bit, in float32 on a
            CPU without compile alone.

    Raises:
        UserError: no such name or folder, a missing or damaged file, a missing, superfluous or
            misshapen tensor, a weight that is not finite; another pretrained model; a tokenizer
            with more tokens than the network has; a damaged sampler.json; modes that there are not,
            or not on this device, not together or not for this network.
    """
    check_device(device)
    check_modes(device, dtype=dtype, compile=compile, quantize=quantize)
    folder = Path(name_or_folder)
    if str(name_or_folder) in ZOO:
        folder = zoo_folder(str(name_or_folder))
    if not folder.is_dir():
        raise unknown("model", str(name_or_folder), ZOO)
    config, default = _read_config(folder), read_sampler(folder)
    state = _read_weights(folder, config)
    network = _build(folder, config, trunk)
    if config["architecture"] == "pretrained" and not all(is_new(name) for name in state):
        network.requires_grad_(True)  # trained along with the head
    _check_names(folder, network.own_state(), state)
    # Some settings (heads, residual) fit the same tensors, but change what is computed with them.
    if config["sha256"].get("network") != _digest(config["network"]):
        raise UserError(
            f"{folder / CONFIG}: the network's settings are not those it was saved with; copy the "
            "folder again or load another checkpoint"
        )
    floats = {name: value.float() for name, value in state.items()}
    network.load_state_dict(floats, strict=False)
    prepare(network.to(device), dtype=dtype, compile=compile, quantize=quantize)
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    if tokenizer is not None and isinstance(network.config, HybridConfig):
        size = tokenizer.get_vocab_size()
        if size > network.vocab_size:  # its last ids would be the mask, or nothing at all
            raise UserError(
                f"{folder / TOKENIZER} has {size} tokens, the network {network.vocab_size}: "
                "expected the tokenizer it was trained with; copy the folder again"
            )
    return Model(network, tokenizer, folder.name, default)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{folder} holds no {CONFIG}: not a model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): the folder is damaged") from None
    parts = ("network", "sha256")
    if not isinstance(config, dict) or any(not isinstance(config.get(k), dict) for k in parts):
        raise UserError(f"{path} lacks {' or '.join(parts)}: the folder is damaged")
    if config.get("architecture") not in _ARCHITECTURES.values():
        raise UserError(
            f"{path}: architecture {config.get('architecture')!r}, expected one of "
            f"{', '.join(_ARCHITECTURES.values())}; a newer version of specmask may know it"
        )
    return config


def _build(folder: Path, config: dict[str, Any], trunk: str | Path | None) -> DraftNetwork:
    """The network of a folder, its own weights not yet loaded."""
    if config["architecture"] == "pretrained":
        from specmask.models.pretrained import load_trunk
        from specmask.models.pretrained_trunk import PretrainedConfig

        if trunk is None and (folder / TRUNK).is_dir():
            trunk = folder / TRUNK
        return load_trunk(_network_config(folder, config, PretrainedConfig), trunk)
    if trunk is not None:
        raise UserError(f"{folder} has a trunk of its own: leave out trunk")
    return build(_network_config(folder, config, HybridConfig))


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _network_config(folder: Path, config: dict[str, Any], kind: type[_Config]) -> _Config:
    known, got = {f.name for f in fields(kind)}, set(config["network"])  # type: ignore[arg-type]
    if extra := got - known:
        raise UserError(f"{folder / CONFIG}: unknown network settings {', '.join(sorted(extra))}")
    try:
        return kind(**config["network"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: network settings are incomplete ({error})") from None
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None


def _read_weights(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists():
        raise UserError(f"{folder} holds no {WEIGHTS}: not a model folder")
    expected, got = config["sha256"].get(WEIGHTS), file_sha256(path)
    if expected != got:
        raise UserError(
            f"{path} is damaged: its sha256 is {got[:12]}…, {CONFIG} says {str(expected)[:12]}…; "
            "copy the folder again or load another checkpoint"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None
    _check_finite(state, str(path))
    return state


def _read_tokenizer(path: Path) -> Tokenizer | None:
    if not path.exists():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is not a tokenizer ({error}): the folder is damaged") from None


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"{where}: weight {name!r} holds NaN or infinity; use an earlier checkpoint"
            )


def check_weights(network: object) -> None:
    """Raise UserError if a weight of a module is NaN or infinite."""
    if isinstance(network, torch.nn.Module):
        _check_finite(dict(network.named_parameters()), type(network).__name__)


def _check_names(folder: Path, expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    for what, names in (
        ("misses tensor", expected.keys() - got.keys()),
        ("has an unexpected tensor", got.keys() - expected.keys()),
    ):
        if names:
            raise UserError(f"{folder / WEIGHTS} {what} {min(names)!r} ({len(names)} in all)")
    for name, value in expected.items():
        if got[name].shape != value.shape:
            raise UserError(
                f"{folder / WEIGHTS}: tensor {name!r} is {tuple(got[name].shape)}, "
                f"config.json asks for {tuple(value.shape)}"
            )
