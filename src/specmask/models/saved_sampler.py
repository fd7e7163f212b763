"""The sampler that a model folder recommends: sampler.json, as `specmask tune` writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specmask.errors import UserError

SAMPLER = "sampler.json"


@dataclass(frozen=True)
class SavedSampler:
    """A sampler by its name and settings, as the command line spells them; no more is known here.

    file: where it was read, to name in errors. `specmask.samplers` makes the sampler of it.
    """

    name: str
    settings: Mapping[str, Any]
    file: str


def read_sampler(folder: Path) -> SavedSampler | None:
    """What the folder recommends, or None if it says nothing.

    Raises:
        UserError: a file that is not JSON, or lacks sampler or settings.
    """
    path = folder / SAMPLER
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        name, settings = found["sampler"], found["settings"]
    except (ValueError, KeyError, TypeError):
        name, settings = None, None
    if not isinstance(name, str) or not isinstance(settings, dict):
        raise UserError(
            f"{path} is damaged: expected a JSON object with sampler and settings; delete it, and "
            "run specmask tune for another"
        )
    return SavedSampler(name, settings, str(path))


def write_sampler(
    folder: Path, name: str, settings: Mapping[str, Any], about: Mapping[str, Any]
) -> Path:
    """Write sampler.json into a folder, whole or not at all, over an earlier one.

    Args:
        folder: of the model. name, settings: as the command line spells them.
        about: where the choice comes from, for people; it is not read again.
    """
    path = folder / SAMPLER
    scratch = folder / f".{SAMPLER}.{os.getpid()}.tmp"
    text = json.dumps({"sampler": name, "settings": settings, **about}, indent=2) + "\n"
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path
