from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.data import sequences
from specmask.data.fasta import AMINO_ACIDS, Record
from specmask.data.sequences import (
    SequenceBatches,
    SequenceStore,
    empirical_lengths,
    pack_sequences,
    residue_encoder,
    split,
)
from specmask.errors import UserError


def records(texts: list[str]) -> Iterator[Record]:
    for k, text in enumerate(texts):
        yield Record(f"s{k}", "", text, 2 * k + 1)


def store_of(lengths: list[int], folder: Path) -> SequenceStore:
    """Sequence k is k, 0, 1, 2, …, so that a row shows where it comes from and where it was cut."""

    def encode(text: str) -> np.ndarray:
        number, length = map(int, text.split())
        return np.array([number, *range(length - 1)], dtype=np.uint16)

    texts = [f"{k} {length}" for k, length in enumerate(lengths)]
    return pack_sequences(records(texts), encode, folder)


def test_ids_follow_the_alphabet() -> None:
    encode = residue_encoder()
    ids = encode("ACYA")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [0, 1, 19, 0]
    assert residue_encoder(AMINO_ACIDS + "X")("XA").tolist() == [20, 0]
    for text, place in (("ACB", "'B' at position 3"), ("Aä?", "'ä' at position 2")):
        with pytest.raises(UserError, match=place):
            encode(text)
    with pytest.raises(UserError, match="'ä' at position 1"):
        residue_encoder("?")("ä")
    for alphabet in ("", "AA", "ä"):
        with pytest.raises(UserError, match="distinct ASCII symbols"):
            residue_encoder(alphabet)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    texts=st.lists(st.text(AMINO_ACIDS, min_size=1, max_size=30), min_size=1, max_size=20),
    block=st.integers(1, 9),
)
def test_what_is_packed_is_read_back(
    texts: list[str], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pack") / "deep" / "store"
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_BLOCK", block)
        packed = pack_sequences(records(texts), residue_encoder(), folder, done.append)
    assert done == [*range(block, len(texts), block), len(texts)]
    for store in (packed, SequenceStore(folder), SequenceStore(str(folder))):
        assert len(store) == len(texts)
        assert store.lengths.dtype == np.int64
        assert store.lengths.tolist() == [len(text) for text in texts]
        assert ["".join(AMINO_ACIDS[k] for k in ids) for ids in store] == texts
        assert store[-1].tolist() == store[len(texts) - 1].tolist()
        with pytest.raises(IndexError):
            store[len(texts)]
    assert sorted(os.listdir(folder.parent)) == ["store"]


def test_wide_ids_stay_wide_and_nothing_can_be_written(tmp_path: Path) -> None:
    store = store_of([3, 400], tmp_path / "store")
    assert store[1].dtype == np.uint16
    assert store[1].tolist() == [1, *range(399)]
    with pytest.raises(ValueError, match="read-only"):
        store[0][0] = 1


_KILLED = """
import os, signal, sys
from specmask.data import sequences
from specmask.data.fasta import Record
sequences._BLOCK = 10
def records():
    for k in range(1000):
        if k == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Record(f"s{k}", "", "ACDY", k)
sequences.pack_sequences(records(), sequences.residue_encoder(), sys.argv[1])
"""


def test_after_a_kill_the_next_call_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".store.partial"]  # killed in the middle, nothing half seen
    with pytest.raises(UserError, match="no packed sequences"):
        SequenceStore(folder)
    store = pack_sequences(records(["MK", "V"]), residue_encoder(AMINO_ACIDS), folder)
    assert [ids.tolist() for ids in store] == [[10, 8], [17]]
    assert os.listdir(tmp_path) == ["store"]


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> Iterator[Record]:
        yield Record("a", "", "MK", 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_sequences(stopped(), residue_encoder(), tmp_path / "store")
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def dtypes(text: str) -> np.ndarray:
        return np.zeros(1, np.uint8 if text == "A" else np.uint16)

    for texts, encode, message in (
        ([], residue_encoder(), "no record to pack"),
        (["A", "AB"], residue_encoder(), "record 's1' at line 3: 'B' at position 2"),
        (["A", ""], residue_encoder(), "record 's1' at line 3 encodes as nothing"),
        (["A", "B"], dtypes, "'s1' at line 3 encodes as uint16 of shape .1,.: expected uint8 or"),
        (["A"], lambda text: np.zeros(1, np.int64), "encodes as int64"),
        (["A"], lambda text: np.zeros((1, 1), np.uint8), "of shape .1, 1."),
    ):
        with pytest.raises(UserError, match=message):
            pack_sequences(records(texts), encode, folder)
        assert os.listdir(tmp_path) == []
    folder.mkdir()
    with pytest.raises(UserError, match="exists: expected a new folder; open it with Sequence"):
        pack_sequences(records(["A"]), residue_encoder(), folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"could not write .*try another folder"):
        pack_sequences(records(["A"]), residue_encoder(), tmp_path / "file" / "store")


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no packed sequences in .*No such file.*pack_sequences"):
        SequenceStore(tmp_path / "missing")
    folder = tmp_path / "store"
    store_of([3, 4], folder)
    card = json.loads((folder / "sequences.json").read_text())
    for wrong in (
        "{",
        "[]",
        json.dumps(card | {"format": 2}),
        json.dumps(card | {"tokens": 8}),
        json.dumps(card | {"tokens": "7"}),
        json.dumps(card | {"sequences": 3}),
        json.dumps(card | {"dtype": "strange"}),
    ):
        (folder / "sequences.json").write_text(wrong)
        with pytest.raises(UserError, match="does not hold packed sequences of format 1, whole"):
            SequenceStore(folder)
    (folder / "sequences.json").write_text(json.dumps(card))
    assert len(SequenceStore(folder)) == 2
    with (folder / "ids.bin").open("r+b") as file:
        file.truncate(13)
    with pytest.raises(UserError, match="whole: remove it"):
        SequenceStore(folder)


def test_packing_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "_BLOCK", 256)
    count, text = 20_000, AMINO_ACIDS * 10
    tracemalloc.start()
    try:
        stream = (Record("a", "", text, k) for k in range(count))
        store = pack_sequences(stream, residue_encoder(), tmp_path / "store")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store) == count
    assert peak < 1 << 20  # four megabytes were written, and 16 bytes a sequence are expected


