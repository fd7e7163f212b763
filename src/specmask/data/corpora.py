"""Corpora: a text, its alphabet and its three parts."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from specmask.data.files import read_text
from specmask.data.tokenizers import character_tokenizer, encode, text8_tokenizer
from specmask.errors import UserError, unknown

TEXT8_URL = "http://mattmahoney.net/dc/text8.zip"
TEXT8_LENGTH = 100_000_000
TEXT8_START = " anarchism originated as a term of abuse first used"
MOST_SYMBOLS = 512

Ids = NDArray[np.unsignedinteger]
Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all if the server says)."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as symbols.

    tokenizer: character-level. train, validation, test: (tokens,) uint8 or uint16, the first 90 %,
    the next 5 % and the last 5 % of the text. name: of the file. sha256: hex digest of the
    unpacked text in UTF-8, which says what a model was trained on.
    """

    tokenizer: Tokenizer
    train: Ids
    validation: Ids
    test: Ids
    name: str
    sha256: str


def load_corpus(path: str | Path | None, kind: str) -> Corpus:
    """Read a text and cut it in three.

    Args:
        path: a UTF-8 file, compressed or not; None downloads text8 (see `text8`).
        kind: "text8" for the 27 symbols a-z and space, whatever the text, a line end at its very
            end aside; "characters" takes the alphabet from the text, in the order of code points.

    Raises:
        UserError: another kind, a file that cannot be read, a symbol outside the alphabet (text8),
            more than 512 symbols (characters), no path for characters.
    """
    if kind not in ("text8", "characters"):
        raise unknown("corpus kind", kind, ("text8", "characters"))
    if path is None and kind != "text8":
        raise UserError(f"no file: a corpus of kind {kind!r} needs the path of a text")
    text = text8() if path is None else read_text(path)
    digest = _sha256(text)
    where = "text8" if path is None else str(path)
    if kind == "text8":
        text, tokenizer = text.rstrip("\r\n"), text8_tokenizer()
    else:
        tokenizer = character_tokenizer(_alphabet(text, where))
    ids = encode(tokenizer, text, where)
    return Corpus(tokenizer, **splits(ids), name=Path(where).name, sha256=digest)


def splits(ids: Ids) -> dict[str, Ids]:
    """Views of the first 90 %, the next 5 % and the last 5 %: train, validation, test.

    For text8 these are the customary 90 M, 5 M and 5 M characters.
    """
    first, second = len(ids) * 90 // 100, len(ids) * 95 // 100
    return {"train": ids[:first], "validation": ids[first:second], "test": ids[second:]}


def text8(
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> str:
    """The text of text8 (M. Mahoney, *About the test data*): Wikipedia of 2006 as a-z and space.

    Args:
        path: a local file, compressed or not; only its alphabet is checked, so that a text of the
            same kind will do.
        cache_dir: where a download is kept; default ~/.cache/specmask.
        sha256: hex digest that the unpacked text must have. Without it a download is known by its
            length and its first words.
        progress: told of a download.

    Raises:
        UserError: the file cannot be read, holds other symbols or has another digest; the download
            failed or brought something else.
    """
    if path is None:
        path = _cache(cache_dir) / "text8.zip"
        if not path.exists():
            _download(TEXT8_URL, path, lambda file: _check_text8(read_text(file), "it"), progress)
        text = read_text(path)
        _check_text8(text, f"{path} (delete it and try again)")
    else:
        text = read_text(path)
    digest = _sha256(text)
    if sha256 is not None and digest != sha256.lower():
        raise UserError(
            f"{path} has sha256 {digest}, expected {sha256}: it is another text; "
            "leave out sha256 to use it all the same"
        )
    text = text.rstrip("\r\n")
    encode(text8_tokenizer(), text, str(path))
    return text


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _alphabet(text: str, where: str) -> str:
    symbols = sorted(set(text))
    if len(symbols) > MOST_SYMBOLS:
        raise UserError(
            f"{where} has {len(symbols)} distinct symbols, a character corpus at most "
            f"{MOST_SYMBOLS}: replace the rare ones (e.g. iconv -t ascii//TRANSLIT)"
        )
    return "".join(symbols)


# -------------------------------------------------------------------------------------- download


def _cache(folder: str | Path | None) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder or Path(home) / "specmask").expanduser()


def _check_text8(text: str, what: str) -> None:
    if len(text) != TEXT8_LENGTH or not text.startswith(TEXT8_START):
        raise UserError(
            f"{what} is not text8: {len(text):,} characters that start with "
            f"{text[: len(TEXT8_START)]!r}, expected {TEXT8_LENGTH:,} and {TEXT8_START!r}"
        )


def _download(
    url: str, path: Path, check: Callable[[Path], None], progress: Progress | None
) -> None:
    """Put what `url` holds at `path`: checked and whole, or not at all."""
    scratch: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            scratch = Path(file.name)
            with urllib.request.urlopen(url, timeout=30) as response:
                _copy(response, file, progress)
            file.flush()
            os.fsync(file.fileno())
        check(scratch)
        scratch.replace(path)
    except (OSError, HTTPException, UserError) as error:
        raise UserError(
            f"could not fetch {url} ({error}): fetch it by other means and pass the file's path"
        ) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def _copy(response: Any, file: IO[bytes], progress: Progress | None) -> None:
    total = int(response.headers.get("Content-Length") or 0) or None
    done = 0
    while chunk := response.read(1 << 20):
        file.write(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total)
