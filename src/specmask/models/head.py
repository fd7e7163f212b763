"""The causal head, and what it keeps of one trunk pass (method.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from specmask.models.blocks import (
    Blocks,
    RMSNorm,
    Turns,
    root_mean_square,
    rotary_angles,
    turns,
    unit,
)
from specmask.models.linear import Linear

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tracks:
    """Inputs (B, K, C) of some tracks, and what turns their keys and their queries.

    A key is turned by where its token was read (half of the channels) and by where its track
    predicts (the other half). A query is turned by where it predicts in both halves, so that
    attention sees how far each token read stands from the position to be predicted. Turning
    queries like keys compares read with read and predicted with predicted only, and then a single
    causal layer cannot find the neighbours of the position it predicts.
    """

    x: Tensor
    turn_keys: Turns
    turn_queries: Turns


class Head(nn.Module):
    """Causal blocks over tracks along σ; the track of rank d predicts rank d (method.md §2)."""

    compiled: Callable[[Head, HybridPrefix, Tensor, Tensor, Tensor], Tensor] | None = None
    """`window` for passes without gradients, where `modes.prepare` has compiled it."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
        *,
        residual: bool,
        norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pairs = width // heads // 4
        self.start = nn.Parameter(torch.zeros(2 * width))
        self.combine = Linear(3 * width, width, bias=False)
        self.blocks = Blocks(layers, width, heads, hidden, dropout)
        self.out = Linear(width, width, bias=False)
        # A pretrained trunk's prediction head begins with norms of its own.
        self.norm = RMSNorm(width, eps=1e-6) if norm else nn.Identity()
        self.residual = residual

    def tracks(self, ranks: Tensor, embedded: Tensor, hidden: Tensor, order: Tensor) -> Tracks:
        """The tracks of (B, K) ranks.

        Args:
            ranks: (B, K) in 0..L−1.
            embedded: (B, K, C) embedding of the token at each rank − 1; unused at rank 0.
            hidden: (B, L, C) trunk output in rank order, of any scale.
            order: (B, L) positions in rank order.
        """
        before = (ranks - 1).clamp(min=0)
        first = (ranks == 0)[..., None]
        here = unit(gather(hidden, ranks))
        # The track of rank d reads the token at rank d−1, h at σ(d−1), h at σ(d).
        read = torch.cat((unit(embedded), unit(gather(hidden, before))), dim=-1)
        read = torch.where(first, self.start.to(read.dtype), read)
        x = self.combine(torch.cat((read, here), dim=-1))
        # The start symbol stands at −1.
        read_at = torch.where(ranks == 0, -1, order.gather(1, before))
        return Tracks(x, *_turns_of(read_at, order.gather(1, ranks), self.pairs))

    def all_tracks(
        self, tokens: Tensor, embed: Embed, symbols: int, hidden: Tensor, order: Tensor
    ) -> Tracks:
        """As `tracks`, of all ranks at once and in fewer products.

        `combine` is linear in its three parts, and neighbours along σ read the same hidden states:
        a rank's is multiplied once for both. A token's product is that of its symbol, so where
        these are few, one for each of them will do.

        Args:
            tokens: (B, L) in rank order, each below `symbols`. embed: tokens → (..., C).
            hidden, order: as in `tracks`.
        """
        of_token, of_read, of_here = self.combine.weight.chunk(3, dim=1)
        if symbols < tokens.numel():
            every = torch.arange(symbols, device=tokens.device)
            every = unit(embed(every)).to(of_token.dtype)
            token = F.embedding(tokens, F.linear(every, of_token))
        else:
            token = F.linear(unit(embed(tokens)).to(of_token.dtype), of_token)
        here = F.linear(unit(hidden), torch.cat((of_read, of_here)))
        read, here = here.chunk(2, dim=-1)
        start = F.linear(self.start, torch.cat((of_token, of_read), dim=1))
        first = start.expand(len(tokens), 1, -1)
        x = here + torch.cat((first, (token + read)[:, :-1]), dim=1)
        read_at = F.pad(order[:, :-1], (1, 0), value=-1)
        return Tracks(x, *_turns_of(read_at, order, self.pairs))

    def window(
        self, prefix: HybridPrefix, ranks: Tensor, embedded: Tensor, mask: Tensor
    ) -> Float[Tensor, "rows ranks width"]:
        """Normalised output at some ranks, whose keys and values are stored in the prefix.

        Args:
            ranks: (B, K) in 0..L, where L is padding. embedded: as in `tracks`.
            mask: (B, 1, K, M) which of the first M ranks each of them sees.
        """
        inside = ranks.clamp(max=prefix.order.shape[1] - 1)
        tracks = self.tracks(inside, embedded, prefix.hidden, prefix.order)
        x, reach = tracks.x, mask.shape[-1]
        for layer, block in enumerate(self.blocks):
            prefix.store(layer, ranks, *block.keys_values(x, tracks.turn_keys))
            k, v = prefix.keys[layer][:, :, :reach], prefix.values[layer][:, :, :reach]
            x = block.attend(x, tracks.turn_queries, k, v, mask, causal=False)
        return self.predict(x, gather(prefix.hidden, inside))

    def remember(self, prefix: HybridPrefix, ranks: Tensor, embedded: Tensor, mask: Tensor) -> None:
        """As `window`, for keys and values alone: nobody reads the last block's output."""
        tracks = self.tracks(ranks, embedded, prefix.hidden, prefix.order)
        x, last = tracks.x, len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            prefix.store(layer, ranks, *block.keys_values(x, tracks.turn_keys))
            if layer < last:
                k, v = prefix.keys[layer], prefix.values[layer]
                k, v = (y[:, :, : mask.shape[-1]] for y in (k, v))
                x = block.attend(x, tracks.turn_queries, k, v, mask, causal=False)

    def predict(self, x: Tensor, here: Tensor) -> Tensor:
        """Normalised output. The residual is h at the position predicted, not the one read.

        The head's part is measured in h's own root mean square, which is one in our trunk and
        whatever it may be in a pretrained one.
        """
        y = self.out(x) * root_mean_square(here)
        return self.norm(y + here if self.residual else y)


