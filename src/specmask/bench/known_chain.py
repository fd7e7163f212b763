"""A denoiser whose right law is known: the exact conditionals of a hidden Markov chain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def all_rows(vocab_size: int, length: int) -> Int64[Tensor, "rows length"]:
    """Every row, V^D of them, the last position fastest."""
    return torch.tensor(list(product(range(vocab_size), repeat=length)))


def row_index(rows: Tensor, vocab_size: int) -> Tensor:
    """(..., D) → (...): a row's index among `all_rows(vocab_size, D)`."""
    powers = vocab_size ** torch.arange(rows.shape[-1] - 1, -1, -1)
    return (rows * powers).sum(-1)


@dataclass(frozen=True)
class ChainPrefix:
    """What a verify pass needs: the order of each row."""

    order: Int64[Tensor, "rows length"]
    rows: Int64[Tensor, "rows"]

    def take(self, rows: Tensor) -> ChainPrefix:
        """The prefix of some rows."""
        return ChainPrefix(self.order[rows], self.rows[rows])


class KnownChain:
    """A hidden Markov chain that answers as a hybrid network does (`models.protocol.Verifier`).

    The draft of a position is its posterior given the revealed tokens; the target of rank d is its
    posterior given all ranks below d. So one token a pass draws from the chain in any order, and
    self-speculation draws from it whatever its setting; what another sampler does to the law is
    its own doing. Padding counts as unknown, so a shorter row is a marginal of the chain. The
    answers to all (V + 1)^L canvases are computed once.

    Args:
        states: hidden states. vocab_size: symbols V. length: the longest row L.
        seed: of the transition and emission laws, softmax of normal numbers with deviation 3.
    """

    trunk_layers, head_layers = 1, 1

    def __init__(
        self, states: int = 3, vocab_size: int = 4, length: int = 6, seed: int = 1
    ) -> None:
        self.vocab_size, self.mask_id, self.length = vocab_size, vocab_size, length
        generator = torch.Generator().manual_seed(seed)

        def law(*shape: int) -> Tensor:
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (3 * numbers).softmax(-1)

        self.initial, self.transition, self.emission = (
            law(states),
            law(states, states),
            law(states, vocab_size),
        )
        # A masked position emits anything.
        self._seen = torch.cat((self.emission, torch.ones(states, 1, dtype=torch.float64)), 1)

    @cached_property
    def posteriors(self) -> Float64[Tensor, "canvases length vocab"]:
        """`posterior` of every canvas."""
        return self.posterior(all_rows(self.vocab_size + 1, self.length))

    def log_prob(self, tokens: Int64[Tensor, "rows length"]) -> Float64[Tensor, "rows"]:
        """Nats, by the forward algorithm."""
        forward = self.initial * self._seen[:, tokens[:, 0]].T
        for position in range(1, tokens.shape[1]):
            forward = forward @ self.transition * self._seen[:, tokens[:, position]].T
        return forward.sum(-1).log()

    def posterior(
        self, tokens: Int64[Tensor, "rows length"]
    ) -> Float64[Tensor, "rows length vocab"]:
        """Log-probabilities of each position's token, its own evidence left out."""
        count, length = tokens.shape
        evidence = self._seen[:, tokens].permute(1, 2, 0)  # (B, L, states)
        before = [self.initial.expand(count, -1)]
        for position in range(length - 1):
            step = before[-1] * evidence[:, position] @ self.transition
            before.append(step / step.sum(-1, keepdim=True))
        after = [torch.ones_like(before[0])]
        for position in range(length - 1, 0, -1):
            after.append((after[-1] * evidence[:, position]) @ self.transition.T)
        state = torch.stack(before, 1) * torch.stack(after[::-1], 1)
        return (state @ self.emission).log().log_softmax(-1)

    def _canvas(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """(...) the index of a canvas in which only `seen` (..., W) tokens are known."""
        known = tokens.new_full((*seen.shape[:-1], self.length), self.mask_id)
        known[..., : seen.shape[-1]] = tokens.where(seen, self.mask_id)
        return row_index(known, self.vocab_size + 1)

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        return self.posteriors[self._canvas(tokens, inside)]

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        return hidden.gather(1, positions[..., None].expand(-1, -1, self.vocab_size))

    def prefix(
        self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor
    ) -> ChainPrefix:
        return ChainPrefix(order, torch.arange(len(tokens)))

    def verify(self, prefix: ChainPrefix, ranks: Tensor, drafts: Tensor) -> Tensor:
        """(B, K, V): the posterior of the position at each rank given the ranks below it."""
        ranks = ranks.clamp(max=drafts.shape[1] - 1)
        rank = prefix.order.argsort(1)
        tokens = drafts.gather(1, rank)
        seen = rank[:, None] < ranks[..., None]
        canvas = self._canvas(tokens[:, None].expand_as(seen), seen)
        return self.posteriors[canvas, prefix.order.gather(1, ranks)]
