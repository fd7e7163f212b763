"""What trunks and heads are built of: rotations, norms and pre-norm transformer blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specmask.host import upload
from specmask.models.linear import Linear


def rotary_angles(positions: Tensor, pairs: int) -> Tensor:
    """(..., K) positions → (..., K, pairs) angles, geometric frequencies from 1 to 1/10000."""
    exponent = torch.arange(pairs, device=positions.device, dtype=torch.float32) / pairs
    return positions.float()[..., None] * 10000.0**-exponent


class Turns(NamedTuple):
    """What `rotate` multiplies by, made once for all blocks: (B or 1, K, 1, C) each."""

    cos: Tensor
    sin: Tensor  # negative where a pair's first channel is turned


def turns(angles: Tensor) -> Turns:
    """(B or 1, K, C/2) angles → turns of channel pairs (c, c + C/2)."""
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]
    return Turns(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def row_turns(length: int, pairs: int, device: torch.device) -> Turns:
    """Turns of the positions 0..length−1, the same for every row."""
    return turns(rotary_angles(torch.arange(length, device=device)[None], pairs))


def rotate(x: Tensor, by: Turns) -> Tensor:
    """(B, K, H, C) with its channel pairs turned."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return (x * by.cos.to(x.dtype)).add_(swapped.mul_(by.sin.to(x.dtype)))


def unit(x: Tensor) -> Tensor:
    """(..., C) scaled to mean square one."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def root_mean_square(x: Tensor) -> Tensor:
    """(..., C) → (..., 1), the scale in which a change to hidden states is measured."""
    return x.square().mean(-1, keepdim=True).sqrt()


def pick(x: Tensor, at: Tensor) -> Tensor:
    """(B, L, C) at (2, n) rows and places → (n, C); each place at most once, or slow gradients."""
    return x.flatten(0, 1).index_select(0, at[0] * x.shape[1] + at[1])


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose gain follows its input's type, so that the fused kernel serves bf16 too."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Pre-norm transformer block with rotary attention and a gated MLP, no biases.

    With `recompute` only its input is kept for the backward pass, which computes the rest again.
    """

    recompute = False

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)  # of what a branch adds to the residual stream
        self.attention_norm = RMSNorm(width, eps=1e-6)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(width, 2 * width, bias=False)
        self.attention_out = Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width, eps=1e-6)
        self.mlp_in = Linear(width, 2 * hidden, bias=False)
        self.mlp_out = Linear(hidden, width, bias=False)

    def keys_values(self, x: Tensor, by: Turns) -> tuple[Tensor, Tensor]:
        """(B, K, C) → keys, already turned, and values, each (B, H, K, C/H)."""
        k, v = self.key_value(self.attention_norm(x)).chunk(2, dim=-1)
        return rotate(self._split(k), by).transpose(1, 2), self._split(v).transpose(1, 2)

    def attend(
        self,
        x: Tensor,
        by: Turns,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        at: Tensor | None = None,
    ) -> Tensor:
        """The block's output for (B, K, C) tracks that look at the given keys and values."""
        q = rotate(self._split(self.query(self.attention_norm(x))), by).transpose(1, 2)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        seen = seen.transpose(1, 2).flatten(2)
        if at is not None:
            x, seen = pick(x, at), pick(seen, at)
        x = x + self.dropout(self.attention_out(seen))
        gate, value = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        inner = F.silu(gate)  # in place where nothing is kept of it: it is the widest there is
        inner = inner * value if inner.requires_grad else inner.mul_(value)
        return x + self.dropout(self.mlp_out(inner))

    def forward(
        self,
        x: Tensor,
        turn_keys: Turns,
        mask: Tensor | None = None,
        turn_queries: Turns | None = None,
        causal: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """(B, K, C) → (B, K, C) at all tracks at once; queries are turned as keys are by default.

        With `at`, (2, n) rows and tracks, (n, C): the output there alone, which is less work.
        """
        turn_queries = turn_keys if turn_queries is None else turn_queries
        if not (self.recompute and torch.is_grad_enabled()):  # else nothing would be saved
            return self._whole(x, turn_keys, turn_queries, mask, causal, at)
        result: Tensor = checkpoint(
            *(self._whole, x, turn_keys, turn_queries, mask, causal, at),
            use_reentrant=False,
            preserve_rng_state=self.training and self.dropout.p > 0,
        )
        return result

    def _whole(
        self,
        x: Tensor,
        turn_keys: Turns,
        turn_queries: Turns,
        mask: Tensor | None,
        causal: bool,
        at: Tensor | None,
    ) -> Tensor:
        k, v = self.keys_values(x, turn_keys)
        return self.attend(x, turn_queries, k, v, mask, causal, at)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Blocks(nn.ModuleList):
    """A list of blocks that says so to the type checker."""

    def __init__(
        self, count: int, width: int, heads: int, hidden: int, dropout: float = 0.0
    ) -> None:
        super().__init__(Block(width, heads, hidden, dropout) for _ in range(count))

    def __iter__(self) -> Iterator[Block]:
        return super().__iter__()  # type: ignore[return-value]


def padding_mask(
    length: int, lengths: Tensor | None, device: torch.device
) -> Bool[Tensor, "rows 1 1 length"] | None:
    """Positions to attend to, on the device, or None where no row has padding.

    lengths: (B,) on any device; on the CPU nothing waits for the look at them.
    """
    if lengths is None:
        return None
    # A compiler cannot look; there a mask of nothing costs a little and changes nothing.
    if not torch.compiler.is_compiling() and not bool((lengths < length).any()):
        return None
    (sizes,) = upload(device, lengths)
    return (torch.arange(length, device=device) < sizes[:, None])[:, None, None]
