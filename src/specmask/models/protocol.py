"""What a sampler may ask of a network, and the meter that counts what it asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor


class Prefix(Protocol):
    """What the verifier keeps of one trunk pass; `rows` are the batch rows it still holds."""

    rows: Tensor

    def take(self, rows: Tensor) -> Prefix:
        """The prefix of some of the rows, by index into the present ones."""
        ...


class Denoiser(Protocol):
    """A network that fills in masks independently.

    Symbols are 0..V−1; the mask is `mask_id`, which is V or, in a pretrained vocabulary, one of
    the symbols. A symbol that is never drawn has the logit −∞.
    """

    vocab_size: int
    mask_id: int
    length: int
    trunk_layers: int
    head_layers: int

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) tokens, (B,) lengths → hidden (B, L, C): one trunk pass.

        The lengths decide shapes: samplers give them on the CPU, whatever device the tokens are on.
        """
        ...

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Hidden, (B, K) positions → (B, K, V) logits, at those positions only."""
        ...


class Verifier(Denoiser, Protocol):
    """A denoiser with a causal head along an order: the target law of self-speculation."""

    def prefix(self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor) -> Prefix:
        """Keys and values of the revealed tracks, computed once per trunk pass.

        `revealed` (B,) decides a shape, and comes on the CPU like `lengths`.
        """
        ...

    def verify(self, prefix: Prefix, ranks: Tensor, drafts: Tensor) -> Tensor:
        """Target logits of a run of ranks: one verify pass.

        Args:
            prefix: from the same trunk pass. Keys and values of `ranks` are kept in it, so that a
                later round needs only its own tracks.
            ranks: (B, K) consecutive ranks per row; L marks padding, whose logits mean nothing.
                Every rank below a row's first must be revealed or have been in an earlier round.
            drafts: (B, L) tokens in rank order: the revealed ones, then the drafts. The logits of
                rank d depend on those below d only.

        Returns:
            (B, K, V) logits.
        """
        ...


class Unembeds(Denoiser, Protocol):
    """A network whose logits are a function of narrower features, one place at a time.

    Not required: with it a sampler holds C features of each place of its window, and the V logits
    of a few places at a time.
    """

    def draft_features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """As `Denoiser.draft_logits`, before the unembedding: (B, K, C)."""
        ...

    def logits(self, features: Tensor) -> Tensor:
        """(..., C) → (..., V)."""
        ...


class UnembedsTarget(Unembeds, Protocol):
    """And so is the target's."""

    def target_features(self, prefix: Any, ranks: Tensor, drafts: Tensor) -> Tensor:
        """As `Verifier.verify`, before the unembedding: (B, K, C)."""
        ...


_BLOCK = {"cpu": 1 << 21}  # what a core's cache still helps with: 16 MB of float64
_BLOCK_ELSEWHERE = 1 << 25  # what keeps a large device busy: 256 MB


def block_size(device: torch.device) -> int:
    """How many logits `Logits` forms at once, but for a single rank of more rows than that."""
    return _BLOCK.get(device.type, _BLOCK_ELSEWHERE)


