from __future__ import annotations

import pytest
import torch
from torch import nn

from specmask.training.ema import Ema, copy_into, decay_at, weights


def test_averages_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 8.0]))
    ema = Ema({"weight": weight}, decay=0.15)
    with torch.no_grad():
        weight.copy_(torch.tensor([10.0, 8.0]))
    ema.update(0)  # decay 1/10: 0.1·0 + 0.9·10
    assert ema.averages["weight"].tolist() == pytest.approx([9.0, 8.0])
    with torch.no_grad():
        weight.copy_(torch.tensor([29.0, 8.0]))
    ema.update(1)  # decay min(.15, 2/11): 0.15·9 + 0.85·29
    assert ema.averages["weight"].tolist() == pytest.approx([26.0, 8.0])


def test_the_decay_grows_to_its_bound() -> None:
    decays = [decay_at(t, 0.9) for t in (0, 1, 8, 80, 1000)]
    assert decays == pytest.approx([0.1, 2 / 11, 0.5, 0.9, 0.9])


def test_applied_puts_the_weights_back_even_after_an_error() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"weight": weight}, decay=0.5)
    with torch.no_grad():
        weight.fill_(3.0)

    def fail_inside() -> None:
        with ema.applied():
            assert weight.item() == 1.0
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert weight.item() == 3.0
    assert ema.averages["weight"].item() == 1.0


def test_shared_weights_are_listed_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    assert list(weights(network)) == ["0.weight"]


@pytest.mark.parametrize("source", [torch.zeros(1), torch.zeros(2, dtype=torch.float64)])
def test_copying_never_broadcasts_or_casts(source: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        copy_into({"w": torch.zeros(2)}, {"w": source})
