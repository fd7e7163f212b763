from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from specmask.data import token_ids
from specmask.data.documents import PARTS, Documents, documents, part_of
from specmask.data.subwords import load_tokenizer, train_bpe
from specmask.data.token_ids import open_ids, tokenize_corpus
from specmask.errors import UserError

TEXT = "the cat sat on the mat\nthe cat ate\n\nthe dog sat on the log\n\n\n  \nthe end\n"
TEXTS = ["the cat sat on the mat\nthe cat ate", "the dog sat on the log", "the end"]


@pytest.fixture
def words() -> Tokenizer:
    """Known ids: a is 1, b is 2, c is 3; end of text is 0; anything else is no token at all."""
    tokenizer = Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2, "c": 3}))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def bpe(text_file: Path) -> Tokenizer:
    return train_bpe(text_file, 280)


# ----------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz"])
def test_blank_lines_part_documents(tmp_path: Path, name: str) -> None:
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(name[-3:], bytes)
    path = tmp_path / name
    path.write_bytes(pack(TEXT.encode("utf-8-sig")))
    found = documents(path)
    assert list(found) == TEXTS
    assert list(found) == TEXTS  # as often as you like
    assert found.done == found.size == path.stat().st_size


def test_a_file_may_be_one_document(text_file: Path) -> None:
    assert list(documents([text_file, text_file], whole_files=True)) == [TEXT, TEXT]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(name[-3:], bytes)
    lines = [json.dumps({"body": text, "n": 1}) for text in [TEXTS[0], "", *TEXTS[1:]]]
    (tmp_path / name).write_bytes(pack(("\n".join(lines) + "\n\n").encode()))
    assert list(documents(tmp_path / name, text="body")) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [TEXTS[0], None, *TEXTS[1:]]
    parquet.write_table(arrow.table({"body": rows, "n": range(4)}), path, row_group_size=2)
    found = documents(path, text="body")
    assert list(found) == TEXTS
    assert found.done == path.stat().st_size
    with pytest.raises(UserError, match=r"no field 'text': name one of body, n"):
        list(documents(path))
    with pytest.raises(UserError, match="field 'n' is a int, expected a text"):
        list(documents(path, text="n"))
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match="is no parquet file"):
        list(documents(path))


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None, split: str, streaming: bool) -> Iterator[dict]:
        assert (name, config, split, streaming) == ("me/mine", "small", "train", True)
        return iter([{"text": text} for text in TEXTS])

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(load_dataset=load))
    found = documents("hub:me/mine:small")
    assert list(found) == TEXTS
    assert found.size is None
    with pytest.raises(UserError, match="no field 'body'"):
        list(documents("hub:me/mine:small", text="body"))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(load_dataset=load))
    with pytest.raises(UserError, match=r"cannot be streamed \(no route to host\)"):
        list(documents("hub:me/mine"))


def test_packages_are_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for call in (
        lambda: list(documents("hub:name")),
        lambda: list(documents(tmp_path / "a.parquet")),
        lambda: load_tokenizer("gpt2"),
    ):
        with pytest.raises(UserError, match=r"pip install 'specmask\[pretrained\]'"):
            call()


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.csv", b"a", "expected a name that ends in .txt, .jsonl"),
        ("a.parquet.gz", b"a", "expected a name that ends in"),
        ("a.txt", b"caf\xe9", "is not UTF-8"),
        ("a.txt", b"a\0b", "is binary"),
        ("a.txt.gz", gzip.compress(b"a" * 1000, mtime=0)[:-12], "cannot be read"),
        ("a.txt.xz", lzma.compress(b"a" * 1000)[:-12], "cannot be read"),
        ("a.jsonl", b"{}\n", "line 1 has no field 'text'"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', "line 3 is a JSON list"),
        ("a.jsonl", b"a\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' is a int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # no bytes in a test's name
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, contents: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises(UserError, match=message):
        list(documents(path))


def test_paths_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        documents(tmp_path / "a.txt")
    with pytest.raises(UserError, match="is a folder"):
        documents(tmp_path)
    with pytest.raises(UserError, match="no file"):
        documents([])


# --------------------------------------------------------------------------------------- parts


def test_each_document_is_in_one_part(tmp_path: Path) -> None:
    texts = [f"document {k % 900}" for k in range(1000)]  # with some that come twice
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(texts))
    found = {part: list(documents(path, part=part)) for part in PARTS}
    assert sorted(text for part in found.values() for text in part) == sorted(texts)
    sets = [set(part) for part in found.values()]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]  # noqa: PT018
    assert all(30 <= len(found[part]) <= 75 for part in ("validation", "test"))


def test_shares_of_the_parts() -> None:
    assert part_of("a", 1.0, 0.0) == "validation"
    assert part_of("a", 0.0, 1.0) == "test"
    assert part_of("a", 0.0, 0.0) == "train"
    with pytest.raises(UserError, match="together at most 1"):
        part_of("a", 0.6, 0.6)
    with pytest.raises(UserError, match="unknown part 'tests'"):
        documents("hub:a", part="tests")


