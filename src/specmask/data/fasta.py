"""FASTA: protein sequences as a stream, in and out, and templates with free positions."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from specmask.errors import UserError
from specmask.errors import unknown as not_among

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty standard residues."""

FASTA = (".fa", ".fasta", ".faa", ".fas")
"""How the name of a FASTA file ends."""
FREE = "-X_?"
"""What marks a free position in a template."""

_POLICIES = ("error", "drop", "mask")
_STOP = b"*"
_GAPS = b"-."
_WIDTH = 60
_CHUNK = 1 << 20
_LONGEST = 1 << 16
"""Positions of a template at most: nearly twice the longest protein known."""

_BLANK = b" \t\r\n"
_UPPER = bytes.maketrans(string.ascii_lowercase.encode(), string.ascii_uppercase.encode())
_LETTERS = string.ascii_uppercase.encode() + _STOP
_DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)


class Record(NamedTuple):
    """One sequence of a FASTA file.

    name: the first word of its header. description: the rest of it. sequence: upper-case residues.
    line: of the header, from 1.
    """

    name: str
    description: str
    sequence: str
    line: int


class FastaReader(Iterator[Record]):
    """The records of a file, one after another; see `read_fasta`.

    dropped: records left out so far for an unknown residue.
    """

    def __init__(self, path: str | Path, alphabet: str, unknown: str, mask: str) -> None:
        self.dropped = 0
        self._path, self._alphabet, self._unknown = path, alphabet, unknown
        self._known = alphabet.encode()
        others = _LETTERS.translate(None, self._known)
        self._masked = bytes.maketrans(others, mask.encode() * len(others))
        entries = _entries(path)
        # A file that is no FASTA is refused here, before anyone asks for a record.
        self._entries = chain([next(entries)], entries)

    def __next__(self) -> Record:
        for line, text in self._entries:
            record = self._record(line, text)
            if record is not None:
                return record
            self.dropped += 1
        raise StopIteration

    def _record(self, line: int, text: bytes) -> Record | None:
        name, description, body = _parts(self._path, line, text)
        sequence = body.translate(_UPPER, _BLANK).removesuffix(_STOP)
        if not sequence:
            raise UserError(
                f"{self._path}: record {name!r} at line {line} has no sequence: expected residues "
                "below its name; add them or remove the record"
            )
        if sequence.translate(None, self._known):
            strange = sequence.translate(None, self._known + _LETTERS)
            if strange or self._unknown == "error":
                raise self._refused(name, line, body, strange[:1])
            if self._unknown == "drop":
                return None
            sequence = sequence.translate(self._masked)
        return Record(name, description, sequence.decode(), line)

    def _refused(self, name: str, line: int, body: bytes, strange: bytes) -> UserError:
        """The error for `strange`, or for the first residue outside the alphabet."""
        upper = body.translate(_UPPER)
        symbol = strange or upper.translate(None, self._known + _BLANK)[:1]
        start = upper.index(symbol)
        line += 1 + body.count(b"\n", 0, start)
        position = len(body[:start].translate(None, _BLANK)) + 1
        shown = body[start : start + 4].decode("utf-8", "replace")[:1]
        where = f"{self._path}, line {line}: record {name!r} has {shown!r} at position {position}"
        if not strange:
            return UserError(
                f"{where}: expected residues of {self._alphabet}; replace it, or read with "
                "unknown='drop' (without such records) or unknown='mask' (with it left free)"
            )
        if strange in _GAPS:
            return UserError(
                f"{where}, a gap: expected plain sequences; remove the gaps of the alignment, or "
                "read the file as templates if they mark free positions"
            )
        return UserError(f"{where}: expected residues of {self._alphabet}; correct the file")


def read_fasta(
    path: str | Path, alphabet: str = AMINO_ACIDS, unknown: str = "error", mask: str = "X"
) -> FastaReader:
    """Stream the records of a FASTA file, in flat memory.

    A gzip or xz file is known by its first bytes, whatever its name, and unpacked on the way. Lower
    case is read as upper case, blanks inside a sequence and one `*` (stop) at its end are dropped.

    Args:
        path: of the file, with headers in UTF-8.
        alphabet: the residues, upper case.
        unknown: what to do about other letters, and about a `*` before the end: "error" refuses
            the file, "drop" leaves out the record and counts it, "mask" puts `mask` there. Gaps,
            digits and signs are no residues and refused in every case.
        mask: the symbol of a free position, not in `alphabet`.

    Returns:
        an iterator of `Record`; its `dropped` counts the records left out.

    Raises:
        UserError: at once, other options than these, and a file that cannot be read, is empty or is
            not FASTA; on the way, a damaged file, and a record without a name or sequence or with
            a residue that is refused. The message names record and line.
    """
    _check_alphabet(alphabet)
    if unknown not in _POLICIES:
        raise not_among("policy", unknown, _POLICIES)
    if len(mask) != 1 or not mask.isascii() or not mask.isprintable() or mask in alphabet + " >":
        raise UserError(
            f"mask={mask!r}: expected one ASCII symbol that is not among the residues {alphabet}"
        )
    return FastaReader(path, alphabet, unknown, mask)


