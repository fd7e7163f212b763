from __future__ import annotations

import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from specmask.data.files import read_text
from specmask.errors import UserError

TEXT = "one line\r\nzwei Zeilen, größer\n\n😀 no end of line"


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda raw: raw,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zip": lambda raw: zipped(("folder/", b""), ("folder/text", raw), ("other", b"no")),
}


@pytest.mark.parametrize("name", ["text", "text.txt", "text.gz"])
@pytest.mark.parametrize("packer", PACKERS)
def test_text_is_read_exactly_whatever_the_file_is_called(
    packer: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(PACKERS[packer](TEXT.encode()))
    assert read_text(path) == TEXT
    assert read_text(str(path)) == TEXT


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path) == "abc"


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "only a byte-order mark": (b"\xef\xbb\xbf", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "NUL": (b"abc\0", "is binary .a NUL byte at offset 3"),
    "UTF-16": ("abc".encode("utf-16"), "is binary"),
    "zipped NUL": (zipped(("a", b"\0")), "is binary"),
    "Latin-1": ("größer".encode("latin1"), "is not UTF-8 .byte 0xf6 at offset 2"),
    "cut gzip": (gzip.compress(b"abc" * 99)[:-12], "as gzip"),
    "damaged gzip": (gzip.compress(b"abc" * 99)[:-8] + b"8 bytes!", "as gzip"),
    "not quite gzip": (b"\x1f\x8bnothing", "as gzip"),
    "damaged deflate": (gzip.compress(b"abc")[:10] + b"\xff" * 20, "as gzip"),
    "cut xz": (lzma.compress(b"abc" * 99)[:-20], "as xz"),
    "damaged xz": (b"\xfd7zXZ\0" + b"a" * 40, "as xz"),
    "cut zip": (zipped(("a", b"abc" * 99))[:-10], "as zip"),
    "zip without a file": (zipped(), "as zip: it holds no file"),
    "zip of a folder": (zipped(("folder/", b"")), "as zip: it holds no file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_text_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    raw, message = BAD[kind]
    path = tmp_path / "text"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_text(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    raw = bytearray(zipped(("a", b"abc")))
    # The lowest bit of the general purpose flags, in the local and in the central header.
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path = tmp_path / "text.zip"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"as zip: .*encrypted"):
        read_text(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abc")
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        read_text(tmp_path / "file" / "below")
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "file").chmod(0)
        with pytest.raises(UserError, match="cannot be read: Permission"):
            read_text(tmp_path / "file")
