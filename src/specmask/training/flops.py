"""How much arithmetic training is, and how fast the chip does it at best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from specmask.models.blocks import Blocks
from specmask.models.hybrid import DraftNetwork

_SECONDS = 0.3
_SIZE = {"cuda": 8192}


@dataclass(frozen=True)
class Flops:
    """Floating point operations of training, forward and backward, by what they grow with.

    Matrix products alone: linear maps, attention's two, unembeddings. A multiplication and an
    addition are two. What is recomputed or spent on padding is not counted: it teaches nothing.
    Causal attention counts as a whole one, as is usual.
    """

    token: float
    """Of every token."""
    attended: float
    """Of every pair of tokens of a row."""
    scored: float
    """Of every masked token: its logits under both laws."""

    def per_token(self, length: float, share: float) -> float:
        """Of a token in rows of a length of which a share (0 to 1) is masked and scored."""
        return self.token + self.attended * length + self.scored * share

    def of_batch(self, lengths: Tensor, revealed: Tensor) -> float:
        """Of (B,) rows, by their tokens and how many of these are revealed."""
        sizes = lengths.double()
        return float(
            self.token * sizes.sum()
            + self.attended * sizes.square().sum()
            + self.scored * (lengths - revealed).sum()
        )


def count_flops(network: DraftNetwork) -> Flops:
    """From the sizes of the network and from what of it is trained.

    Of 2 a weight forward, backward does as many again for a gradient that passes through, and as
    many again for that of a weight that is trained.
    """
    trunk = network.trunk
    draft = [trunk] if not hasattr(trunk, "backbone") else [trunk.backbone, trunk.draft]
    laws = [draft, [network.head]] if network.head_layers else [draft]
    token = attended = scored = 0.0
    passes = False  # whether anything so far has a gradient
    for law in laws:
        for part in filter(None, law):
            passes = passes or any(p.requires_grad for p in part.parameters())
            token += sum(_map(layer, passes) for layer in _maps(part))
            attended += 4.0 * _layers(network, part) * network.config.width * (3 if passes else 1)
        scored += _symbols(network, passes)
    return Flops(token, attended, scored)


def _maps(part: nn.Module) -> list[nn.Linear]:
    """Linear maps at every token; that to the symbols is counted by itself."""
    symbols = getattr(part, "unembed", None)
    return [m for m in part.modules() if isinstance(m, nn.Linear) and m is not symbols]


def _map(layer: nn.Linear, passes: bool) -> float:
    return 2.0 * layer.weight.numel() * (1 + passes + layer.weight.requires_grad)


def _layers(network: DraftNetwork, part: nn.Module) -> int:
    own = sum(len(m) for m in part.modules() if isinstance(m, Blocks))
    return own or int(network.config.pretrained_layers)


def _symbols(network: DraftNetwork, passes: bool) -> float:
    """Of the logits at one token."""
    trunk = network.trunk
    if (predictor := getattr(trunk, "predictor", None)) is not None:
        return sum(_map(layer, passes) for layer in _maps(predictor))
    weight = trunk.embed.weight if trunk.unembed is None else trunk.unembed.weight
    return 2.0 * network.vocab_size * weight.shape[1] * (1 + passes + bool(weight.requires_grad))


@lru_cache
def measured_peak(device: torch.device, precision: str) -> float:
    """FLOPs a second of the fastest of large matrix products, 0.3 s of them, on the device.

    Measured, since what a chip's sheet promises is of another power limit, clock and thread count.
    """
    size = _SIZE.get(device.type, 1024)
    generator = torch.Generator(device).manual_seed(0)  # the run's own random state stays
    a = torch.rand(size, size, device=device, generator=generator)
    a = a.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    best, began, out = float("inf"), time.perf_counter(), torch.empty_like(a)
    _wait(device)
    while time.perf_counter() - began < _SECONDS or best == float("inf"):
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
