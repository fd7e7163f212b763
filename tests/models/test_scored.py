"""Training's shorter way to the features: the same numbers, at the ranks that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oracle import tiny_network
from specmask import from_pretrained_trunk
from specmask.models.hybrid import DraftNetwork, HybridNetwork
from specmask.training.loss import draw_masks, scored_ranks

ROWS, LENGTH = 3, 5
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(network: DraftNetwork, low: int = 0) -> Inputs:
    """Masked rows, tokens, orders, lengths and what is scored, of ragged rows."""
    generator = torch.Generator().manual_seed(3)
    shape, high = (ROWS, LENGTH), network.vocab_size
    tokens = torch.randint(low, high, shape, generator=generator)
    lengths = torch.tensor([5, 2, 4])
    order, revealed = draw_masks(0, 0, lengths, LENGTH)
    scored = scored_ranks(revealed, lengths, LENGTH)
    masked = tokens.clone()
    row, rank = scored
    masked[row, order[row, rank]] = network.mask_id
    return masked, tokens, order, lengths, scored


@pytest.mark.parametrize("vocab_size", [3, 40], ids=["few symbols", "many symbols"])
def test_all_tracks_are_the_tracks(vocab_size: int) -> None:
    """Both ways to multiply a token: 15 tokens are more than 4 symbols and fewer than 41."""
    network = tiny_network(vocab_size=vocab_size)
    masked, tokens, order, lengths, _ = inputs(network)
    hidden = network.trunk(masked, lengths)
    hidden = hidden.gather(1, order[..., None].expand_as(hidden)) * 1.7  # of any scale
    ranks = torch.arange(LENGTH).expand(ROWS, -1)
    along = tokens.gather(1, order)
    read = network.trunk.embed(along.roll(1, dims=1))
    one = network.head.tracks(ranks, read, hidden, order)
    other = network.head.all_tracks(along, network.trunk.embed, vocab_size + 1, hidden, order)
    for name, value in vars(one).items():
        torch.testing.assert_close(getattr(other, name), value, msg=name)


@pytest.mark.parametrize("head_layers", [1, 2])
def test_features_where_they_are_scored(head_layers: int) -> None:
    network = tiny_network(head_layers)
    *rest, scored = inputs(network)
    row, rank = scored
    both = zip(network.features(*rest, scored), network.features(*rest), strict=True)
    for there, everywhere in both:
        torch.testing.assert_close(there, everywhere[row, rank])


@pytest.mark.parametrize("head_layers", [0, 1])
def test_on_a_pretrained_trunk(protein_model: Path, head_layers: int) -> None:
    vocabulary: Any = protein_model / "vocab.txt"
    network = from_pretrained_trunk(
        protein_model, tokenizer=vocabulary, head_layers=head_layers
    ).network
    assert isinstance(network, DraftNetwork)
    assert isinstance(network, HybridNetwork) == bool(head_layers)
    *rest, scored = inputs(network, low=5)
    row, rank = scored
    both = zip(network.features(*rest, scored), network.features(*rest), strict=True)
    for there, everywhere in both:
        assert (there is None) == (everywhere is None)
        if there is not None:
            torch.testing.assert_close(there, everywhere[row, rank])
