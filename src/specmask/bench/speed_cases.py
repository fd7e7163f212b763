"""What `specmask bench-speed` times: settings, and networks that exist in size alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specmask.bench.run import Point, settings_of
from specmask.masking import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from specmask.models.checkpoint import Model
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.samplers import Sampler, Speculative

TUNED = Speculative(LinearWindow(0.133), rounds=4)
"""A setting of few passes on character models (docs/chooser/laws.md)."""


@dataclass(frozen=True)
class Case:
    """What is timed: so many rows of a length on a model, filled by a sampler.

    known: share of each row that is given. passes: trunk passes to time; None fills the rows.
    """

    scale: str
    batch: int
    length: int
    sampler: Sampler
    known: float = 0.0
    passes: int | None = None
    vocab_size: int | None = None

    def about(self) -> Point:
        """For the results file."""
        return {
            "scale": self.scale,
            "batch": self.batch,
            "length": self.length,
            "known": self.known,
            "vocab_size": self.vocab_size,
            "settings": settings_of(self.sampler),
        }


def gpt2_network(
    width: int = 768,
    layers: int = 12,
    length: int = 1024,
    vocab_size: int = 50257,
    seed: int = 0,
    heads: int = 12,
) -> HybridTransformer:
    """A network of GPT-2's sizes with random weights, and drafts that are sometimes rejected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HybridTransformer(
            HybridConfig(vocab_size, length, width, heads, trunk_layers=layers - 1)
        )
        # At initialisation the target is the draft; this is a head that has learned something.
        torch.nn.init.normal_(network.head.out.weight, std=0.5 * width**-0.5)
        for norm in (network.trunk.norm, network.head.norm):
            torch.nn.init.constant_(norm.get_parameter("weight"), 4.0)
    return network.eval()


def like(model: Model, vocab_size: int, seed: int = 0) -> HybridTransformer:
    """A network of a model's sizes with random weights and another vocabulary."""
    config: Any = model.network.config  # type: ignore[attr-defined]
    layers = config.trunk_layers + config.head_layers
    return gpt2_network(config.width, layers, config.length, vocab_size, seed, config.heads)


def small_cases(scale: str, length: int, batches: Sequence[int]) -> list[Case]:
    """By batch, length and window, on a small model."""
    middle = batches[len(batches) // 2]
    cases = [Case(scale, batch, length, TUNED) for batch in batches]
    cases += [Case(scale, middle, length // n, TUNED) for n in (4, 2)]
    cases += [
        Case(scale, middle, length, Speculative(window, rounds=2))
        for window in (ConstantWindow(4), ConstantWindow(12), CosineWindow(0.05), FullWindow())
    ]
    return cases


def vocabulary_cases(length: int, batch: int) -> list[Case]:
    """By vocabulary, on random networks of a small model's other sizes."""
    return [Case("random", batch, length, TUNED, 0.5, 4, size) for size in (27, 1000, 10000, 50257)]


def gpt2_cases(batches: Sequence[int], passes: int) -> list[Case]:
    """By batch, at GPT-2's sizes: half of each row is given."""
    sampler = Speculative(CosineWindow(0.02), rounds=4)
    return [Case("gpt2", batch, 1024, sampler, 0.5, passes, 50257) for batch in batches]