def write_fasta(
    path: str | Path,
    records: Iterable[tuple[str, str, Mapping[str, object]]],
    overwrite: bool = False,
) -> int:
    """Write a FASTA file, whole or not at all.

    Args:
        path: of the file.
        records: (name, sequence, facts) of each; facts such as passes and settings go into the
            header, `>name key=value …`. Read as they come, so a generator will do.
        overwrite: replace a file that is there.

    Returns:
        records written.

    Raises:
        UserError: the file is there already or cannot be written; no record; a name, key or value
            that is empty or holds a blank, a sequence that is empty or holds other signs than
            letters, `*` and the marks of free positions. The file is then as it was.
    """
    target = Path(path).resolve()  # a link stays a link
    if target.exists() and not (overwrite and target.is_file()):
        raise UserError(
            f"{path} exists: expected a new file; pass overwrite=True or choose another name"
            if target.is_file()
            else f"{path} is no file: expected the name of a FASTA file; choose another name"
        )
    neighbour = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    written = 0
    try:
        file = neighbour.open("w", encoding="utf-8", newline="\n")
        try:
            with file:
                for name, sequence, facts in records:
                    file.write(_entry(name, sequence, facts))
                    written += 1
                file.flush()
                os.fsync(file.fileno())
            if not written:
                raise UserError(f"no record for {path}: expected at least one")
            os.replace(neighbour, target)
        finally:
            neighbour.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}; try another folder"
        ) from error
    return written


def parse_template(
    text: str, alphabet: str = AMINO_ACIDS, where: str = "template"
) -> list[str | None]:
    """The fixed residue of each position, or None where it is free.

    Any of `-`, `X`, `_` and `?` marks a free position, even if `alphabet` has it. {n} repeats the
    symbol before it. Lower case is read as upper case, blanks and one `*` at the end are dropped.

    >>> parse_template("EV-{2}W")
    ['E', 'V', None, None, 'W']

    Args:
        text: the template. alphabet: the residues, upper case.
        where: names the template in errors, e.g. the record.

    Raises:
        UserError: an impossible residue, with its position; a {n} that repeats nothing, or not 1 to
            65536 times; no position, or more than 65536.
    """
    _check_alphabet(alphabet)
    template: list[str | None] = []
    for run in _RUN.finditer("".join(text.split()).removesuffix("*")):
        symbol, times = run["symbol"].upper(), run["times"]
        here = f"{where}: {run[0][:12]!r} at position {len(template) + 1}"
        if symbol in "{}":
            raise UserError(
                f"{here}: expected a symbol before {{n}} and a whole number in it, as in -{{10}}"
            )
        if symbol not in FREE and symbol not in alphabet:
            raise UserError(
                f"{here}: expected residues of {alphabet}, or one of {' '.join(FREE)} for a free "
                "position"
            )
        count = int(times or 1)
        if not 1 <= count <= _LONGEST - len(template):
            raise UserError(f"{here}: expected 1 to {_LONGEST} positions in all; shorten it")
        template += [None if symbol in FREE else symbol] * count
    if not template:
        raise UserError(
            f"{where} is empty: expected residues and free positions, as in EVQL-{{10}}W"
        )
    return template


def read_templates(
    path: str | Path, alphabet: str = AMINO_ACIDS
) -> list[tuple[str, list[str | None]]]:
    """(name, template) of each record of a FASTA file; see `parse_template` and `read_fasta`.

    Raises:
        UserError: the file cannot be read or is no FASTA; a template that cannot be parsed. The
            message names record and line.
    """
    templates = []
    for line, text in _entries(path):
        name, _, body = _parts(path, line, text)
        where = f"{path}: template {name!r} at line {line}"
        templates.append((name, parse_template(body.decode("utf-8", "replace"), alphabet, where)))
    return templates