class Logits:
    """(B, K, V) logits of which only the asked places are formed; index the first two axes.

    At length 1024 with 50257 symbols one row of them has 206 MB, and of most no more is wanted
    than one symbol's probability. Where all of them fit in a block they are formed at once.

    Args:
        features: (B, K, C), or the logits themselves.
        unembed: (..., C) → (..., V); None where `features` are the logits.
        vocab_size: V.
    """

    def __init__(
        self, features: Tensor, unembed: Callable[[Tensor], Tensor] | None, vocab_size: int
    ) -> None:
        rows, ranks = features.shape[:2]
        self.shape = rows, ranks, vocab_size
        self._ranks = max(1, block_size(features.device) // (rows * vocab_size))
        if unembed is not None and ranks <= self._ranks:
            features, unembed = unembed(features), None
        self.dtype, self.device = features.dtype, features.device
        self._features, self._unembed = features, unembed

    def __getitem__(self, places: Any) -> Tensor:
        found = self._features[places]
        return found if self._unembed is None else self._unembed(found)

    def part(self, *places: Tensor) -> Logits:
        """The logits at (B', K') places, by index into the first two axes."""
        return Logits(self._features[places], self._unembed, self.shape[2])

    def blocks(self) -> Iterator[slice]:
        """Slices of the rank axis, each small enough to be formed at once in float64."""
        return (slice(k, k + self._ranks) for k in range(0, self.shape[1], self._ranks))


def draft_logits(network: Denoiser, hidden: Tensor, positions: Tensor) -> Logits:
    """`Denoiser.draft_logits`, formed where they are looked at."""
    if unembeds(network):
        return Logits(network.draft_features(hidden, positions), network.logits, network.vocab_size)
    return Logits(network.draft_logits(hidden, positions), None, network.vocab_size)


def verify(network: Verifier, prefix: Prefix, ranks: Tensor, drafts: Tensor) -> Logits:
    """`Verifier.verify`: the pass is made here, its logits are formed where they are looked at."""
    if unembeds_target(network):
        return Logits(
            network.target_features(prefix, ranks, drafts), network.logits, network.vocab_size
        )
    return Logits(network.verify(prefix, ranks, drafts), None, network.vocab_size)


def unembeds(network: object) -> TypeGuard[Unembeds]:
    """Whether a network has what `Unembeds` asks for; not by `isinstance`, as `can_verify`."""
    return hasattr(network, "draft_features") and hasattr(network, "logits")


def unembeds_target(network: object) -> TypeGuard[UnembedsTarget]:
    """And what `UnembedsTarget` does."""
    return hasattr(network, "target_features") and hasattr(network, "logits")


def can_verify(network: Denoiser) -> TypeGuard[Verifier]:
    """Whether a network has what a `Verifier` has beside a `Denoiser`.

    Not by `isinstance`: from Python 3.12 on that does not see a module's submodules, and a trunk is
    one.
    """
    return hasattr(network, "prefix") and hasattr(network, "verify")


def has_head(network: Denoiser) -> TypeGuard[Verifier]:
    """Whether a network can verify what it drafts."""
    return can_verify(network) and network.head_layers > 0


@dataclass(frozen=True)
class Passes:
    """Passes made for each row, and what they cost in passes of the whole network.

    extra: float64 cost of networks beside it, a planner or a policy, in its layers.
    """

    trunk: Tensor
    verify: Tensor
    extra: Tensor
    trunk_layers: int
    head_layers: int

    @property
    def nfe(self) -> Tensor:
        """(L_nc·n_t + L_c·n_v + extra)/(L_nc + L_c) per row, float64 (method.md §5)."""
        cost = self.trunk_layers * self.trunk.double() + self.head_layers * self.verify.double()
        return (cost + self.extra) / (self.trunk_layers + self.head_layers)

    def take(self, rows: Tensor) -> Passes:
        return replace(
            self, trunk=self.trunk[rows], verify=self.verify[rows], extra=self.extra[rows]
        )


class Meter:
    """A network that counts its own passes per row, so that a sampler cannot miscount them.

    `rows` names the rows of the batch that the next calls are about; the driver sets it.
    """

    def __init__(self, network: Denoiser, rows: int, device: torch.device | str = "cpu") -> None:
        self._network = network
        self.rows = torch.arange(rows, device=device)
        self._trunk = torch.zeros(rows, dtype=torch.int64, device=device)
        self._verify = torch.zeros(rows, dtype=torch.int64, device=device)
        self._extra = torch.zeros(rows, dtype=torch.float64, device=device)
        self.vocab_size, self.mask_id, self.length = (
            network.vocab_size,
            network.mask_id,
            network.length,
        )
        self.trunk_layers, self.head_layers = network.trunk_layers, network.head_layers

    @property
    def passes(self) -> Passes:
        """The counts so far, of every row the meter was made for."""
        return Passes(
            self._trunk.clone(),
            self._verify.clone(),
            self._extra.clone(),
            self.trunk_layers,
            self.head_layers,
        )

    def restore(self, passes: Passes) -> None:
        """Set the counts back to what `passes` read, as if nothing had been asked since."""
        self._trunk.copy_(passes.trunk)
        self._verify.copy_(passes.verify)
        self._extra.copy_(passes.extra)

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self._trunk[self.rows] += 1
        return self._network.trunk(tokens, lengths)

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Logits:
        return draft_logits(self._network, hidden, positions)

    def prefix(self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor) -> Prefix:
        return self._verifier.prefix(hidden, tokens, order, revealed)

    def verify(self, prefix: Prefix, ranks: Tensor, drafts: Tensor) -> Logits:
        self._verify[self.rows[prefix.rows]] += 1
        return verify(self._verifier, prefix, ranks, drafts)

    @property
    def network(self) -> Denoiser:
        """The network itself, for what is known of its size; its passes go through the meter."""
        return self._network

    def take(self, rows: Tensor) -> Meter:
        """The same meter about a part of its rows, by index or mask: what it counts is counted
        here."""
        part = copy(self)
        part.rows = self.rows[rows]
        return part

    def charge(self, layers: float | Tensor) -> None:
        """Count a pass of a network beside this one, as so many layers of it; per row, or (B,)."""
        self._extra[self.rows] += layers

    @property
    def _verifier(self) -> Verifier:
        assert can_verify(self._network)  # samplers that verify refuse others up front
        return self._network
