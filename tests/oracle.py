"""Networks small enough to be known completely, and the statistics that judge a sampler by them.

`tiny_network` is a real network with weights far from initialisation. `Enumerated` looks up all its
answers, so that a million samples cost seconds. `Chain`, from the package, is a network whose draft
and target are the exact conditionals of a hidden Markov chain: its law is known without a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from specmask import HybridConfig, HybridTransformer
from specmask.bench.known_chain import KnownChain as Chain
from specmask.bench.known_chain import all_rows
from specmask.bench.known_chain import row_index as code

__all__ = ["Chain", "all_rows", "code"]  # the rest is defined here

FALSE_ALARM = 1e-6
"""Odds with which one χ² test fails although the code is right (the seeds are fixed: once)."""


# -------------------------------------------------------------------------------------- networks


def perturb(network: HybridTransformer, scale: float, seed: int) -> HybridTransformer:
    """Move every weight off its initial value, so that draft and target differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.add_(scale * noise)
    return network.eval()


def tiny_network(
    head_layers: int = 1,
    *,
    vocab_size: int = 3,
    length: int = 5,
    width: int = 8,
    scale: float = 0.6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    residual: bool = True,
    tie_embeddings: bool = True,
    dropout: float = 0.0,
) -> HybridTransformer:
    """A `HybridTransformer` with random weights, by default V = 3, D = 5, float64."""
    config = HybridConfig(
        vocab_size=vocab_size,
        length=length,
        width=width,
        heads=2,
        trunk_layers=2,
        head_layers=head_layers,
        mlp_hidden=2 * width,
        residual=residual,
        tie_embeddings=tie_embeddings,
        dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HybridTransformer(config)
    return perturb(network, scale, seed).to(dtype)


class Draft:
    """A network's draft alone: a denoiser that cannot verify."""

    def __init__(self, network: HybridTransformer) -> None:
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(network, name))
        self.trunk, self.draft_logits = network.trunk, network.draft_logits


def all_orders(length: int) -> Tensor:
    """(D!, D): every order, the first one left to right."""
    return torch.tensor(list(permutations(range(length))))


def masked(tokens: Tensor, order: Tensor, revealed: Tensor, mask_id: int) -> Tensor:
    """(B, L) rows in which only the ranks below `revealed` (B,) can be seen."""
    rank = order.argsort(1)
    return tokens.masked_fill(rank >= revealed[:, None], mask_id)


@dataclass(frozen=True)
class EnumeratedPrefix:
    order: Tensor  # (B,) index of the order
    revealed: Tensor
    rows: Tensor

    def take(self, rows: Tensor) -> EnumeratedPrefix:
        return EnumeratedPrefix(self.order[rows], self.revealed[rows], self.rows[rows])


class Enumerated:
    """Every answer of a tiny network, computed one by one with `features` and then looked up.

    Its target never touches the network's cache of keys and values.
    """

    def __init__(self, network: HybridTransformer) -> None:
        self.network = network
        self.vocab_size, self.mask_id, self.length = (
            network.vocab_size,
            network.mask_id,
            network.length,
        )
        self.trunk_layers, self.head_layers = network.trunk_layers, network.head_layers
        vocab, length = self.vocab_size, self.length
        self.orders = all_orders(length)
        self.order_index = torch.full((length**length,), -1)
        self.order_index[code(self.orders, length)] = torch.arange(len(self.orders))
        patterns, ranked = all_rows(vocab + 1, length), all_rows(vocab, length)
        every = torch.arange(length)
        with torch.inference_mode():
            hidden = network.trunk(patterns, torch.full((len(patterns),), length))
            self.draft = network.draft_logits(hidden, every.expand_as(patterns))
            self.target = torch.stack([self._targets(order, ranked) for order in self.orders])

    def _targets(self, order: Tensor, ranked: Tensor) -> Tensor:
        """(D, V^D, D, V): target logits of one order at every prefix and row."""
        orders = order.expand_as(ranked)
        tokens = torch.zeros_like(ranked).scatter(1, orders, ranked)
        logits = []
        for i in range(self.length):
            seen = masked(tokens, orders, torch.full((len(tokens),), i), self.mask_id)
            _, target = self.network.features(seen, tokens, orders)
            logits.append(self.network.logits(target))
        return torch.stack(logits)

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        assert bool((lengths == self.length).all())
        return code(tokens, self.vocab_size + 1)[:, None, None]

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        return self.draft[hidden[:, 0], positions]

    def prefix(
        self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor
    ) -> EnumeratedPrefix:
        index = self.order_index[code(order, self.length)]
        return EnumeratedPrefix(index, revealed, torch.arange(len(tokens)))

    def verify(self, prefix: EnumeratedPrefix, ranks: Tensor, drafts: Tensor) -> Tensor:
        row = code(drafts.clamp(max=self.vocab_size - 1), self.vocab_size)
        ranks = ranks.clamp(max=self.length - 1)
        return self.target[prefix.order[:, None], prefix.revealed[:, None], row[:, None], ranks]


@cache
def enumerated(head_layers: int) -> Enumerated:
    """The tiny network of so many head layers, enumerated; V = 3, D = 5."""
    return Enumerated(tiny_network(head_layers))


# ------------------------------------------------------------------------------------ statistics


def chi_square(counts: Tensor, probabilities: Tensor, least: float = 10.0) -> float:
    """p-value of Pearson's χ²; cells that expect fewer than `least` are merged into one."""
    counts, probabilities = counts.double().flatten(), probabilities.double().flatten()
    expected = probabilities * counts.sum() / probabilities.sum()
    small = expected < least
    if bool(small.any()):
        counts = torch.cat((counts[~small], counts[small].sum()[None]))
        expected = torch.cat((expected[~small], expected[small].sum()[None]))
        if expected[-1] < 1:  # one cell that hardly exists: seen at all is too much
            if counts[-1] > 20:
                return 0.0
            counts, expected = counts[:-1], expected[:-1]
    assert len(counts) >= 2, "fewer than two cells: nothing is tested"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def standard_errors(differences: Tensor) -> float:
    """How many standard errors the mean of paired differences is from zero."""
    mean, spread = differences.mean(), differences.std() / len(differences) ** 0.5
    if float(spread) < 1e-12:
        return 0.0 if abs(float(mean)) < 1e-9 else float("inf")
    return abs(float(mean / spread))
