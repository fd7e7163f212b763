from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.data.batches import Batches, windows
from specmask.errors import UserError


def numbers(count: int) -> np.ndarray:
    """Ids that are their own positions, so that a window shows where it was cut."""
    return np.arange(count, dtype=np.uint16)


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 9),
    more=st.integers(0, 60),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_visits_every_window_once_and_epochs_roll_over(
    length: int, more: int, batch_size: int, seed: int
) -> None:
    ids = numbers(2 * length + more)
    batches = Batches(ids, length, batch_size, seed)
    per_epoch = batches.tokens_per_epoch // length
    steps = -(-3 * per_epoch // batch_size)
    rows = torch.cat([batches(step) for step in range(steps)])
    assert rows.dtype == torch.int64
    assert rows.shape == (steps * batch_size, length)
    assert bool((rows == rows[:, :1] + torch.arange(length)).all())  # contiguous
    for epoch in range(3):
        starts = rows[epoch * per_epoch : (epoch + 1) * per_epoch, 0].sort().values
        assert starts.tolist() == [int(starts[0]) + k * length for k in range(per_epoch)]
        assert 0 <= int(starts[0]) < length


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    ids = numbers(1000)
    forwards = Batches(ids, 8, 16, seed=3)
    expected = [forwards(step) for step in range(30)]
    # Backwards over four epochs, and from a fresh object as after a crash.
    backwards = Batches(ids, 8, 16, seed=3)
    for step in reversed(range(30)):
        assert torch.equal(backwards(step), expected[step])
        assert torch.equal(Batches(ids, 8, 16, seed=3)(step), expected[step])


def test_batches_do_not_depend_on_how_they_are_cut() -> None:
    wide, narrow = Batches(numbers(500), 7, 12, 5), Batches(numbers(500), 7, 4, 5)
    for step in range(20):
        parts = [narrow(3 * step + k) for k in range(3)]
        assert torch.equal(wide(step), torch.cat(parts))


def test_seeds_and_epochs_differ_in_order_and_offset() -> None:
    length, count = 50, 100
    first, second = (Batches(numbers(length * (count + 1)), length, count, k) for k in (0, 1))
    assert not torch.equal(first(0), second(0))
    epochs = [first(step)[:, 0] for step in range(20)]
    # 20 offsets below 50 all equal: odds 50⁻¹⁹; one permutation of 100 sorted: 1/100!.
    assert len({int(starts.min()) for starts in epochs}) > 1
    assert all(starts.tolist() != sorted(starts.tolist()) for starts in epochs)


def test_the_whole_text_is_seen_in_the_end() -> None:
    batches = Batches(numbers(64), 8, 7, seed=0)
    # An epoch misses an end with odds 7/8 at most: 200 of them, 3e-12. Only the very last token
    # never comes, since offsets stay below the length.
    seen = torch.cat([batches(step) for step in range(200)]).unique()
    assert seen.tolist() == list(range(63))


def test_the_order_of_a_seed_is_fixed_for_good() -> None:
    # A run that resumes under a later version must go on where it was.
    batches = Batches(numbers(40), 4, 3, seed=7)
    assert batches(5)[:, 0].tolist() == [35, 19, 23]


def test_memory_mapped_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", numbers(100))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    assert torch.equal(Batches(mapped, 5, 4, 0)(2), Batches(numbers(100), 5, 4, 0)(2))
    assert torch.equal(windows(mapped, 5, 4), windows(numbers(100), 5, 4))


@pytest.mark.parametrize(
    ("count", "length", "batch_size", "seed", "message"),
    [
        (15, 8, 1, 0, "has 15 tokens, .* rows of 8 needs at least 16"),
        (0, 1, 1, 0, "has 0 tokens"),
        (99, 0, 1, 0, "length 0"),
        (99, 8, 0, 0, "batch size 0"),
        (99, 8, 1, -1, "seed -1"),
    ],
)
def test_bad_batches_are_refused(
    count: int, length: int, batch_size: int, seed: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Batches(numbers(count), length, batch_size, seed)


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(UserError, match="step -1"):
        Batches(numbers(99), 8, 1, 0)(-1)


@pytest.mark.parametrize("ids", [np.zeros((4, 9), np.uint8), np.zeros(99)])
def test_bad_ids_are_refused(ids: np.ndarray) -> None:
    for make in (lambda: Batches(ids, 3, 1, 0), lambda: windows(ids, 3)):
        with pytest.raises(UserError, match="ids are"):
            make()


# -------------------------------------------------------------------------------------- windows


def test_windows_by_hand() -> None:
    assert windows(numbers(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert windows(numbers(24), 2, num=4)[:, 0].tolist() == [0, 6, 12, 18]
    assert windows(numbers(20), 2, num=4)[:, 0].tolist() == [0, 4, 10, 14]
    assert windows(numbers(20), 2, num=1).tolist() == [[0, 1]]
    assert windows(numbers(3), 3).tolist() == [[0, 1, 2]]


def test_at_most_as_many_windows_as_fit() -> None:
    assert torch.equal(windows(numbers(11), 3, num=99), windows(numbers(11), 3))
    assert torch.equal(windows(numbers(11), 3, num=99, seed=1), windows(numbers(11), 3))


@settings(deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 7), st.integers(1, 40), st.none() | st.integers(0, 2**32)
)
def test_windows_are_distinct_cuts_in_order(
    count: int, length: int, num: int, seed: int | None
) -> None:
    if count < length:
        return
    rows = windows(numbers(count), length, num, seed)
    assert rows.dtype == torch.int64
    assert rows.shape == (min(num, count // length), length)
    assert bool((rows == rows[:, :1] + torch.arange(length)).all())
    assert bool((rows[:, 0] % length == 0).all())
    assert bool((rows[:, 0].diff() >= length).all())


def test_the_seed_draws_the_subset() -> None:
    first, again, other = (windows(numbers(1000), 2, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("count", "length", "num", "seed", "message"),
    [
        (4, 5, None, None, "has 4 tokens, a row needs 5"),
        (9, 0, None, None, "length 0"),
        (9, 3, 0, None, "0 windows"),
        (9, 3, 1, -2, "seed -2"),
    ],
)
def test_bad_windows_are_refused(
    count: int, length: int, num: int | None, seed: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        windows(numbers(count), length, num, seed)
