from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.errors import UserError
from specmask.metrics import Estimate
from specmask.metrics.entropy import bits_per_character, unigram_entropy


def test_by_hand() -> None:
    # Histograms (4), (2, 2), (1, 1, 2): 0, ln 2 and 1.5 ln 2 nats, that is 0, 1 and 1.5 bits.
    rows = [[5, 5, 5, 5], [0, 1, 0, 1], [7, 2, 3, 7]]
    nats, bits = unigram_entropy(rows), unigram_entropy(rows, unit="bits")
    assert bits.mean == pytest.approx(2.5 / 3, abs=1e-15)
    # Deviations -5/6, 1/6, 4/6: Σ² = 42/36; over n(n-1) = 6.
    assert bits.standard_error == pytest.approx(math.sqrt(42 / 36 / 6), abs=1e-15)
    assert nats.mean == pytest.approx(2.5 / 3 * math.log(2), abs=1e-15)
    assert nats.standard_error == pytest.approx(bits.standard_error * math.log(2), abs=1e-15)
    assert nats.count == bits.count == 3
    assert unigram_entropy(torch.tensor(rows)) == nats


def test_lengths_leave_padding_out() -> None:
    padded = torch.tensor([[1, 2, 9, 9], [3, 3, 3, 4]])
    expected = unigram_entropy([[1, 2], [3, 3, 3]])
    assert unigram_entropy(padded, torch.tensor([2, 3])) == expected
    assert unigram_entropy(padded.tolist(), [2, 3]) == expected
    assert expected.mean == pytest.approx(math.log(2) / 2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=40))
def test_bounds_and_invariances(row: list[int]) -> None:
    value = unigram_entropy([row]).mean
    assert 0 <= value <= math.log(len(row)) + 1e-12
    assert unigram_entropy([[50_000 - token for token in row]]).mean == pytest.approx(value)
    assert unigram_entropy([row + row]).mean == pytest.approx(value)
    if len(set(row)) == len(row):
        assert value == pytest.approx(math.log(len(row)), abs=1e-12)


def test_one_symbol_has_no_entropy() -> None:
    assert unigram_entropy([[3] * 7, [0]]) == Estimate(0.0, 0.0, 2)


def test_one_sample_and_none() -> None:
    one = unigram_entropy([[1, 2]])
    assert one.mean == pytest.approx(math.log(2))
    assert math.isnan(one.standard_error)
    none = unigram_entropy([])
    assert math.isnan(none.mean)
    assert none.count == 0


@pytest.mark.parametrize(
    ("rows", "lengths", "unit", "message"),
    [
        ([[1]], None, "bit", "unknown unit 'bit'.* Did you mean 'bits'"),
        ([[1], []], None, "nats", "sample 1: length 0 of 0"),
        ([[1, 2]], [3], "nats", "sample 0: length 3 of 2 tokens, expected 1 to 2"),
        ([[1, 2]], [-1], "nats", "sample 0: length -1"),
        ([[1, 2]], [2, 2], "nats", "2 lengths for 1 samples"),
    ],
)
def test_bad_arguments_are_refused(
    rows: list[list[int]], lengths: list[int] | None, unit: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        unigram_entropy(rows, lengths, unit)


def test_a_fair_coin_a_character_is_one_bit() -> None:
    assert bits_per_character(math.log(2)) == 1.0
    assert bits_per_character(0.0) == 0.0
    assert bits_per_character(math.log(27)) == pytest.approx(math.log2(27), abs=1e-15)