# ---------------------------------------------------------------------------------- tokenizers


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40))
def test_any_text_survives_a_round_trip(text: str) -> None:
    tokenizer = _trained()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def _trained(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006 (trained once)
    if not cache:
        cache.append(train_bpe(_Texts(), 300))
    return cache[0]


class _Texts(Documents):
    """Documents that lie in no file."""

    def __init__(self) -> None:
        super().__init__((), "text", False, None, None)

    def __iter__(self) -> Iterator[str]:
        return iter(TEXTS)


def test_training_is_deterministic(text_file: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    first = train_bpe(text_file, 290, lambda done, total: seen.append((done, total)))
    assert first.to_str() == train_bpe([text_file], 290).to_str()
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert first.token_to_id("<|endoftext|>") == 0
    assert 257 < first.get_vocab_size() <= 290
    assert first.encode(" the cat").tokens == ["Ġthe", "Ġcat"]


def test_training_needs_room_and_text(tmp_path: Path, text_file: Path) -> None:
    with pytest.raises(UserError, match="vocab_size=256: expected at least 257"):
        train_bpe(text_file, 256)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no text"):
        train_bpe(tmp_path / "empty.txt", 300)


def test_loading_what_was_saved(tmp_path: Path, bpe: Tokenizer) -> None:
    bpe.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert load_tokenizer(path).to_str() == bpe.to_str()


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_loading_two_files_like_gpt2s(
    tmp_path: Path, bpe: Tokenizer, names: tuple[str, str]
) -> None:
    bpe.model.save(str(tmp_path))
    (tmp_path / "vocab.json").rename(tmp_path / names[0])
    (tmp_path / "merges.txt").rename(tmp_path / names[1])
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT).ids == bpe.encode(TEXT).ids
    assert loaded.encode("<|endoftext|>").ids == [0]
    (tmp_path / names[0]).write_text("{")
    with pytest.raises(UserError, match="are no BPE"):
        load_tokenizer(tmp_path)


def test_loading_by_name(monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer) -> None:
    class Wrapped(SimpleNamespace):
        def __len__(self) -> int:
            return self.size

    def load(name: str) -> Wrapped:
        if name == "absent":
            raise OSError("we cannot connect\nand so on")
        size = 0 if name == "empty" else 280
        return Wrapped(backend_tokenizer=bpe, size=size, all_special_tokens=[])

    auto = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=load))
    monkeypatch.setattr(importlib, "import_module", lambda name: auto)
    assert load_tokenizer("me/mine") is bpe
    with pytest.raises(UserError, match=r"no tokenizer 'absent' \(we cannot connect\)"):
        load_tokenizer("absent")
    with pytest.raises(UserError, match="its files are missing"):
        load_tokenizer("empty")


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------- tokenising


def test_packed_documents_end_with_the_end_of_text(tmp_path: Path, words: Tokenizer) -> None:
    out = tokenize_corpus(["a b", "c", "", "b b b"], words, tmp_path / "out")
    assert out.ids.tolist() == [1, 2, 0, 3, 0, 2, 2, 2, 0]
    assert out.ids.dtype == np.uint16
    assert isinstance(out.ids, np.memmap)
    assert out.offsets is None
    raw = (tmp_path / "out" / "ids.bin").read_bytes()
    assert raw == bytes([1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0])
    assert out.meta["ids_sha256"] == hashlib.sha256(raw).hexdigest()
    assert (out.meta["documents"], out.meta["rows"], out.meta["tokens"]) == (4, 3, 9)
    assert out.tokenizer.encode("a b").ids == [1, 2]


def test_rows_have_offsets(tmp_path: Path, words: Tokenizer) -> None:
    out = tokenize_corpus(["a b", "c", "", "b b b"], words, tmp_path, mode="rows")
    assert out.ids.tolist() == [1, 2, 3, 2, 2, 2]
    assert out.offsets is not None
    assert out.offsets.tolist() == [0, 2, 3, 6]


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 65_536}))
    tokenizer.pre_tokenizer = Whitespace()
    out = tokenize_corpus(["b a"], tokenizer, tmp_path, mode="rows")
    assert out.ids.dtype == np.uint32
    assert out.ids.tolist() == [65_536, 0]


def test_a_text_cannot_forge_the_end_of_text(tmp_path: Path, bpe: Tokenizer) -> None:
    text = "the cat<|endoftext|>sat"
    out = tokenize_corpus([text, "the end"], bpe, tmp_path)
    assert np.flatnonzero(out.ids == 0).tolist()[-1] == len(out.ids) - 1
    assert int((out.ids == 0).sum()) == 2
    first = out.ids[: int((out.ids == 0).argmax())]
    assert bpe.decode(first.tolist(), skip_special_tokens=False) == text