def test_duplicates_share_a_part_whatever_else_is_there(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("ACDE"), size=12)) for _ in range(2000)] * 2
    whole = pack_sequences(records(texts), residue_encoder(), tmp_path / "whole")
    part = pack_sequences(records(texts[1500:2500]), residue_encoder(), tmp_path / "part")
    sets = [{ids.tobytes() for ids in store} for store in split(whole, 0.1, 0.2)]
    small = [{ids.tobytes() for ids in store} for store in split(part, 0.1, 0.2)]
    sizes = [len(store) for store in split(whole, 0.1, 0.2)]
    assert sum(sizes) == 4000
    assert len(set.union(*sets)) == sum(map(len, sets))  # no overlap
    assert all(few <= many for few, many in zip(small, sets, strict=True))
    # Of 2000 that differ: six standard deviations are 80 and 107; fixed, so this cannot flake.
    assert abs(sizes[1] / 2 - 200) < 80
    assert abs(sizes[2] / 2 - 400) < 107
    assert [len(store) for store in split(whole, 0, 0)] == [4000, 0, 0]
    for shares in ((-0.1, 0.1), (0.5, 0.5), (float("nan"), 0)):
        with pytest.raises(UserError, match="expected shares from 0, together below 1"):
            split(whole, *shares)


def test_a_split_is_fixed_for_good(tmp_path: Path) -> None:
    store = store_of([2] * 40, tmp_path / "store")
    _, validation, test = split(store, 0.1, 0.1)
    assert [int(ids[0]) for ids in validation] == [2, 7, 17, 36]
    assert [int(ids[0]) for ids in test] == [3, 12, 19]
    assert validation.subset(np.array([1]))[0].tolist() == validation[1].tolist()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    lengths = np.random.default_rng(1).integers(1, 40, size=57).tolist()
    return store_of(lengths, tmp_path_factory.mktemp("mixed") / "store")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(batch_size=st.integers(1, 70), seed=st.integers(0, 2**64 - 1))
