"""What benchmarks measure on an accelerator is what they measure on the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch

import specmask
from accelerator import accelerator, move
from oracle import tiny_network
from specmask.bench.run import Domain, law_points, sample_point
from specmask.bench.tune import Budget, tune
from specmask.masking import CosineWindow

SAMPLERS = [
    specmask.Speculative(CosineWindow(0.3), rounds=2),
    specmask.Speculative(CosineWindow(0.3), rounds=2, order="left-to-right"),
    specmask.Speculative(CosineWindow(0.5), rounds=2, verification="block"),
    specmask.Ancestral(3, "fixed"),
    specmask.AnyOrder(),
]
SAMPLED = [*SAMPLERS, specmask.ReMDM(3)]
TOKENS = torch.tensor([[0, 1, 2, 1, 0, 2], [2, 2, 1, 0, 1, 1], [1, 0, 0, 2, 2, 1]])


def _measured(far: bool) -> list[dict[str, Any]]:
    network = tiny_network(length=6, dtype=torch.float32)
    model = specmask.wrap(move(network) if far else network)
    lengths = torch.tensor([6, 6, 6])
    points = law_points(model, TOKENS, SAMPLERS)
    points += [sample_point(model, one, Domain(), 4, batch_size=4) for one in SAMPLED]
    return [*points, *tune(model, TOKENS, lengths, Budget("nfe", 6), rounds=2, own=2).points]


def test_laws_samples_and_tuning_on_an_accelerator() -> None:
    """Guards against numbers of two devices in one operation, which fail on a GPU alone."""
    near = _measured(far=False)
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()), accelerator():
        far = _measured(far=True)
    assert len(far) == len(near)
    for one, other in zip(near, far, strict=True):
        for key in ("kind", "sampler", "settings"):
            assert one[key] == other[key]
        for key in {"nfe", "bits", "entropy", "accepted"} & set(one):
            assert one[key] == pytest.approx(other[key], rel=1e-5)  # float32, other kernels
