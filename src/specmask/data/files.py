"""Text files, compressed or not."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from specmask.errors import UserError


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, exactly: line ends are kept, only a byte-order mark is dropped.

    A gzip, xz or zip file is known by its first bytes, whatever its name, and unpacked; of a zip
    the first file counts.

    Raises:
        UserError: there is no such file, it is a folder, it cannot be read or unpacked, it is
            empty, or it is not text.
    """
    raw = _unpack(path, _read(path))
    if not raw:
        raise UserError(f"{path} is empty: expected a text file")
    if b"\0" in raw:
        raise UserError(
            f"{path} is binary (a NUL byte at offset {raw.index(0)}): expected text in UTF-8"
        )
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {raw[error.start]:#04x} at offset {error.start}): "
            "expected a text file; convert it, e.g. iconv -f latin1 -t utf-8"
        ) from None
    text = text.removeprefix("\ufeff")
    if not text:
        raise UserError(f"{path} is empty: expected a text file")
    return text


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}: expected a text file; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: expected a text file; name a file in it") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; check the file"
        ) from None


def _unpack(path: str | Path, raw: bytes) -> bytes:
    for magic, (kind, unpack) in _FORMATS.items():
        if raw.startswith(magic):
            try:
                return unpack(raw)
            except _DAMAGE as error:
                raise UserError(
                    f"{path} cannot be unpacked as {kind}: {error}; copy or download it again"
                ) from None
    return raw


def _unzip(raw: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        names = [info for info in archive.infolist() if not info.is_dir()]
        if not names:
            raise zipfile.BadZipFile("it holds no file")
        return archive.read(names[0])


_FORMATS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"\xfd7zXZ\0": ("xz", lzma.decompress),
    b"PK\x03\x04": ("zip", _unzip),
    b"PK\x05\x06": ("zip", _unzip),  # an archive without a member
}

# zipfile raises RuntimeError for an encrypted member or an exotic compression method.
_DAMAGE = (OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
