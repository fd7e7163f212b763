"""Muon by shapes is torch's own Muon."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specmask.training.muon import Muon, orthogonal

SHAPES = [(8, 24), (8, 24), (24, 8), (16, 16), (8, 24)]


def _run(kind: type[torch.optim.Muon], steps: int = 4, **settings: Any) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = kind(
        [
            {"params": weights[:3], "lr": 0.02, "weight_decay": 0.1},
            {"params": weights[3:], "lr": 0.05, "weight_decay": 0.0},
        ],
        **settings,
    )
    for step in range(steps):
        for k, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=draw)
            weight.grad = None if (step, k) == (0, 1) else gradient  # one comes later
        optimizer.step()
    return [w.detach() for w in weights] + [optimizer.state[w]["momentum_buffer"] for w in weights]


@pytest.mark.parametrize("settings", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False}])
def test_steps_are_those_of_torch(settings: dict[str, Any]) -> None:
    both = _run(Muon, **settings), _run(torch.optim.Muon, **settings)
    for ours, theirs in zip(*both, strict=True):
        # Products are in bfloat16: a step of 0.02 to 0.05 moves by some thousandths of itself.
        assert float((ours - theirs).abs().max()) < 2e-3


def test_a_step_moves_more_than_the_tolerance() -> None:
    one, two = _run(Muon, 3), _run(Muon, 4)
    assert all(float((a - b).abs().max()) > 5e-3 for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("shape", [(3, 12, 40), (3, 40, 12)])
def test_singular_values_end_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7).float())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_a_closure_is_called_with_gradients() -> None:
    weight = torch.nn.Parameter(torch.eye(4))

    def loss() -> torch.Tensor:
        weight.grad = None
        total = (weight**2).sum()
        total.backward()
        return total

    assert Muon([weight], lr=0.1).step(loss).item() == 4.0
    assert not torch.equal(weight.detach(), torch.eye(4))
