"""Subword tokenizers, and corpora of any size tokenised once, into memory-mapped ids."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from specmask.errors import UserError, unknown

END_OF_TEXT = "<|endoftext|>"
PARTS = ("train", "validation", "test")

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all if known)."""

_HUB = "hub:"
_KINDS = (".txt", ".jsonl", ".parquet")
_BATCH = 1 << 21
"""Characters encoded at a time; the library needs many times their size for the encodings."""
_SAVE = 1 << 26
"""Characters between two saved states: what a killed run does twice."""


# --------------------------------------------------------------------------------------- parts


def part_of(document: str, validation: float = 0.05, test: float = 0.05) -> str:
    """The part a document belongs to, "train", "validation" or "test": by its text alone.

    Whole documents fall into one part, equal documents into the same, whatever their order and
    number, so that nothing leaks from one part to another and a corpus that grows moves none.

    Args:
        document: its text. validation, test: their expected shares of the documents.

    Raises:
        UserError: shares below 0, or above 1 together.
    """
    if not (validation >= 0 and test >= 0 and validation + test <= 1):
        raise UserError(
            f"shares validation={validation}, test={test}: expected at least 0, together at most 1"
        )
    digest = hashlib.sha256(_utf8(document, "a document")).digest()
    place = int.from_bytes(digest[:8], "big") / (1 << 64)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


# ----------------------------------------------------------------------------------- documents


@dataclass(eq=False)
class Documents:
    """The documents of files, each a str with something in it; iterate as often as you like.

    Made by `documents`. size: bytes of the files as they lie on the disk, None with a data set of
    the Hub. done: of those, the bytes that the latest iteration has read.
    """

    paths: tuple[str, ...]
    text: str
    whole_files: bool
    part: str | None
    size: int | None
    done: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[str]:
        self.done = 0
        for path in self.paths:
            start = self.done
            for document in self._read(path, start):
                if document.strip() and self.part in (None, part_of(document)):
                    yield document
            if not path.startswith(_HUB):
                self.done = start + Path(path).stat().st_size

    def _read(self, path: str, start: int) -> Iterator[str]:
        if path.startswith(_HUB):
            yield from _hub(path, self.text)
            return
        try:
            if _kind(path) == ".parquet":
                yield from self._parquet(path, start)
            else:
                yield from self._text(path, start)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 ({error.reason}): expected text; convert it, "
                "e.g. iconv -f latin1 -t utf-8"
            ) from None
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise UserError(
                f"{path} cannot be read: {error}; check the file, or copy it again"
            ) from None

    def _text(self, path: str, start: int) -> Iterator[str]:
        with ExitStack() as stack:
            raw = stack.enter_context(open(path, "rb"))
            # Lines end at \n alone, so that a document keeps its line ends as they are.
            lines = stack.enter_context(
                TextIOWrapper(_unpacked(raw), encoding="utf-8-sig", newline="\n")
            )
            if _kind(path) == ".jsonl":
                found = _json_lines(path, lines, self.text)
            elif self.whole_files:
                found = iter([lines.read()])
            else:
                found = _paragraphs(path, lines)
            for document in found:
                self.done = start + raw.tell()
                yield document

    def _parquet(self, path: str, start: int) -> Iterator[str]:
        parquet = _optional("pyarrow.parquet", f"{path} needs")
        size = Path(path).stat().st_size
        try:
            with parquet.ParquetFile(path) as file:
                if self.text not in file.schema_arrow.names:
                    raise _no_field(path, self.text, file.schema_arrow.names)
                row, rows = 0, file.metadata.num_rows
                for batch in file.iter_batches(batch_size=1024, columns=[self.text]):
                    for value in batch.column(0):
                        row += 1
                        self.done = start + size * row // rows
                        yield _string(value.as_py(), f"{path}, row {row}", self.text)
        except UserError:
            raise
        except ValueError as error:  # what pyarrow's own errors derive from
            raise UserError(
                f"{path} is no parquet file ({error}): check the file, or copy it again"
            ) from None


