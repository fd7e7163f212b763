from __future__ import annotations

import gzip
import lzma
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.data import fasta
from specmask.data.fasta import (
    AMINO_ACIDS,
    Record,
    parse_template,
    read_fasta,
    read_templates,
    write_fasta,
)
from specmask.errors import UserError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda raw: raw,
    "gzip": gzip.compress,
    "two gzip members": lambda raw: gzip.compress(raw[:9]) + gzip.compress(raw[9:]),
    "xz": partial(lzma.compress, preset=0),  # a small dictionary, so that memory can be measured
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests with many examples."""
    return tmp_path_factory.mktemp("fasta")


def put(folder: Path, raw: bytes, name: str = "a.fasta") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["a.fasta", "a.gz"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_records_by_hand(
    packer: str, name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = (
        b"\n  \n>sp|P1|A  First protein \r\nMKV A\r\n\r\nly\t*\r\n"
        b">two\nAC\n" + ">größer ½ α=β\nW\n\n".encode() + b">last\nACDEFGHIKLMNPQRSTVWY"
    )
    path = put(tmp_path, PACKERS[packer](raw), name)
    monkeypatch.setattr(fasta, "_CHUNK", chunk)
    assert list(read_fasta(path)) == [
        Record("sp|P1|A", "First protein", "MKVALY", 3),
        Record("two", "", "AC", 7),
        Record("größer", "½ α=β", "W", 9),
        Record("last", "", AMINO_ACIDS, 12),
    ]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    assert [r.line for r in read_fasta(put(tmp_path, b"\xef\xbb\xbf>a\nM\n"))] == [1]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    entries=st.lists(
        st.tuples(
            st.from_regex(r"[!-~]{1,9}( [!-~]{1,5}){0,2}", fullmatch=True),
            st.lists(st.text(AMINO_ACIDS, max_size=9), min_size=1, max_size=5).filter(any),
        ),
        min_size=1,
        max_size=9,
    ),
    chunk=st.integers(1, 40),
)
def test_records_are_those_of_biopython_and_lines_are_right(
    entries: list[tuple[str, list[str]]], chunk: int, folder: Path
) -> None:
    parser = pytest.importorskip("Bio.SeqIO.FastaIO").SimpleFastaParser
    text = "".join(f">{title}\n" + "".join(f"{s}\n" for s in parts) for title, parts in entries)
    path = put(folder, text.encode())
    with path.open() as file:
        expected = list(parser(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "_CHUNK", chunk)
        records = list(read_fasta(path))
    lines = text.split("\n")
    assert [(" ".join(filter(None, (r.name, r.description))), r.sequence) for r in records] == (
        expected
    )
    assert [lines[r.line - 1] for r in records] == [f">{title}" for title, _ in entries]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty: expected FASTA"),
    "blank": (b"\n \n\n", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "only a byte-order mark": (b"\xef\xbb\xbf", "is empty"),
    "text before": (b"\n\nhello you\n>a\nM\n", "line 3: 'hello you' before the first >"),
    "text alone": (b"MKV\n", "line 1: 'MKV' before the first >"),
    "NUL": (b">a\nM\0K\n", r"is binary .a NUL byte at offset 4"),
    "zip": (b"PK\x03\x04\0\0", "is binary"),
    "cut gzip": (gzip.compress(b">a\n" + b"M" * 999)[:-9], "cannot be unpacked as gzip"),
    "cut xz": (lzma.compress(b">a\n" + os.urandom(999).hex().encode())[:-99], "as xz"),
    "broken gzip": (b"\x1f\x8b" + b"\xff" * 40, "cannot be unpacked as gzip"),
    "Latin-1": (b">a\nM\n>gr\xf6\nM\n", "line 3: the header is not UTF-8 .byte 0xf6"),
    "no name": (b">a\nM\n>\nM\n", "line 3: the header '>' has no name"),
    "blank name": (b">a\nM\n\n> b\nM\n", "line 4: the header '> b' has no name"),
    "no sequence": (b">a\n\n>b\nM\n", "record 'a' at line 1 has no sequence"),
    "no last sequence": (b">a\nM\n>b", "record 'b' at line 3 has no sequence"),
    "a stop alone": (b">a\nM\n>b\n*\n", "record 'b' at line 3 has no sequence"),
    "unknown": (b">a\nM\n>b x\nMK\nVxB\n", "line 5: record 'b' has 'x' at position 4: .*unknown="),
    "stop inside": (b">b x\nMK*V\n", r"line 2: record 'b' has '\*' at position 3"),
    "two stops": (b">b\nMK**\n", r"has '\*' at position 3"),
    "gap": (b">b\nMK\n\nM-V\n", "line 4: record 'b' has '-' at position 4, a gap"),
    "dot": (b">b\nMK.V\n", "has '.' at position 3, a gap"),
    "digit": (b">b\nMKX\n  1V\n", "line 3: record 'b' has '1' at position 4: .*correct"),
    "umlaut": (">b\nMKä\n".encode(), "has 'ä' at position 3"),
    "not UTF-8": (b">b\nMK\xff\n", "has '\ufffd' at position 3"),
    ">": (b">b\nMK>\n", "has '>' at position 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    raw, message = BAD[case]
    path = put(tmp_path, raw)
    with pytest.raises(UserError, match=message) as caught:
        list(read_fasta(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*check the path"):
        read_fasta(tmp_path / "missing")
    with pytest.raises(UserError, match="is a folder"):
        read_fasta(tmp_path)
    with pytest.raises(UserError, match="is empty"):
        read_fasta(put(tmp_path, b""))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "mas"}, "unknown policy 'mas': expected one of drop, error, mask"),
        ({"alphabet": ""}, "alphabet=''"),
        ({"alphabet": "AAC"}, "distinct letters"),
        ({"alphabet": "acd"}, "distinct letters"),
        ({"alphabet": "A-"}, "distinct letters"),
        ({"mask": "A"}, "mask='A'.*not among"),
        ({"mask": "XX"}, "mask='XX'"),
        ({"mask": "α"}, "mask='α'"),
        ({"mask": ""}, "mask=''"),
        ({"mask": ">"}, "mask='>'"),
    ],
)
def test_bad_options(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_fasta(put(tmp_path, b">a\nA\n"), **options)


def test_the_three_policies_for_unknown_residues(tmp_path: Path) -> None:
    path = put(tmp_path, b">a\nMK\n>b\nMBX*Uz\n>c\nbX*\n>d\nVV*\n")
    dropping = read_fasta(path, unknown="drop")
    assert (next(dropping).name, dropping.dropped) == ("a", 0)
    assert [r.name for r in dropping] == ["d"]
    assert dropping.dropped == 2
    masking = read_fasta(path, unknown="mask")
    assert [r.sequence for r in masking] == ["MK", "MXXXXX", "XX", "VV"]
    assert masking.dropped == 0
    assert [r.sequence for r in read_fasta(path, unknown="mask", mask="#")][1] == "M#####"
    # What is in the alphabet is no unknown residue.
    wide = read_fasta(path, alphabet=AMINO_ACIDS + "BUXZ", unknown="drop", mask="?")
    assert ([r.sequence for r in wide], wide.dropped) == (["MK", "BX", "VV"], 1)


@pytest.mark.parametrize("unknown", ["drop", "mask"])
def test_no_policy_lets_gaps_and_digits_pass(unknown: str, tmp_path: Path) -> None:
    # An unknown residue before them must not hide them.
    with pytest.raises(UserError, match="has '-' at position 3, a gap"):
        list(read_fasta(put(tmp_path, b">a\nXM-K\n"), unknown=unknown))
    with pytest.raises(UserError, match="has '1' at position 3"):
        list(read_fasta(put(tmp_path, b">a\nXM1K\n"), unknown=unknown))


def test_a_file_left_early_is_closed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = put(tmp_path, b">a\nM\n>b\nM\n")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        next(read_fasta(path))
        read_fasta(path)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before
    assert not recwarn.list


@pytest.mark.parametrize("packer", ["raw", "gzip", "xz"])
def test_memory_is_flat(packer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta, "_CHUNK", 1 << 16)
    count, sequence = 20_000, AMINO_ACIDS * 15
    raw = "".join(f">s{k}\n{sequence[k % 20 :]}\n" for k in range(count)).encode()
    path = put(tmp_path, PACKERS[packer](raw))
    assert len(raw) > 5 << 20
    del raw
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_fasta(path)) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


NAMES = st.from_regex(r"[a-z0-9|.ß-][!-~]{0,9}", fullmatch=True)
FACTS = st.dictionaries(
    st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers() | st.floats(), max_size=3
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    records=st.lists(
        st.tuples(NAMES, st.text(AMINO_ACIDS, min_size=1, max_size=200), FACTS),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read_back(
    records: list[tuple[str, str, dict[str, float]]], folder: Path
) -> None:
    path = folder / "out.fasta"
    assert write_fasta(path, iter(records), overwrite=True) == len(records)
    back = list(read_fasta(path))
    assert [(r.name, r.sequence) for r in back] == [(name, seq) for name, seq, _ in records]
    for record, (_, _, facts) in zip(back, records, strict=True):
        assert record.description.split() == [f"{key}={value}" for key, value in facts.items()]
    assert max(map(len, (s for s in path.read_text().split("\n") if s[:1] != ">"))) <= 60


def test_the_written_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "out.fasta"
    facts = {"passes": 12, "seed": 0, "sampler": "größer"}
    write_fasta(path, [("a", "M" * 121, facts), ("b", "K" * 60, {})])
    assert path.read_bytes().decode() == (
        ">a passes=12 seed=0 sampler=größer\n" + "M" * 60 + "\n" + "M" * 60 + "\nM\n"
        ">b\n" + "K" * 60 + "\n"
    )
    assert os.listdir(tmp_path) == ["out.fasta"]


def test_an_existing_file_stays_unless_it_is_written_over(tmp_path: Path) -> None:
    path = put(tmp_path, b"old")
    with pytest.raises(UserError, match="exists: expected a new file; pass overwrite=True"):
        write_fasta(path, [("a", "M", {})])
    assert path.read_bytes() == b"old"
    write_fasta(path, [("a", "M", {})], overwrite=True)
    assert path.read_bytes() == b">a\nM\n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (("", "M", {}), "record name ''"),
        (("a b", "M", {}), "record name 'a b'"),
        ((">a", "M", {}), "record name '>a'"),
        (("a", "", {}), "has the sequence ''"),
        (("a", "M\n>b", {}), "has the sequence"),
        (("a", "M", {"x": "1 2"}), "fact 'x': '1 2'"),
        (("a", "M", {"x": ""}), "fact 'x': ''"),
        (("a", "M", {"x=": 1}), "fact 'x='"),
        (("a", "M", {"x\ny": 1}), "fact "),
    ],
)
def test_a_bad_record_leaves_no_trace(
    record: tuple[str, str, dict[str, object]], message: str, tmp_path: Path
) -> None:
    path = put(tmp_path, b"old")
    with pytest.raises(UserError, match=message) as caught:
        write_fasta(path, [("ok", "M", {}), record], overwrite=True)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.fasta"]


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    def stopped() -> Iterator[tuple[str, str, dict[str, object]]]:
        yield "a", "M" * 100_000, {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_fasta(tmp_path / "new", stopped())
    with pytest.raises(UserError, match="no record"):
        write_fasta(tmp_path / "new", [])
    with pytest.raises(UserError, match=r"could not write .*No such file"):
        write_fasta(tmp_path / "missing" / "new", [("a", "M", {})])
    with pytest.raises(UserError, match="is no file"):
        write_fasta(tmp_path, [("a", "M", {})], overwrite=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EVQL", list("EVQL")),
        ("ev-w", ["E", "V", None, "W"]),
        ("-X_?x", [None] * 5),
        ("EV-{3}W", ["E", "V", None, None, None, "W"]),
        ("G{2}X{1}", ["G", "G", None]),
        (" EV\n-\tW *\n", ["E", "V", None, "W"]),
        ("-{65536}", [None] * 65536),
    ],
)
def test_templates_by_hand(text: str, expected: list[str | None]) -> None:
    assert parse_template(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "template is empty"),
        (" *", "template is empty"),
        ("EV-{10}BW", "template: 'B' at position 13: expected residues of ACDE"),
        ("EVb{3}", "'b{3}' at position 3"),
        ("EV1", "'1' at position 3"),
        ("E*V", "'*' at position 2"),
        ("{3}E", "'{' at position 1: expected a symbol before {n}"),
        ("E-{}", "'{' at position 3"),
        ("E-{x}", "'{' at position 3"),
        ("E-{2}{3}", "'{' at position 4"),
        ("E}", "'}' at position 2"),
        ("E-{-1}", "'{' at position 3"),
        ("E-{0}", "'-{0}' at position 2: expected 1 to 65536"),
        ("E-{65536}", "at position 2: expected 1 to 65536"),
        ("-{999999}", "'-{999999}' at position 1: expected 1 to 65536"),
        ("-{" + "1" * 5000 + "}", "'{' at position 2: expected a symbol before {n} and a whole"),
        ("ä", "'ä' at position 1"),
    ],
)
def test_impossible_templates_are_named_with_their_position(text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse_template(text)
    assert "\n" not in str(caught.value)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(AMINO_ACIDS + "-X_?"), st.none() | st.integers(1, 30)),
        min_size=1,
        max_size=20,
    )
)
def test_a_run_is_the_symbol_that_often(runs: list[tuple[str, int | None]]) -> None:
    short = "".join(s if n is None else f"{s}{{{n}}}" for s, n in runs)
    long = "".join(s * (n or 1) for s, n in runs)
    expected = [None if s in "-X_?" else s for s in long]
    assert parse_template(short) == parse_template(long) == expected


def test_templates_from_a_file(tmp_path: Path) -> None:
    path = put(tmp_path, gzip.compress(b">one a template\nEV-\n{2}W\n\n>two\nXX\n"))
    assert read_templates(path) == [("one", ["E", "V", None, None, "W"]), ("two", [None, None])]
    assert read_templates(put(tmp_path, b">a\nDD-\n"), alphabet="D") == [("a", ["D", "D", None])]
    with pytest.raises(UserError, match=r"a\.fasta: template 'two' at line 3: 'B' at position 3"):
        read_templates(put(tmp_path, b">one\nE-\n>two\nE-B\n"))
    with pytest.raises(UserError, match="template 'one' at line 1 is empty"):
        read_templates(put(tmp_path, b">one\n"))
    with pytest.raises(UserError, match="no file"):
        read_templates(tmp_path / "missing")


def test_free_marks_stay_free_even_where_the_alphabet_has_them() -> None:
    assert parse_template("AX", alphabet="AX") == ["A", None]
