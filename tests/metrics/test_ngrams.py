"""Distinct n-grams against counts by hand."""

from __future__ import annotations

import math

import pytest
import torch

from specmask.errors import UserError
from specmask.metrics.ngrams import distinct_ngrams


def test_counts_by_hand() -> None:
    """abab: 2 of 3 pairs differ; abcd: 3 of 3."""
    rows = torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]])
    assert distinct_ngrams(rows, 2).mean == pytest.approx(5 / 6)
    assert distinct_ngrams(rows, 1).mean == pytest.approx(6 / 8)
    assert distinct_ngrams(rows, 4).mean == 1.0
    assert distinct_ngrams(rows[:1], 2).mean == pytest.approx(2 / 3)


def test_padding_does_not_count() -> None:
    rows = torch.tensor([[0, 0, 0, 9, 9], [0, 1, 2, 3, 4]])
    assert distinct_ngrams(rows, 2, [3, 5]).mean == pytest.approx((1 + 4) / (2 + 4))
    assert distinct_ngrams(rows, 2, torch.tensor([3, 5])) == distinct_ngrams(rows, 2, [3, 5])


def test_the_standard_error_is_that_of_a_mean_where_rows_have_one_length() -> None:
    rows = torch.randint(3, (20, 9), generator=torch.Generator().manual_seed(0))
    each = torch.tensor([distinct_ngrams(row[None], 3).mean for row in rows])
    found = distinct_ngrams(rows, 3)
    assert found.mean == pytest.approx(float(each.mean()))
    assert found.standard_error == pytest.approx(float(each.std()) / math.sqrt(20), rel=1e-5)


def test_samples_too_short_measure_nothing() -> None:
    assert math.isnan(distinct_ngrams([[1], [2]], 2).mean)
    with pytest.raises(UserError, match="n=0"):
        distinct_ngrams([[1]], 0)
