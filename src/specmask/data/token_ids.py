"""Corpora of any size tokenised once, into memory-mapped ids."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from specmask.data.documents import Documents, utf8
from specmask.data.subwords import END_OF_TEXT, Progress, tokenizer_file
from specmask.errors import UserError, first_line, unknown

_BATCH = 1 << 21
"""Characters encoded at a time; the library needs many times their size for the encodings."""
_SAVE = 1 << 26
"""Characters between two saved states: what a killed run does twice."""


@dataclass(frozen=True, eq=False)
class TokenIds:
    """A tokenised corpus, memory-mapped.

    ids: (tokens,) uint16 or uint32. offsets: (rows + 1,) int64, row k is
    ids[offsets[k] : offsets[k + 1]]; None if packed. tokenizer: what made them. meta: the contents
    of meta.json.
    """

    ids: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64] | None
    tokenizer: Tokenizer
    meta: dict[str, Any]


def tokenize_corpus(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    folder: str | Path,
    mode: str = "packed",
    end_of_text: str = END_OF_TEXT,
    progress: Progress | None = None,
) -> TokenIds:
    """Tokenise documents once, into files that `open_ids` maps.

    The folder gets ids.bin, tokenizer.json, meta.json and, for rows, offsets.bin. A run that was
    killed goes on where it last saved (every 64 M characters) when it is called again with the same
    arguments, and gives the same bytes; a finished one only reads the documents through and checks
    that they are the same. All cores work, as threads of the tokenizers library; its variable
    RAYON_NUM_THREADS, set before the process starts, allows fewer. Memory holds a batch of
    documents, so that it grows with the longest document alone.

    Args:
        documents: texts, in the same order each time; see `documents`.
        tokenizer: any. Truncation, padding and special tokens around a text are left off, and a
            text that spells a special token out does not become one.
        folder: made if need be; for this corpus alone.
        mode: "packed": all documents in one stream, the end-of-text token after each; "rows": each
            document a row, without it. A document without a token is left out.
        end_of_text: the token's name, for "packed".
        progress: told of the bytes of the files read, or of the text if these are no `Documents`.

    Raises:
        UserError: another mode, a token or symbol that the tokenizer does not know, no document, a
            folder that holds something else or another run, files that cannot be written.
    """
    if mode not in ("packed", "rows"):
        raise unknown("mode", mode, ("packed", "rows"))
    if isinstance(documents, str):
        raise UserError("documents: expected many texts, got one string; put it in a list")
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy, since it is changed
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id(end_of_text) if mode == "packed" else None
    if mode == "packed" and end is None:
        raise UserError(
            f"the tokenizer has no token {end_of_text!r}: name its own with end_of_text, "
            "e.g. </s> or [SEP]"
        )
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    settings = {
        "mode": mode,
        "end_of_text": None if end is None else end_of_text,
        "dtype": "<u2" if largest < 1 << 16 else "<u4",
        "tokenizer_sha256": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "tokenizers_version": tokenizers.__version__,
    }
    try:
        return _tokenize(documents, tokenizer, Path(folder), settings, end, progress)
    except OSError as error:
        raise UserError(
            f"could not write {folder}: {error.strerror or error}. What is saved is not lost: "
            "free some space and call again"
        ) from error


def _tokenize(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    folder: Path,
    settings: dict[str, Any],
    end: int | None,
    progress: Progress | None,
) -> TokenIds:
    folder.mkdir(parents=True, exist_ok=True)
    meta = _begin(folder, tokenizer, settings)
    seen, digest, size = 0, hashlib.sha256(), 0
    stream = iter(documents)
    if meta["documents"]:  # a run that was killed, or is finished
        for batch in _batches(stream, meta["documents"]):
            seen, size = seen + len(batch), size + _update(digest, batch, seen)
            _report(progress, documents, size)
        if seen != meta["documents"] or digest.hexdigest() != meta["documents_sha256"]:
            raise UserError(
                f"{folder} was begun with other documents: expected the same ones; delete the "
                "folder or choose another"
            )
    if meta["finished"]:
        if next(stream, None) is not None:
            raise UserError(
                f"{folder} is finished after {seen:,} documents, but there are more now: delete "
                "the folder or choose another"
            )
        return open_ids(folder)
    with ExitStack() as stack:
        ids = stack.enter_context(_Growing(folder / "ids.bin", settings["dtype"], meta["tokens"]))
        offsets = None
        if settings["mode"] == "rows":
            offsets = stack.enter_context(
                _Growing(folder / "offsets.bin", "<i8", meta["rows"] + bool(meta["documents"]))
            )
            if not offsets.count:
                offsets.append([0])
        rows, unsaved = meta["rows"], 0

        def save() -> None:
            for file in (ids, offsets):
                if file is not None:
                    file.sync()
            meta.update(documents=seen, documents_sha256=digest.hexdigest())
            meta.update(tokens=ids.count, rows=rows)
            _write_json(folder / "meta.json", meta)

        for batch in _batches(stream):
            written = _update(digest, batch, seen)
            for encoded in _encode(tokenizer, batch, seen):
                if encoded:
                    rows += 1
                    ids.append(encoded if end is None else [*encoded, end])
                    if offsets is not None:
                        offsets.append([ids.count])
            seen, size, unsaved = seen + len(batch), size + written, unsaved + written
            if unsaved >= _SAVE:
                save()
                unsaved = 0
            _report(progress, documents, size)
        if not rows:
            raise UserError("no document holds a token: expected some text; check the files")
        save()
    meta.update(ids_sha256=_digest(folder / "ids.bin"), finished=True)
    _write_json(folder / "meta.json", meta)
    return open_ids(folder)


def open_ids(folder: str | Path, verify: bool = False) -> TokenIds:
    """Map what `tokenize_corpus` wrote; nothing is read before it is used.

    Args:
        folder: of one corpus. verify: read all ids and compare their sha256.

    Raises:
        UserError: no such folder, a run that is not finished, files that do not fit meta.json.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    if meta is None:
        raise UserError(f"{folder} holds no tokenised corpus: make one with tokenize_corpus")
    if not meta["finished"]:
        raise UserError(
            f"{folder} is not finished ({meta['documents']:,} documents so far): call "
            "tokenize_corpus again with the same arguments"
        )
    ids = _map(folder / "ids.bin", meta["dtype"], meta["tokens"])
    offsets = None
    if meta["mode"] == "rows":
        offsets = _map(folder / "offsets.bin", "<i8", meta["rows"] + 1)
    if verify and _digest(folder / "ids.bin") != meta["ids_sha256"]:
        raise _damaged(folder / "ids.bin", "its sha256 is not that of meta.json")
    tokenizer = tokenizer_file(folder / "tokenizer.json")
    if hashlib.sha256(tokenizer.to_str().encode()).hexdigest() != meta["tokenizer_sha256"]:
        raise _damaged(folder / "tokenizer.json", "it is not the tokenizer of meta.json")
    return TokenIds(ids, offsets, tokenizer, meta)


