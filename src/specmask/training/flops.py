"""How much arithmetic training is, and how fast the chip does it at best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from specmask.models.blocks import Blocks
from specmask.models.hybrid import DraftNetwork, Head

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
    """Of every masked token: its logits under both laws, and the inside of the last causal block,
    which other ranks need for their keys and values alone."""
    symbol: float
    """Of every symbol, or token if these are fewer: what the head reads of it."""
    symbols: int
    """How many there are."""

    def of_batch(self, lengths: Tensor, revealed: Tensor) -> float:
        """Of (B,) rows, by their tokens and how many of these are revealed."""
        sizes = lengths.double()
        return float(
            self.token * sizes.sum()
            + self.attended * sizes.square().sum()
            + self.scored * (lengths - revealed).sum()
            + self.symbol * sizes.sum().clamp(max=self.symbols)
        )


def count_flops(network: DraftNetwork) -> Flops:
    """From the sizes of the network and from what of it is trained.

    Of 2 a weight forward, backward does as many again for a gradient that passes through, and as
    many again for that of a weight that is trained.
    """
    trunk, width = network.trunk, network.config.width
    token = attended = scored = symbol = 0.0
    passes = False  # whether anything so far has a gradient
    draft = [trunk] if not hasattr(trunk, "backbone") else [trunk.backbone, trunk.draft]
    for part in filter(None, draft):
        passes = passes or _trained(part)
        token += sum(_map(layer, passes) for layer in _maps(part))
        attended += 4.0 * _layers(network, part) * width * (3 if passes else 1)
    scored += _logits(network, passes)
    if network.head_layers:
        head: Head = network.get_submodule("head")  # type: ignore[assignment]
        symbol = _map(head.combine, passes) / 3  # its two other thirds read hidden states
        token += 2 * symbol
        passes = passes or _trained(head)
        *_, last = head.blocks
        late = {last.attention_out, last.mlp_in, last.mlp_out, head.out}
        scored += sum(_map(layer, passes) for layer in late)
        others = set(_maps(head)) - late - {head.combine}
        token += sum(_map(layer, passes) for layer in others)
        attended += 4.0 * len(head.blocks) * width * (3 if passes else 1)
        scored += _logits(network, passes)
    return Flops(token, attended, scored, symbol, max(network.vocab_size, network.mask_id + 1))


def _trained(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def _maps(part: nn.Module) -> list[nn.Linear]:
    """Linear maps at every token; that to the symbols is counted by itself."""
    symbols = getattr(part, "unembed", None)
    return [m for m in part.modules() if isinstance(m, nn.Linear) and m is not symbols]


def _map(layer: nn.Linear, passes: bool) -> float:
    return 2.0 * layer.weight.numel() * (1 + passes + layer.weight.requires_grad)


def _layers(network: DraftNetwork, part: nn.Module) -> int:
    own = sum(len(m) for m in part.modules() if isinstance(m, Blocks))
    return own or int(network.config.pretrained_layers)


def _logits(network: DraftNetwork, passes: bool) -> float:
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
