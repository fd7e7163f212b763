"""A run small enough to repeat: width 16, 2 + 1 layers, five symbols of which one is frequent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.training.config import TrainConfig
from specmask.training.loop import train

VOCAB, LENGTH, ROWS = 5, 16, 8


@pytest.fixture
def make_network() -> Callable[[], HybridTransformer]:
    """The same network at every call, its weights so large that no gradient vanishes."""

    def make() -> HybridTransformer:
        torch.manual_seed(0)
        network = HybridTransformer(HybridConfig(VOCAB, LENGTH, 16, 2, 2, 1))
        for parameter in network.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.25)
        return network

    return make


@pytest.fixture
def batches() -> Callable[[int], Tensor]:
    """Mostly zeros: 1.0 nats a token, where equal odds have 1.6."""

    def make(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        kept = torch.rand(ROWS, LENGTH, generator=generator) < 0.3
        return torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator) * kept

    return make


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    def make(**changes: object) -> TrainConfig:
        settings = {
            "steps": 40,
            "batch_size": ROWS,
            "lr": 1e-2,
            "warmup": 5,
            "log_every": 7,
            "eval_every": 10,
            "save_every": 10,
            "save_every_seconds": 0.0,
        }
        return TrainConfig(**{**settings, **changes})

    return make


@pytest.fixture
def crash_at() -> Callable[..., Callable[[int], Tensor]]:
    """Batches that do something nasty when a step is reached."""

    def make(batches: Callable[[int], Tensor], step: int, deed: Callable[[], None]):
        def nasty(at: int) -> Tensor:
            if at == step:
                deed()
            return batches(at)

        return nasty

    return make


@pytest.fixture
def whole_run(tmp_path: Path, make_network, batches, make_config) -> Path:
    """A finished run's folder: 40 steps, checkpoints of steps 30 and 40."""
    train(make_network(), batches, make_config(), tmp_path / "whole", validation=batches(10**6))
    return tmp_path / "whole"