class _Growing:
    """A file of numbers that only grows, from the length that was last saved."""

    def __init__(self, path: Path, dtype: str, count: int) -> None:
        self._dtype, self.count = np.dtype(dtype), count
        self._file = open(path, "r+b" if count else "w+b")  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(count * self._dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() != count * self._dtype.itemsize:
            raise _damaged(path, f"{self._file.tell()} bytes for {count} saved numbers")

    def append(self, numbers: Sequence[int]) -> None:
        self._file.write(np.array(numbers, dtype=self._dtype).tobytes())
        self.count += len(numbers)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> _Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _begin(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> dict[str, Any]:
    """The state to go on from: that of a killed run with the same settings, or a fresh one."""
    meta = _read_meta(folder)
    if meta is None:
        if (folder / "ids.bin").exists():
            raise UserError(
                f"{folder} holds an ids.bin without its meta.json: delete it or choose another "
                "folder"
            )
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        meta = settings | {
            "vocab_size": tokenizer.get_vocab_size(),
            "finished": False,
            "documents": 0,
            "documents_sha256": None,
            "rows": 0,
            "tokens": 0,
            "ids_sha256": None,
        }
        _write_json(folder / "meta.json", meta)
        return meta
    for name, value in settings.items():
        if meta[name] != value:
            raise UserError(
                f"{folder} was begun with {name} {meta[name]!r}, now it is {value!r}: delete the "
                "folder or choose another"
            )
    return meta


def _batches(stream: Iterator[str], most: int | None = None) -> Iterator[list[str]]:
    """Documents of about _BATCH characters together; no more than `most` are taken."""
    batch: list[str] = []
    length = taken = 0
    while taken != most and (document := next(stream, None)) is not None:
        batch.append(document)
        taken, length = taken + 1, length + len(document)
        if length >= _BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _update(digest: Any, batch: list[str], first: int) -> int:
    """Add the documents and where each ends to the digest; their bytes."""
    size = 0
    for number, document in enumerate(batch, first + 1):
        raw = utf8(document, f"document {number}")
        digest.update(len(raw).to_bytes(8, "little") + raw)
        size += len(raw)
    return size


def _encode(tokenizer: Tokenizer, batch: list[str], first: int) -> Iterator[list[int]]:
    try:
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            f"documents {first + 1} to {first + len(batch)}: the tokenizer cannot encode them "
            f"({first_line(error)}); use one that knows their symbols"
        ) from error
    return (encoding.ids for encoding in encodings)


def _report(progress: Progress | None, documents: Iterable[str], size: int) -> None:
    if progress is None:
        return
    if isinstance(documents, Documents) and documents.size is not None:
        progress(documents.done, documents.size)
    else:
        progress(size, None)


def _map(path: Path, dtype: str, count: int) -> Any:
    wanted = count * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else 0
    if size != wanted:
        raise _damaged(path, f"{size} bytes, expected {wanted}")
    return np.memmap(path, dtype=dtype, mode="r")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}): delete the folder and tokenise again")


def _read_meta(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(folder / "meta.json", str(error)) from None


def _write_json(path: Path, contents: dict[str, Any]) -> None:
    """Whole and on the disk, or as it was."""
    scratch = path.with_suffix(".part")
    with open(scratch, "w", encoding="utf-8") as file:
        json.dump(contents, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
