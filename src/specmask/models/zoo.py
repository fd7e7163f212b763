"""The models that ship with the package, by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

WORDS = "words.txt.xz"
"""In a shipped text model's folder: the words of its training text, for spelling accuracy."""


@dataclass(frozen=True)
class ZooEntry:
    """Where a model is, under which licence, and what it is.

    trunk: the pretrained model it needs, which does not ship: `load(name, trunk=FOLDER)`.
    """

    folder: str
    license: str
    description: str
    trunk: str | None = None


ZOO: dict[str, ZooEntry] = {
    "text8-small": ZooEntry(
        folder="zoo/text8-small",
        license="weights Apache-2.0; sources of the training text in the card",
        description="characters a-z and space, 256 long, trained on English prose",
    ),
    "antibody": ZooEntry(
        folder="zoo/antibody",
        license="weights Apache-2.0; the pretrained AntiBERTy they stand on, MIT, is not included",
        description="heavy chains of human antibodies, two new blocks on the frozen AntiBERTy",
        trunk="AntiBERTy_md_smooth",
    ),
}


def zoo_folder(name: str) -> Path:
    """The folder of a shipped model, inside the installed package."""
    return Path(str(files("specmask"))) / ZOO[name].folder