def _turns_of(read_at: Tensor, predicts: Tensor, pairs: int) -> tuple[Turns, Turns]:
    """(B, K) positions where tracks read and predict → turns of keys and of queries."""
    angles = rotary_angles(torch.stack((read_at, predicts)), pairs)  # together: fewer operations
    cos, sin = turns(torch.cat((angles, angles[1:].expand_as(angles)), dim=-1))
    return Turns(cos[0], sin[0]), Turns(cos[1], sin[1])


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(B, L, C) at (B, K) → (B, K, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@dataclass
class HybridPrefix:
    """One trunk pass as the head sees it, with a slot per rank for each layer's keys and values.

    Slot L takes what padding tracks write; nobody reads it.
    """

    hidden: Tensor  # (B, L, C) in rank order
    order: Tensor  # (B, L)
    keys: list[Tensor]  # per layer (B, H, L + 1, C/H)
    values: list[Tensor]
    rows: Tensor  # (B,) which batch rows these are
    reach: int = 0  # ranks from here on have no keys yet

    def take(self, rows: Tensor) -> HybridPrefix:
        return HybridPrefix(
            self.hidden[rows],
            self.order[rows],
            [k[rows] for k in self.keys],
            [v[rows] for v in self.values],
            self.rows[rows],
            self.reach,
        )

    def store(self, layer: int, ranks: Tensor, k: Tensor, v: Tensor) -> None:
        """Put (B, H, K, C/H) keys and values of one layer at (B, K) ranks."""
        if len(self.keys) == layer:  # made here, in the type that autocast gave them
            shape = (*k.shape[:2], self.order.shape[1] + 1, k.shape[3])
            self.keys.append(k.new_zeros(shape))
            self.values.append(v.new_zeros(shape))
        slots = ranks[:, None, :, None].expand_as(k)
        self.keys[layer].scatter_(2, slots, k)
        self.values[layer].scatter_(2, slots, v)
