"""Where the seconds of a pass go: the network by part, draws, and what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from specmask.bench.speed_cases import Case
from specmask.bench.speed_loops import ours
from specmask.host import now
from specmask.models.checkpoint import Model
from specmask.models.hybrid import HybridNetwork
from specmask.samplers import base as parts_of_samplers
from specmask.samplers import speculative as speculative_sampling


@dataclass
class Clock:
    """Seconds by part; a part inside another is not counted twice."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _inside: bool = False

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside, began = True, now(self.device)
        try:
            yield
        finally:
            self._inside = False
            self.seconds[part] = self.seconds.get(part, 0.0) + now(self.device) - began

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **settings: Any) -> Any:
            with self(part):
                return function(*args, **settings)

        return timed


_NETWORK = {
    "trunk": ("trunk",),
    "unembedding": ("draft_features", "logits"),
    "head": ("prefix", "target_features"),
}
_DRAWS = (
    "uniform", "draw", "probabilities", "log_probabilities", "accept_prefix", "accept_block",
    "draw_residual", "run_ratio",
)  # fmt: skip
PARTS = (*_NETWORK, "draws", "bookkeeping")


class TimedNetwork:
    """A network whose calls are timed by part."""

    def __init__(self, network: HybridNetwork, clock: Clock) -> None:
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(network, name))
        for part, names in _NETWORK.items():
            for name in names:
                setattr(self, name, clock.wrap(part, getattr(network, name)))
        self.draft_logits, self.verify = network.draft_logits, network.verify
        self.parameters = network.parameters  # they say where it is


def parts(model: Model, case: Case, seed: int = 0) -> dict[str, float]:
    """Seconds by part of the sampler's run, of `PARTS`."""
    clock = Clock(model.device)
    assert isinstance(model.network, HybridNetwork)
    network: Any = TimedNetwork(model.network, clock)
    with _timed_draws(clock):
        whole = ours(Model(network), case, seed).seconds
    spent = {part: clock.seconds.get(part, 0.0) for part in PARTS[:-1]}
    return {**spent, "bookkeeping": whole - sum(spent.values())}


@contextmanager
def _timed_draws(clock: Clock) -> Iterator[None]:
    """Everything that samplers take from `specmask.categorical`, timed as draws."""
    changes = [
        patch.object(module, name, clock.wrap("draws", getattr(module, name)))
        for module in (parts_of_samplers, speculative_sampling)
        for name in _DRAWS
        if hasattr(module, name)
    ]
    for change in changes:
        change.start()
    try:
        yield
    finally:
        for change in changes:
            change.stop()
