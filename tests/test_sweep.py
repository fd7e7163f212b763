"""The sweep over settings states, for each of them, what the plain recursion states of it alone."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

import specmask
from oracle import tiny_network
from refusal import refuse
from specmask import (
    Conditionals,
    ConstantWindow,
    CosineWindow,
    FullWindow,
    LinearWindow,
    Speculative,
)
from specmask.likelihood import sweep as module
from specmask.likelihood.sweep import FIRSTS, sweep
from specmask.masking import SpeculativeLaw, Window

WINDOWS: list[Window] = [
    FullWindow(),
    *(ConstantWindow(k) for k in (1, 2, 7)),
    *(CosineWindow(step) for step in (0.02, 0.3, 1.0)),
    LinearWindow(0.2),
]


def synthetic(rows: int, length: int, stale: float = 0.02, nats: float = 3.0) -> Conditionals:
    """Tables whose target gets worse, and whose draft much worse, the older the trunk pass."""
    generator = torch.Generator().manual_seed(rows)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ranks = torch.arange(length)
    age = (ranks - ranks[:, None]).clamp(min=0).double().sqrt()
    base = -nats * torch.rand(rows, 1, length, generator=generator, dtype=torch.float64)
    log_p = (base + 0.3 * noise(rows, length, length) - stale * age).clamp(max=-1e-3)
    log_q = (log_p + 0.7 * noise(rows, length, length) - stale * age).clamp(max=-1e-3)
    below = ranks < ranks[:, None]
    log_q, log_p = (x.masked_fill(below, math.nan) for x in (log_q, log_p))
    return Conditionals(log_q, log_p, torch.full((rows,), length), 1.0, 1.0)


def assert_as_scored(table: Conditionals, windows: list[Window], rounds: int) -> None:
    found = sweep(table, windows, rounds)
    assert found.log_prob.shape == (len(table.lengths), len(windows), 2, rounds)
    for k, window in enumerate(windows):
        for f, first in enumerate(FIRSTS):
            for n in range(rounds):
                tempering = {"temperature": table.temperature, "top_p": table.top_p}
                sampler = Speculative(window, n + 1, first, **tempering)  # type: ignore[arg-type]
                want = specmask.score(table, sampler.law())
                for field in ("log_prob", "trunk", "verify"):
                    torch.testing.assert_close(
                        getattr(found, field)[:, k, f, n],
                        getattr(want, field),
                        rtol=1e-10,
                        atol=1e-9,
                        equal_nan=True,
                    )


def forbid_plain_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("the sweep gave up on a row that it should have scored itself")

    monkeypatch.setattr(module, "score", refused)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the plain recursion got."""
    calls: list[int] = []

    def score(table: Conditionals, law: SpeculativeLaw) -> specmask.Score:
        calls.append(len(table.lengths))
        return specmask.score(table, law)

    monkeypatch.setattr(module, "score", score)
    return calls


@pytest.mark.parametrize("length", [1, 2, 12, 33, 70])
def test_every_setting_is_scored_as_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Around the size of a block of prefixes, and beyond it."""
    forbid_plain_recursion(monkeypatch)
    assert_as_scored(synthetic(3, length), WINDOWS, 4)


def test_on_a_network_with_rows_of_many_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of one row, so that rows come out where they belong."""
    monkeypatch.setattr(module, "_MEMORY", 1.0)
    forbid_plain_recursion(monkeypatch)
    model = specmask.wrap(tiny_network(length=9, vocab_size=4))
    tokens = torch.randint(4, (6, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 1, 4, 9, 2, 4])
    order = specmask.random_orders(tokens, 0, 0, lengths)
    table = specmask.conditionals(model, tokens, order, lengths=lengths, temperature=0.7)
    assert_as_scored(table, WINDOWS, 3)


def test_a_thousand_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities of e⁻⁷⁰⁰⁰, which float64 cannot hold."""
    forbid_plain_recursion(monkeypatch)
    table = synthetic(1, 1024, nats=14.0)
    windows: list[Window] = [CosineWindow(0.1), FullWindow()]
    found = sweep(table, windows, 2)
    assert float(found.log_prob.max()) < -6000
    for k, window in enumerate(windows):
        want = specmask.score(table, Speculative(window, 2, "accept").law())
        for field in ("log_prob", "trunk", "verify"):
            torch.testing.assert_close(getattr(found, field)[:, k, 1, 1], getattr(want, field))


def test_ratios_out_of_range_are_scored_in_log_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that is 3 nats a rank worse right after its trunk pass: e⁻⁶⁰⁰ of the reference."""
    calls = counted(monkeypatch)
    table = synthetic(2, 200)
    age = torch.arange(200) - torch.arange(200)[:, None]
    assert table.log_p is not None
    for x in (table.log_q, table.log_p):
        x[1, (age >= 0) & (age < 8)] -= 3
    assert_as_scored(table, [FullWindow(), ConstantWindow(4)], 2)
    assert calls
    assert set(calls) == {1}


def test_impossible_rows_are_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nucleus leaves out tokens: some settings reach such a row, some cannot."""
    calls = counted(monkeypatch)
    model = specmask.wrap(tiny_network())
    tokens = torch.randint(3, (40, 5), generator=torch.Generator().manual_seed(1))
    order = specmask.random_orders(tokens)
    table = specmask.conditionals(model, tokens, order, temperature=0.7, top_p=0.8)
    assert_as_scored(table, WINDOWS, 3)
    assert calls
    impossible = sweep(table, WINDOWS, 3).log_prob == -math.inf
    assert 0 < int(impossible.sum()) < impossible.numel()


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    sweep(synthetic(3, 6), [FullWindow()], 1, lambda *at: seen.append(at))
    assert seen[-1] == (3, 3)


def test_tables_that_cannot_be_swept_are_refused() -> None:
    table = synthetic(1, 6)
    band = Conditionals(*vars(table).values())
    band.log_q[0, 0, 3] = math.nan
    refuse(lambda: sweep(band, [FullWindow()], 1), "lacks conditionals")
    draft = Conditionals(synthetic(1, 6).log_q, None, table.lengths, 1.0, 1.0)
    refuse(lambda: sweep(draft, [FullWindow()], 1), "target=True")
    refuse(lambda: sweep(synthetic(1, 6), [], 1), "no windows")
    refuse(lambda: sweep(synthetic(1, 6), [FullWindow()], 0), "rounds=0")


@pytest.mark.slow
def test_ten_thousand_settings_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows of 256, on the processor's clock: on two idle cores at most that."""
    forbid_plain_recursion(monkeypatch)
    table = synthetic(64, 256)
    steps = torch.logspace(math.log10(1 / 512), 0, 440).tolist()
    windows = [*map(CosineWindow, steps), *map(ConstantWindow, range(1, 61))]
    began = time.process_time()
    found = sweep(table, windows, 10)
    assert time.process_time() - began < 60 * torch.get_num_threads()
    assert found.log_prob[0].numel() == 10_000
