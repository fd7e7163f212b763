"""The NFE of a figure is what hooks on the network's blocks count.

A hook on every block adds the rows of its input, so that a batch whose rows finish at different
times is counted row by row. Their sum must be that of NFE × layers over the samples.

What is not charged: `prefix`, which gives the head its keys and values of the revealed tracks once
a trunk pass. In the last block of a head that is the product for keys and values alone; the block
is not run, so a head of one block, the paper's, runs no block outside its verify passes. A head of
n blocks runs the first n − 1 of them on the revealed tracks, once for each row and trunk pass that
verifies. The last test states it; NFE, by the paper's definition, has no term for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import specmask
from oracle import tiny_network
from specmask import (
    Ancestral,
    AnyOrder,
    AnySubset,
    Confidence,
    ConstantWindow,
    CosineWindow,
    EntropyBound,
    FirstHitting,
    FullWindow,
    LinearWindow,
    PathPlanning,
    ReMDM,
    Samples,
    Speculative,
    Star,
    Threshold,
)
from specmask.models.blocks import Block
from specmask.models.hybrid import HybridNetwork
from specmask.samplers import Sampler

VOCAB, LENGTH, ROWS = 7, 14, 3
SAMPLERS: list[Sampler] = [
    Speculative(window=CosineWindow(0.2)),
    Speculative(window=CosineWindow(0.2), rounds=3, first="verify"),
    Speculative(window=FullWindow(), rounds=2),
    Speculative(window=FullWindow(), rounds=16, verification="block"),
    Speculative(window=ConstantWindow(1)),  # with first="accept" nothing is left to verify
    Speculative(window=LinearWindow(0.25), rounds=4, order="left-to-right"),
    Speculative(window=ConstantWindow(6), rounds=2, order="confidence"),
    Speculative(window=ConstantWindow(6), rounds=2, stop=0.5),
    Ancestral(steps=8),
    Ancestral(steps=8, counts="fixed", schedule="linear"),
    AnyOrder(),
    AnyOrder(source="target"),
    AnySubset(k=5),
    FirstHitting(),
    Confidence(steps=7),
    Threshold(threshold=0.4),
    EntropyBound(gamma=1.0),
    Star(steps=7),
    ReMDM(steps=7),
    PathPlanning(steps=7),
]


@dataclass
class Count:
    """Rows × blocks that were run: in `prefix`, and outside it."""

    blocks: int = 0
    in_prefix: int = 0
    inside: bool = False

    def add(self, rows: int) -> None:
        if self.inside:
            self.in_prefix += rows
        else:
            self.blocks += rows


def last_product(block: nn.Module) -> nn.Module:
    """What every run of a block ends with. The head's blocks are run in two parts, not called."""
    return block.mlp_out if isinstance(block, Block) else block


@contextmanager
def counted(network: HybridNetwork, blocks: list[nn.Module]) -> Iterator[Count]:
    count, prefix = Count(), network.prefix

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count.add(len(inputs[0]))

    def watched(*args: Any) -> Any:
        count.inside = True
        try:
            return prefix(*args)
        finally:
            count.inside = False

    handles = [last_product(block).register_forward_pre_hook(hook) for block in blocks]
    network.prefix = watched  # type: ignore[method-assign]
    yield count
    del network.prefix
    for handle in handles:
        handle.remove()


def charged(network: HybridNetwork, out: Samples) -> int:
    """Σ over rows of NFE × layers, a whole number."""
    layers = float(out.nfe.sum()) * (network.trunk_layers + network.head_layers)
    assert layers == pytest.approx(round(layers), abs=1e-6)
    return round(layers)


def run(network: HybridNetwork, sampler: Sampler, batch_size: int, **what: Any) -> Samples:
    return specmask.sample(specmask.wrap(network), sampler, batch_size=batch_size, seed=3, **what)


@pytest.mark.parametrize(
    ("head_layers", "sampler"),
    [*((1, sampler) for sampler in SAMPLERS), *((2, sampler) for sampler in SAMPLERS[:4])],
    ids=str,
)
def test_nfe_is_the_blocks_run(head_layers: int, sampler: Sampler) -> None:
    """One row at a time, and in a batch of rows of three lengths, which finish one by one."""
    network = tiny_network(head_layers, vocab_size=VOCAB, length=LENGTH)
    blocks = [block for block in network.modules() if isinstance(block, Block)]
    assert len(blocks) == 2 + head_layers
    canvas = torch.full((ROWS, LENGTH), network.mask_id)
    lengths = torch.tensor([LENGTH, 9, 4])
    for batch_size in (1, ROWS):
        with counted(network, blocks) as count:
            out = run(network, sampler, batch_size, canvas=canvas, lengths=lengths)
        assert count.blocks == charged(network, out)
        assert head_layers > 1 or not count.in_prefix
    if isinstance(sampler, Speculative) and sampler.window != ConstantWindow(1):
        assert len(out.nfe.unique()) > 1  # rows did finish at different times
        assert int(out.verify_passes.sum()) > 0


def test_nfe_of_a_pretrained_trunk_is_the_blocks_run(protein_model: Path) -> None:
    """Its own layers and the new ones, before its prediction head and in the causal head."""
    model = specmask.from_pretrained_trunk(
        protein_model, tokenizer=protein_model / "vocab.txt", draft_layers=1
    )
    network = model.network
    assert isinstance(network, HybridNetwork)
    with torch.no_grad():  # a head that says something else than the draft
        network.head.out.weight.normal_(std=0.1)
    own = list(network.trunk.backbone.encoder.layer)
    blocks = [*own, *(block for block in network.modules() if isinstance(block, Block))]
    assert len(blocks) == network.trunk_layers + network.head_layers == 4
    for sampler in (Speculative(rounds=3, window=FullWindow()), Ancestral(steps=5)):
        for batch_size in (1, 4):
            with counted(network, blocks) as count:
                out = run(network, sampler, batch_size, num=4, length=9)
            assert count.blocks == charged(network, out)


def test_what_a_prefix_runs_is_not_charged() -> None:
    """Two head blocks: the first is run on the revealed tracks, once a row and trunk pass that
    verifies, but in the first pass, where nothing is revealed."""
    network = tiny_network(2, vocab_size=VOCAB, length=LENGTH)
    blocks = [block for block in network.modules() if isinstance(block, Block)]
    with counted(network, blocks) as count:
        out = run(network, Speculative(window=FullWindow(), first="verify"), 1, num=ROWS)
    assert torch.equal(out.trunk_passes, out.verify_passes)  # every pass verifies, once
    assert count.in_prefix == int((out.trunk_passes - 1).sum()) > 0
