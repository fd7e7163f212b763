"""The law of the orders and of the numbers revealed that a training step draws."""

from __future__ import annotations

import math

import pytest
import torch

from oracle import FALSE_ALARM, chi_square
from specmask.training.loss import draw_masks

LENGTH, STEPS = 7, 4000


@pytest.mark.parametrize("revealed", ["uniform", "log"])
def test_revealed_numbers_have_their_law(revealed: str) -> None:
    """One row a step: within a batch they are even on purpose. χ² at the suite's odds."""
    lengths = torch.tensor([LENGTH])
    found = torch.cat([draw_masks(1, step, lengths, LENGTH, revealed)[1] for step in range(STEPS)])
    law = (
        torch.ones(LENGTH)
        if revealed == "uniform"
        else torch.tensor([math.log((k + 2) / (k + 1)) for k in range(LENGTH)])
    )
    assert chi_square(found.bincount(minlength=LENGTH).double(), law.double()) > FALSE_ALARM


@pytest.mark.parametrize("revealed", ["uniform", "log"])
def test_a_batch_is_spread_evenly(revealed: str) -> None:
    """Of B rows of one length, each number occurs its share of times, give or take one."""
    rows = 64
    _, found = draw_masks(2, 0, torch.full((rows,), LENGTH), LENGTH, revealed)
    edges = [k / LENGTH for k in range(LENGTH + 1)]
    if revealed == "log":
        edges = [math.log(k + 1) / math.log(LENGTH + 1) for k in range(LENGTH + 1)]
    for k, count in enumerate(found.bincount(minlength=LENGTH).tolist()):
        assert abs(count - rows * (edges[k + 1] - edges[k])) < 1


@pytest.mark.parametrize("revealed", ["uniform", "log"])
def test_ragged_rows_reveal_fewer_than_their_length(revealed: str) -> None:
    lengths = torch.tensor([1, 2, 5, 9])
    for step in range(200):
        order, found = draw_masks(3, step, lengths, 9, revealed)
        assert bool((found >= 0).all())
        assert bool((found < lengths).all())
        assert order.sort(1).values.tolist() == [list(range(9))] * 4