def test_an_epoch_visits_every_sequence_once_and_epochs_roll_over(
    mixed: SequenceStore, batch_size: int, seed: int
) -> None:
    batches = SequenceBatches(mixed, batch_size, seed)
    assert batches.tokens_per_epoch == mixed.lengths.sum()
    visited = []
    for step in range(-(-3 * len(mixed) // batch_size)):
        tokens, lengths = batches(step)
        assert tokens.dtype == lengths.dtype == torch.int64
        assert lengths.shape == (batch_size,)
        longest = int(lengths.max())
        assert tokens.shape == (batch_size, min(-(-longest // 8) * 8, 39))
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            assert row[:length].tolist() == mixed[int(row[0])].tolist()
            assert not row[length:].any()
        visited += tokens[:, 0].tolist()
    for epoch in range(3):
        part = visited[epoch * len(mixed) : (epoch + 1) * len(mixed)]
        assert sorted(part) == list(range(len(mixed)))


@pytest.mark.parametrize("crop", [False, True])
def test_a_batch_is_a_function_of_the_step_alone(mixed: SequenceStore, crop: bool) -> None:
    def fresh() -> SequenceBatches:
        return SequenceBatches(mixed, 16, seed=3, longest=9 if crop else None, crop=crop)

    forwards, backwards = fresh(), fresh()
    expected = [forwards(step) for step in range(15)]
    for step in reversed(range(15)):
        for got in (backwards(step), fresh()(step)):
            assert all(torch.equal(a, b) for a, b in zip(got, expected[step], strict=True))


def test_batches_do_not_depend_on_how_they_are_cut(mixed: SequenceStore) -> None:
    wide, narrow = (SequenceBatches(mixed, size, 5, longest=7, crop=True) for size in (12, 4))
    for step in range(20):
        rows = [narrow(3 * step + k) for k in range(3)]
        assert torch.equal(wide(step)[1], torch.cat([lengths for _, lengths in rows]))
        firsts = torch.cat([tokens[:, 0] for tokens, _ in rows])
        assert torch.equal(wide(step)[0][:, 0], firsts)


def test_seeds_and_epochs_differ_in_order(mixed: SequenceStore) -> None:
    first, second = (SequenceBatches(mixed, len(mixed), seed) for seed in (0, 1))
    orders = [tuple(b(step)[0][:, 0].tolist()) for b in (first, second) for step in range(3)]
    assert len(set(orders)) == 6


def test_a_crop_is_any_window_and_another_each_time(tmp_path: Path) -> None:
    # One sequence of 12 tokens, itself 0, 0, 1, …, 10, and one that fits.
    store = store_of([12, 3], tmp_path / "store")
    batches = SequenceBatches(store, 2, seed=0, longest=5, crop=True)
    assert batches.tokens_per_epoch == 8
    ids = store[0].tolist()
    windows = [tuple(ids[k : k + 5]) for k in range(8)]
    seen = []
    for step in range(200):
        tokens, lengths = batches(step)
        assert tokens.shape == (2, 5)  # eight would be more than the longest
        rows = dict(zip(lengths.tolist(), map(tuple, tokens.tolist()), strict=True))
        assert rows[3] == (1, 0, 1, 0, 0)
        seen.append(rows[5])
    # Each of the eight windows misses 200 draws with odds 3e-12.
    assert set(seen) == set(windows)
    other = SequenceBatches(store, 2, seed=1, longest=5, crop=True)
    assert [other(step)[0].tolist() for step in range(20)] != [
        batches(step)[0].tolist() for step in range(20)
    ]


def test_long_sequences_are_refused_or_cropped(mixed: SequenceStore) -> None:
    over = int((mixed.lengths > 9).sum())
    with pytest.raises(UserError, match=f"^{over} of 57 sequences .* 9 tokens.* crop=True"):
        SequenceBatches(mixed, 4, longest=9)
    SequenceBatches(mixed, 4, longest=int(mixed.lengths.max()))
    tokens, lengths = SequenceBatches(mixed, 57, longest=9, crop=True)(0)
    assert tokens.shape == (57, 9)
    assert int((lengths == 9).sum()) >= over


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 2.5}, {"seed": -1}, {"seed": 2**64}, {"longest": 0}],
)
def test_bad_numbers(mixed: SequenceStore, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}=.*expected a whole number"):
        SequenceBatches(mixed, **{"batch_size": 4, **options})
    with pytest.raises(UserError, match="step=-1"):
        SequenceBatches(mixed, 4)(-1)


def test_an_empty_part_is_refused(mixed: SequenceStore) -> None:
    empty = split(mixed, 0, 0)[1]
    for call in (lambda: SequenceBatches(empty, 4), lambda: empirical_lengths(empty, 4)):
        with pytest.raises(UserError, match="holds no sequence"):
            call()


def test_lengths_are_drawn_from_the_data(tmp_path: Path) -> None:
    store = store_of([3, 3, 3, 8], tmp_path / "store")
    drawn = empirical_lengths(store, 4000, seed=5)
    assert drawn.dtype == torch.int64
    assert drawn.shape == (4000,)
    assert set(drawn.tolist()) == {3, 8}
    # 3000 ± 27: six standard deviations; lengths drawn evenly among the kinds would give 2000.
    assert abs(int((drawn == 3).sum()) - 3000) < 165
    assert torch.equal(drawn, empirical_lengths(store, 4000, seed=5))
    assert not torch.equal(drawn, empirical_lengths(store, 4000, seed=6))
    for options in ({"num": 0}, {"num": 1, "seed": -1}):
        with pytest.raises(UserError, match="expected a whole number"):
            empirical_lengths(store, **options)