_RUN = re.compile(r"(?P<symbol>.)(?:\{(?P<times>[0-9]{1,6})\})?")
_WORD = re.compile(r"[^\s>=]\S*")
_KEY = re.compile(r"[^\s=]+")
_SEQUENCE = re.compile(r"[A-Za-z*?_-]+")


def _entry(name: str, sequence: str, facts: Mapping[str, object]) -> str:
    if not _WORD.fullmatch(name):
        raise UserError(f"record name {name!r}: expected a word without blanks; rename it")
    if not _SEQUENCE.fullmatch(sequence):
        raise UserError(
            f"record {name!r} has the sequence {sequence[:20]!r}: expected letters, *, and -, _ or "
            "? for free positions"
        )
    words = [name]
    for key, value in facts.items():
        if not _KEY.fullmatch(key) or not re.fullmatch(r"\S+", str(value)):
            raise UserError(
                f"record {name!r} has the fact {key!r}: {str(value)!r}: expected a key and a value "
                "without blanks, to write key=value"
            )
        words.append(f"{key}={value}")
    lines = [sequence[k : k + _WIDTH] for k in range(0, len(sequence), _WIDTH)]
    return ">" + " ".join(words) + "\n" + "\n".join(lines) + "\n"


def _check_alphabet(alphabet: str) -> None:
    upper = alphabet.isascii() and alphabet.isalpha() and alphabet.isupper()
    if not upper or len(set(alphabet)) < len(alphabet):
        raise UserError(f"alphabet={alphabet!r}: expected distinct letters A to Z, one per residue")


def _parts(path: str | Path, line: int, text: bytes) -> tuple[str, str, bytes]:
    """Name, description and body of an entry."""
    head, _, body = text.partition(b"\n")
    try:
        title = head.decode().rstrip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {line}: the header is not UTF-8 (byte {head[error.start]:#04x}): "
            "convert the file, e.g. iconv -f latin1 -t utf-8"
        ) from None
    words = title.split(None, 1)
    if not words or title[0].isspace():
        raise UserError(
            f"{path}, line {line}: the header {f'>{title}'[:40]!r} has no name: expected >name; "
            "name the record"
        )
    return words[0], words[1] if len(words) > 1 else "", body


def _entries(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(line of the header, text from after its > up to the next) of each record."""
    # With a line end before it, the file is cut into records by "\n>" alone. The first piece is
    # what stands before the first record, and a piece may end in a later chunk.
    line, rest = 0, b"\n"
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n>")
        for text in whole:
            if line:
                yield line, text
            else:
                _check_blank(path, text)
            line += text.count(b"\n") + 1
        if not line:
            _check_blank(path, rest)
    if not line:
        raise UserError(f"{path} is empty: expected FASTA, a >name line and then its residues")
    yield line, rest


def _check_blank(path: str | Path, text: bytes) -> None:
    if found := text.strip():
        line = text.count(b"\n", 0, text.index(found[:1]))
        shown = found.splitlines()[0][:40].decode("utf-8", "replace")
        raise UserError(
            f"{path}, line {line}: {shown!r} before the first >: expected FASTA, a >name line and "
            "then its residues"
        )


def _chunks(path: str | Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked and without a byte-order mark, a megabyte at a time."""
    with _open(path) as file:
        kind, stream = _unpacked(file)
        done = 0
        while chunk := _read(path, kind, stream):
            if 0 in chunk:
                raise UserError(
                    f"{path} is binary (a NUL byte at offset {done + chunk.index(0)}): expected "
                    "FASTA, plain or packed as gzip or xz"
                )
            yield chunk if done else chunk.removeprefix(b"\xef\xbb\xbf")
            done += len(chunk)


def _open(path: str | Path) -> BufferedReader:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise UserError(f"no file {path}: expected a FASTA file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: expected a FASTA file; name a file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the file") from None


def _unpacked(file: BufferedReader) -> tuple[str, IO[bytes]]:
    """What is done to read the file, for errors, and the stream to read."""
    start = file.peek(6)
    if start.startswith(b"\x1f\x8b"):
        return "unpacked as gzip", gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if start.startswith(b"\xfd7zXZ\0"):
        return "unpacked as xz", lzma.LZMAFile(file)
    return "read", file


def _read(path: str | Path, kind: str, stream: IO[bytes]) -> bytes:
    try:
        return stream.read(_CHUNK)
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be {kind}: {error}; copy or download it again") from None
