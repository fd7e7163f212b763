"""Batches come in order, made ahead in a thread that tells its errors and leaves nothing behind."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from specmask.errors import UserError
from specmask.training.feed import AHEAD, Batch, Feed, make_batch
from specmask.training.loop import train
from specmask.training.loss import draw_masks, scored_ranks

ROWS, LENGTH = 8, 16


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def numbered(step: int) -> Batch:
    return Batch([], torch.tensor([step]), torch.tensor([0]))


def numbers(feed: Feed, count: int) -> list[int]:
    return [int(feed.take()[0].lengths) for _ in range(count)]


@pytest.mark.parametrize("steps", [range(3, 9), range(0, 1), range(5, 5)])
def test_every_batch_once_and_in_order(steps: range) -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return numbered(step)

    with Feed(make, steps) as feed:
        assert numbers(feed, len(steps)) == list(steps)
    assert made == list(steps)


def test_batches_are_made_ahead_and_no_further() -> None:
    made: list[int] = []
    reached = threading.Event()

    def make(step: int) -> Batch:
        made.append(step)
        if step == AHEAD:
            reached.set()
        return numbered(step)

    with Feed(make, range(100)) as feed:
        feed.take()
        assert reached.wait(10)  # while nobody takes another
        time.sleep(0.05)
        assert made == list(range(AHEAD + 1))


def test_an_error_comes_with_its_own_batch() -> None:
    def make(step: int) -> Batch:
        if step == 3:
            raise UserError("record 7 is torn")
        return numbered(step)

    with Feed(make, range(10)) as feed:
        assert numbers(feed, 3) == [0, 1, 2]
        with pytest.raises(UserError, match="record 7 is torn"):
            feed.take()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_early_leaves_no_thread(error: type[BaseException]) -> None:
    """The fixture looks."""

    def interrupted() -> None:
        with Feed(numbered, range(1000)) as feed:
            feed.take()
            raise error

    with pytest.raises(error):
        interrupted()


def test_the_wait_is_that_for_the_batch() -> None:
    gate = threading.Event()

    def make(step: int) -> Batch:
        if step == 1:
            gate.wait(10)
        return numbered(step)

    with Feed(make, range(2)) as feed:
        feed.take()
        threading.Timer(0.2, gate.set).start()
        _, waited = feed.take()
    assert 0.1 < waited < 5


@pytest.mark.parametrize("ragged", [False, True])
def test_the_parts_of_all_processes_are_the_batch(make_config, ragged: bool) -> None:
    """Each row once, with the order and the masks that its number in the whole batch gives it."""
    config = make_config(accumulation=2)
    tokens = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    lengths = torch.arange(1, ROWS + 1) * 2 if ragged else torch.full((ROWS,), LENGTH)
    order, revealed = draw_masks(config.seed, 5, lengths, LENGTH)
    seen = []
    for process in range(2):
        batch = make_batch((tokens, lengths), 5, config, process, 2)
        assert torch.equal(batch.lengths, lengths)
        assert torch.equal(batch.revealed, revealed)
        for part in batch.parts:
            rows = part.tokens[:, 0] // LENGTH
            seen += rows.tolist()
            assert torch.equal(part.order, order[rows])
            assert torch.equal(part.revealed, revealed[rows])
            assert (part.lengths is not None) == ragged
            own = scored_ranks(revealed[rows], lengths[rows], LENGTH)
            assert torch.equal(part.scored, own)
            assert part.scored.shape[1] == int((lengths - revealed)[rows].sum())
    assert sorted(seen) == list(range(ROWS))


def test_a_slow_loader_is_seen(tmp_path: Path, make_network, batches, make_config) -> None:
    def slow(step: int) -> torch.Tensor:
        time.sleep(0.25)
        return batches(step)

    shares = []
    for name, source in (("fast", batches), ("slow", slow)):
        said = io.StringIO()
        config = make_config(steps=6, log_every=6)
        train(make_network(), source, config, tmp_path / name, console=Console(file=said))
        row = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        shares.append(row["data_wait"])
        assert ("waiting for data" in said.getvalue()) == (row["data_wait"] >= 0.01)
        if name == "slow":
            assert row["tokens_per_second"] < 6 * ROWS * LENGTH / (5 * 0.25)
    assert 0 <= shares[0] < shares[1] <= 1
    assert shares[1] > 0.3  # of six times a quarter of a second, besides six steps


def test_an_error_in_batch_three_ends_the_run_there(
    tmp_path: Path, make_network, batches, make_config, crash_at
) -> None:
    """Steps 0 to 2 are made and logged first."""

    def tear() -> None:
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        train(make_network(), crash_at(batches, 3, tear), make_config(log_every=1), tmp_path)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
