"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from specmask.models.hybrid import DraftNetwork, named_once


def decay_at(updates: int, decay: float) -> float:
    """The decay of the next update after `updates` of them: min(decay, (1 + t) / (10 + t)).

    The short memory of the first steps forgets the random start.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """ema ← d·ema + (1 − d)·weights, for the trained parameters alone; others do not move.

    Args:
        parameters: name → parameter, as in the network. Kept by reference; the averages are copies
            of the same dtype on the same device.
        decay: d of the long run, at least 0 and below 1.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._decay = decay
        self._parameters = dict(parameters)
        self.averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take the present weights in; `updates` is how many updates went before this one."""
        weight = 1 - decay_at(updates, self._decay)
        torch._foreach_lerp_(
            list(self.averages.values()), [p.detach() for p in self._parameters.values()], weight
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network holds the averages; after it, its own weights, unchanged."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        copy_into(self._parameters, self.averages)
        try:
            yield
        finally:
            copy_into(self._parameters, own)


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Overwrite each target with the source of the same name; nothing is cast or broadcast."""
    for name, target in targets.items():
        source = sources[name]
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(
                f"{name}: {tuple(source.shape)} {source.dtype} does not fit "
                f"{tuple(target.shape)} {target.dtype}"
            )
        target.copy_(source)


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Name → own parameter or saved buffer, each shared tensor once, under its first name."""
    if isinstance(network, DraftNetwork):
        return network.own_state()
    return named_once(network.state_dict(keep_vars=True))


def trained(network: nn.Module) -> dict[str, Tensor]:
    """Name → parameter, of those that get gradients."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
