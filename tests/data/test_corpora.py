from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from specmask.data import corpora
from specmask.data.corpora import TEXT8_START, load_corpus, splits, text8
from specmask.data.tokenizers import alphabet_of, decode
from specmask.errors import UserError

SMALL = TEXT8_START + " against early working class radicals"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zip file that stands for the one on the net; write to it what the net should hold."""
    path = tmp_path / "net" / "text8.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text8", SMALL)
    monkeypatch.setattr(corpora, "TEXT8_URL", path.as_uri())
    monkeypatch.setattr(corpora, "TEXT8_LENGTH", len(SMALL))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return path


# --------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("count", "parts"),
    [(100_000_000, (90_000_000, 5_000_000, 5_000_000)), (101, (90, 5, 6)), (1, (0, 0, 1))],
)
def test_splits_are_90_5_5_and_contiguous(count: int, parts: tuple[int, int, int]) -> None:
    ids = np.zeros(count, dtype=np.uint8)
    cut = splits(ids)
    assert list(cut) == ["train", "validation", "test"]
    assert tuple(len(part) for part in cut.values()) == parts
    assert all(np.shares_memory(part, ids) for part in cut.values() if len(part))


def test_splits_keep_the_order() -> None:
    ids = np.arange(40, dtype=np.uint8)
    assert np.concatenate(list(splits(ids).values())).tolist() == list(range(40))
    assert splits(ids)["validation"].tolist() == [36, 37]


# ---------------------------------------------------------------------------------- load_corpus


def test_a_text_like_text8(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a cab " * 10 + "\n")
    corpus = load_corpus(path, "text8")
    assert corpus.name == "mine.txt"
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert corpus.tokenizer.get_vocab_size() == 27
    assert corpus.train.dtype == np.uint8
    assert corpus.train.tolist() == [1, 0, 3, 1, 2, 0] * 9
    assert decode(corpus.tokenizer, corpus.validation) == "a c"
    assert decode(corpus.tokenizer, corpus.test) == "ab "


def test_the_digest_is_that_of_the_unpacked_text(server: Path) -> None:
    assert load_corpus(server, "text8").sha256 == hashlib.sha256(SMALL.encode()).hexdigest()


def test_characters_are_numbered_by_code_point(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("é\nBab😀" * 20, encoding="utf-8")
    corpus = load_corpus(path, "characters")
    assert alphabet_of(corpus.tokenizer) == "\nBabé😀"
    assert corpus.train.tolist() == [4, 0, 1, 2, 3, 5] * 18


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (512, np.uint16)])
def test_as_many_as_512_characters(count: int, dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(chr(0x4E00 + k) for k in range(count)), encoding="utf-8")
    assert load_corpus(path, "characters").train.dtype == dtype


def test_more_than_512_characters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(chr(0x4E00 + k) for k in range(513)), encoding="utf-8")
    with pytest.raises(UserError, match=r"has 513 distinct symbols, .* at most 512: replace"):
        load_corpus(path, "characters")


def test_other_symbols_are_refused_for_text8(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abc\nabC\n")
    with pytest.raises(UserError, match=r"text: symbol '\\n' at offset 3"):
        load_corpus(path, "text8")
    with pytest.raises(UserError, match=r"text: symbol '\\n' at offset 3"):
        text8(path)


def test_unknown_kinds_and_missing_paths_are_refused() -> None:
    with pytest.raises(UserError, match=r"corpus kind 'character'.* Did you mean 'characters'"):
        load_corpus("nowhere", "character")
    with pytest.raises(UserError, match="no file nowhere"):
        load_corpus("nowhere", "text8")
    with pytest.raises(UserError, match="needs the path"):
        load_corpus(None, "characters")


# ---------------------------------------------------------------------------------------- text8


def test_a_local_file_needs_only_the_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("some other text\n")
    assert text8(path) == "some other text"


def test_a_digest_is_verified(server: Path) -> None:
    digest = hashlib.sha256(SMALL.encode()).hexdigest()
    assert text8(server, sha256=digest) == text8(server, sha256=digest.upper()) == SMALL
    with pytest.raises(UserError, match=f"has sha256 {digest}, expected 0000"):
        text8(server, sha256="0" * 64)
    with pytest.raises(UserError, match=f"has sha256 {digest}, expected 0000"):
        text8(sha256="0" * 64)


def test_a_download_is_kept(server: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    cache = tmp_path / "deep" / "cache"
    size = server.stat().st_size
    assert text8(cache_dir=cache, progress=lambda done, total: seen.append((done, total))) == SMALL
    assert seen == [(size, size)]
    assert [file.name for file in cache.iterdir()] == ["text8.zip"]
    server.unlink()
    assert text8(cache_dir=cache) == SMALL


def test_the_default_cache_is_in_the_home_folder(server: Path, tmp_path: Path) -> None:
    corpus = load_corpus(None, "text8")
    assert corpus.name == "text8"
    assert decode(corpus.tokenizer, corpus.train) == SMALL[: len(SMALL) * 9 // 10]
    assert (tmp_path / "home" / "specmask" / "text8.zip").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>pay for the wireless</html>", "is not text8: 33 characters that start with '<h"),
        (SMALL[:-1].encode(), "is not text8"),
        (SMALL.replace("abuse", "ABUSE").encode(), "is not text8"),
        (None, "No such file"),
    ],
)
def test_a_failed_download_leaves_nothing(
    content: bytes | None, message: str, server: Path, tmp_path: Path
) -> None:
    if content is None:
        server.unlink()
    else:
        server.write_bytes(content)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=f"could not fetch .*{message}.*pass the file's path"):
        text8(cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_an_interrupted_download_leaves_nothing(server: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text8(cache_dir=tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_refused(server: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not fetch"):
        text8(cache_dir=tmp_path / "file" / "cache")


def test_a_damaged_cache_is_noticed(server: Path, tmp_path: Path) -> None:
    text8(cache_dir=tmp_path / "cache")
    (tmp_path / "cache" / "text8.zip").write_bytes(b" anarchism")
    with pytest.raises(UserError, match=r"text8.zip .delete it and try again. is not text8"):
        text8(cache_dir=tmp_path / "cache")