def documents(
    paths: str | Path | Sequence[str | Path],
    text: str = "text",
    whole_files: bool = False,
    part: str | None = None,
) -> Documents:
    """The documents of text files or of a data set of the Hub, streamed in their order.

    Memory holds one document at a time (of parquet, one row group), whatever the files' size.

    Args:
        paths: one or several of
            NAME.txt: UTF-8, a blank line between two documents;
            NAME.jsonl: one JSON object a line;
            NAME.parquet: one row a document (needs pyarrow);
            hub:NAME or hub:NAME:CONFIG: the training part of a data set of the Hugging Face Hub
            (needs datasets).
            .txt and .jsonl may be packed by gzip or xz, and then end in .gz or .xz.
        text: the field or column of .jsonl, .parquet and the Hub that holds the text.
        whole_files: a .txt file is one document, exactly as it is.
        part: only documents whose `part_of` it is; default all.

    Returns:
        documents without the blank lines around them; those without any text are left out.

    Raises:
        UserError: no path, no such file, another ending, another part; while it is read: a file
            that is damaged or not UTF-8, a line or row without such a text, a package that is not
            installed.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    names = tuple(str(path) for path in listed)
    if not names:
        raise UserError("no file: expected at least one text to read")
    if part is not None and part not in PARTS:
        raise unknown("part", part, PARTS)
    files = [name for name in names if not name.startswith(_HUB)]
    for name in files:
        if not Path(name).is_file():
            what = "is a folder" if Path(name).is_dir() else "does not exist"
            raise UserError(f"{name} {what}: expected a text file; name the files themselves")
        _kind(name)
    size = sum(Path(name).stat().st_size for name in files) if files == list(names) else None
    return Documents(names, text, whole_files, part, size)


def _kind(path: str) -> str:
    kind = Path(path.removesuffix(".gz").removesuffix(".xz")).suffix
    if kind not in _KINDS or (kind == ".parquet" and not path.endswith(kind)):
        raise UserError(
            f"{path}: expected a name that ends in .txt, .jsonl (perhaps with .gz or .xz after it) "
            "or .parquet; rename it"
        )
    return kind


def _unpacked(raw: IO[bytes]) -> Any:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    return lzma.LZMAFile(raw) if start == b"\xfd7zXZ\0" else raw


def _paragraphs(path: str, lines: Iterable[str]) -> Iterator[str]:
    """What stands between blank lines."""
    kept: list[str] = []
    for line in lines:
        if "\0" in line:
            raise UserError(f"{path} is binary (it holds a NUL byte): expected text in UTF-8")
        if line.strip():
            kept.append(line)
        elif kept:
            yield "".join(kept).rstrip("\r\n")
            kept = []
    yield "".join(kept).rstrip("\r\n")


def _json_lines(path: str, lines: Iterable[str], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}): expected one object a line") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is a JSON {type(record).__name__}: expected an object")
        if name not in record:
            raise _no_field(where, name, list(record))
        yield _string(record[name], where, name)


def _hub(path: str, name: str) -> Iterator[str]:
    datasets = _optional("datasets", f"{path} needs")
    source, _, config = path.removeprefix(_HUB).partition(":")
    try:
        rows = datasets.load_dataset(source, config or None, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            if name not in row:
                raise _no_field(path, name, list(row))
            yield _string(row[name], f"{path}, row {number}", name)
    except UserError:
        raise
    except Exception as error:  # the library lets through whatever the net and the files raise
        raise UserError(
            f"{path} cannot be streamed ({_first_line(error)}): check the name and the connection, "
            "or pass files"
        ) from error


def _string(value: Any, where: str, name: str) -> str:
    if value is None:
        return ""  # a gap in a table is a document without text
    if not isinstance(value, str):
        raise UserError(
            f"{where}: field {name!r} is a {type(value).__name__}, expected a text; name another"
        )
    return value


def _no_field(where: str, name: str, names: Sequence[str]) -> UserError:
    return UserError(f"{where} has no field {name!r}: name one of {', '.join(map(str, names))}")


# ----------------------------------------------------------------------------------- tokenizers


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
        return _from_file(path)
    if (path / "tokenizer.json").is_file():
        return _from_file(path / "tokenizer.json")
    vocabulary = _first_file(path, "vocab.json", "encoder.json")
    merges = _first_file(path, "merges.txt", "vocab.bpe")
    if vocabulary is not None and merges is not None:
        try:
            model = models.BPE.from_file(str(vocabulary), str(merges))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(
                f"{path}: {vocabulary.name} and {merges.name} are no BPE ({_first_line(error)}); "
                "copy or download them again"
            ) from error
        return _byte_level(model)
    transformers = _optional("transformers", f"tokenizer {str(name_or_folder)!r} needs")
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(name_or_folder))
        if len(found) <= len(found.all_special_tokens):
            raise FileNotFoundError("its files are missing")  # Transformers makes up an empty one
        return found.backend_tokenizer
    except Exception as error:  # the library lets through whatever the net and the files raise
        raise UserError(
            f"no tokenizer {str(name_or_folder)!r} ({_first_line(error)}): expected a "
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


def _from_file(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"no file {path}: expected a tokenizer.json; check the path")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            f"{path} is no tokenizer ({_first_line(error)}): expected a tokenizer.json, as "
            "tokenizers writes it"
        ) from error


def _first_file(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


# ----------------------------------------------------------------------------------- tokenising


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
    tokenizer = _from_file(folder / "tokenizer.json")
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
        raw = _utf8(document, f"document {number}")
        digest.update(len(raw).to_bytes(8, "little") + raw)
        size += len(raw)
    return size


def _encode(tokenizer: Tokenizer, batch: list[str], first: int) -> Iterator[list[int]]:
    try:
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    except Exception as error:  # the library raises nothing more specific
        raise UserError(
            f"documents {first + 1} to {first + len(batch)}: the tokenizer cannot encode them "
            f"({_first_line(error)}); use one that knows their symbols"
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


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds {text[error.start]!r}, half of a surrogate pair: expected whole "
            "characters; mend the text"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _optional(name: str, who: str) -> Any:
    """A package that only some inputs need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(
            f"{who} the package {package}: pip install 'specmask[pretrained]'"
        ) from None
