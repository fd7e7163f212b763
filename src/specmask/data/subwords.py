"""Subword tokenizers: trained on the user's text, or read from wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from specmask.checks import optional_package
from specmask.data.documents import Documents, documents
from specmask.errors import UserError, first_line

END_OF_TEXT = "<|endoftext|>"

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all if known)."""


def train_bpe(
    paths: str | Path | Sequence[str | Path] | Documents,
    vocab_size: int,
    progress: Progress | None = None,
) -> Tokenizer:
    """A byte-level BPE tokenizer of the user's own text, as GPT-2's: any text survives exactly.

    The same documents give the same tokenizer, on any number of cores. Id 0 is `<|endoftext|>`,
    the next 256 are the bytes.

    Args:
        paths: files as `documents` takes them, or the `Documents` themselves, e.g. of one part.
        vocab_size: tokens in all, at least 257; there are fewer if no pair is left that occurs
            twice.
        progress: told of the bytes read.

    Raises:
        UserError: a smaller size, no text at all, or what `documents` raises.
    """
    if vocab_size < 257:
        raise UserError(
            f"vocab_size={vocab_size}: expected at least 257, the bytes and {END_OF_TEXT}"
        )
    source = paths if isinstance(paths, Documents) else documents(paths)
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for document in source:
            read += 1
            if progress is not None:
                progress(source.done, source.size)
            yield document

    tokenizer.train_from_iterator(texts(), trainer)
    if read == 0:
        raise UserError(f"{', '.join(source.paths)}: no text; a tokenizer needs some to learn from")
    return tokenizer


def load_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """A tokenizer from the disk, or one of the Hugging Face Hub.

    Args:
        name_or_folder: a tokenizer.json; a folder that holds one, or GPT-2's two files (vocab.json
            or encoder.json, merges.txt or vocab.bpe); any other folder or name is left to
            Transformers.

    Raises:
        UserError: there is no such file, it is no tokenizer, Transformers is needed and not
            installed, or cannot load it.
    """
    path = Path(name_or_folder).expanduser()
    if path.is_file() or path.suffix == ".json":
        return tokenizer_file(path)
    if (path / "tokenizer.json").is_file():
        return tokenizer_file(path / "tokenizer.json")
    vocabulary = _first_file(path, "vocab.json", "encoder.json")
    merges = _first_file(path, "merges.txt", "vocab.bpe")
    if vocabulary is not None and merges is not None:
        try:
            model = models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(
                f"{path}: {vocabulary.name} and {merges.name} are no BPE ({first_line(error)}); "
                "copy or download them again"
            ) from error
        return _byte_level(model)
    transformers = optional_package("transformers", f"tokenizer {str(name_or_folder)!r} needs")
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(name_or_folder))
        if len(found) <= len(found.all_special_tokens):
            raise FileNotFoundError("its files are missing")  # Transformers makes up an empty one
        return found.backend_tokenizer
    except Exception as error:  # the library lets through whatever the net and the files raise
        raise UserError(
            f"no tokenizer {str(name_or_folder)!r} ({first_line(error)}): expected a "
            "tokenizer.json, a folder with one, or a name on the Hub; check the name and the "
            "connection"
        ) from error


def _byte_level(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def tokenizer_file(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json."""
    if not path.is_file():
        raise UserError(f"no file {path}: expected a tokenizer.json; check the path")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            f"{path} is no tokenizer ({first_line(error)}): expected a tokenizer.json, as "
            "tokenizers writes it"
        ) from error


def _first_file(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