def test_truncation_and_padding_are_left_off(tmp_path: Path, words: Tokenizer) -> None:
    words.enable_truncation(1)
    words.enable_padding(length=8)
    assert tokenize_corpus(["a b c"], words, tmp_path).ids.tolist() == [1, 2, 3, 0]
    assert words.truncation is not None  # the caller's is left as it was


def test_ids_of_files_decode_to_the_documents(
    tmp_path: Path, text_file: Path, bpe: Tokenizer
) -> None:
    seen: list[tuple[int, int | None]] = []
    out = tokenize_corpus(
        documents(text_file), bpe, tmp_path / "out", progress=lambda *args: seen.append(args)
    )
    assert seen[-1] == (len(TEXT), len(TEXT))
    text = out.tokenizer.decode(out.ids.tolist(), skip_special_tokens=False)
    assert text.split("<|endoftext|>") == [*TEXTS, ""]


class Killed(Exception):
    pass


@pytest.mark.parametrize("mode", ["packed", "rows"])
@pytest.mark.parametrize("seen", [1, 3, 17, 40])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, bpe: Tokenizer, mode: str, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"the {k} cat{'s' * (k % 5)}" if k % 7 else " " for k in range(41)]
    whole = tokenize_corpus(texts, bpe, tmp_path / "whole", mode)

    monkeypatch.setattr(token_ids, "_BATCH", 20)  # characters
    monkeypatch.setattr(token_ids, "_SAVE", 60)

    def dying() -> Iterator[str]:
        yield from texts[:seen]
        raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        tokenize_corpus(dying(), bpe, folder, mode)
    with pytest.raises(UserError, match="is not finished"):
        open_ids(folder)
    state = json.loads((folder / "meta.json").read_text())
    assert state["documents"] <= seen
    assert (state["documents"] > 0) == (seen > 10)
    with open(folder / "ids.bin", "ab") as file:  # what the kill left half written
        file.write(b"half")
    encoded: list[int] = []
    original = token_ids._encode
    monkeypatch.setattr(
        token_ids,
        "_encode",
        lambda tokenizer, batch, first: (
            encoded.extend(range(first, first + len(batch))) or original(tokenizer, batch, first)
        ),
    )
    tokenize_corpus(texts, bpe, folder, mode)
    assert encoded == list(range(state["documents"], 41))  # what was saved is not done again
    files = ["ids.bin", "meta.json", "tokenizer.json"] + ["offsets.bin"] * (mode == "rows")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert whole.meta["documents"] == 41


def test_a_finished_run_is_checked_and_left(tmp_path: Path, words: Tokenizer) -> None:
    tokenize_corpus(["a", "b"], words, tmp_path)
    before = (tmp_path / "ids.bin").stat().st_mtime_ns
    assert tokenize_corpus(["a", "b"], words, tmp_path).ids.tolist() == [1, 0, 2, 0]
    assert (tmp_path / "ids.bin").stat().st_mtime_ns == before
    for other in (["a", "c"], ["a"], ["ab", ""]):
        with pytest.raises(UserError, match="begun with other documents"):
            tokenize_corpus(other, words, tmp_path)
    with pytest.raises(UserError, match="there are more now"):
        tokenize_corpus(["a", "b", "c"], words, tmp_path)
    with pytest.raises(UserError, match="begun with mode 'packed', now it is 'rows'"):
        tokenize_corpus(["a", "b"], words, tmp_path, mode="rows")


def test_damage_is_seen(tmp_path: Path, words: Tokenizer) -> None:
    tokenize_corpus(["a", "b"], words, tmp_path)
    open_ids(tmp_path, verify=True)
    path = tmp_path / "ids.bin"
    raw = path.read_bytes()
    path.write_bytes(b"\3" + raw[1:])
    open_ids(tmp_path)
    with pytest.raises(UserError, match="its sha256 is not that"):
        open_ids(tmp_path, verify=True)
    path.write_bytes(raw[:-1])
    with pytest.raises(UserError, match="7 bytes, expected 8"):
        open_ids(tmp_path)
    path.write_bytes(raw)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_ids(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="holds no tokenised corpus"):
        open_ids(tmp_path)
    with pytest.raises(UserError, match=r"an ids.bin without its meta.json"):
        tokenize_corpus(["a", "b"], words, tmp_path)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (["a"], {"mode": "lines"}, "unknown mode 'lines'"),
        ("a b", {}, "got one string"),
        (["a"], {"end_of_text": "</s>"}, "has no token '</s>'"),
        ([], {}, "no document holds a token"),
        ([""], {}, "no document holds a token"),
        (["a", "a \ud800"], {}, "document 2 holds .* half of a surrogate pair"),
        (["a", "d"], {}, "documents 1 to 2: the tokenizer cannot encode them"),
    ],
)
def test_what_cannot_be_tokenised(
    tmp_path: Path, words: Tokenizer, texts: Any, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tokenize_corpus(texts, words, tmp_path, **settings)


def test_a_folder_that_cannot_be_written(tmp_path: Path, words: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"):
        tokenize_corpus(["a"], words, tmp_path / "file")
