from __future__ import annotations

import math

import pytest

from specmask.errors import UserError
from specmask.training.config import TrainConfig, lr_factor


def test_schedule_by_hand() -> None:
    config = TrainConfig(steps=9, warmup=4, final_lr=0.2)
    # A quarter more at each of 4 warm-up steps; then cosine over steps 4..8: 1 at 4, .2 at 8,
    # their mean at 6, and .2 + .8·(1 + cos 45°)/2 at 5.
    by_hand = [0.25, 0.5, 0.75, 1.0, 1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6]
    by_hand += [0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]
    assert [lr_factor(step, config) for step in range(9)] == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (5, 5), (3, 0)])
def test_schedule_of_degenerate_runs_stays_in_range(steps: int, warmup: int) -> None:
    config = TrainConfig(steps=steps, warmup=warmup)
    assert all(0 < lr_factor(step, config) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"batch_size": 0},
        {"accumulation": 0},
        {"accumulation": 3},  # does not divide 64
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": "high"},
        {"warmup": -1},
        {"warmup": 1001},
        {"final_lr": 1.5},
        {"final_lr": math.nan},
        {"weight_decay": -0.1},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"betas": ("a", "b")},
        {"clip": 0.0},
        {"ema": 1.0},
        {"ema": math.nan},
        {"precision": "fp16"},
        {"optimizer": "adam"},
        {"revealed": "cosine"},
        {"weighting": "rows"},
        {"target_weight": -1.0},
        {"target_weight": math.inf},
        {"distil": 1.5},
        {"distil": math.nan},
        {"head_lr": 0.0},
        {"muon_lr": 0.0},
        {"compile": 1},
        {"checkpoint_activations": 1},
        {"frozen_trunk": "yes"},
        {"seed": -1},
        {"seed": 2**32},
        {"log_every": 0},
        {"eval_every": 0},
        {"eval_rows": 0},
        {"save_every": -1},
        {"save_every_seconds": -1.0},
        {"save_every_seconds": math.nan},
        {"keep": 1},
    ],
    ids=str,
)
def test_every_field_is_checked_and_named(changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(UserError, match=name):
        TrainConfig(**{"steps": 1000, **changes})


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(UserError, match="Did you mean 'adamw'"):
        TrainConfig(steps=1, warmup=0, optimizer="adam")
