"""Documents of text files and data sets, streamed, and the part each belongs to."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from specmask.checks import optional_package
from specmask.errors import UserError, first_line, unknown

PARTS = ("train", "validation", "test")
_HUB = "hub:"
_KINDS = (".txt", ".jsonl", ".parquet")


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
    digest = hashlib.sha256(utf8(document, "a document")).digest()
    place = int.from_bytes(digest[:8], "big") / (1 << 64)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


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
        parquet = optional_package("pyarrow.parquet", f"{path} needs")
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
        if not os.path.isfile(name):  # Path's own raises where a name is too long to be one
            what = "is a folder" if os.path.isdir(name) else "does not exist"
            raise UserError(f"{name[:200]} {what}: expected a text file; name the files themselves")
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
    datasets = optional_package("datasets", f"{path} needs")
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
            f"{path} cannot be streamed ({first_line(error)}): check the name and the connection, "
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


def utf8(text: str, where: str) -> bytes:
    """A text in UTF-8; `where` names it if it holds half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds {text[error.start]!r}, half of a surrogate pair: expected whole "
            "characters; mend the text"
        ) from None
