"""The count of FLOPs is torch's; utilisation is that count a second over the chip's rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from specmask import from_pretrained_trunk
from specmask.models.hybrid import DraftNetwork, HybridConfig, HybridTransformer, Trunk
from specmask.training.flops import count_flops, measured_peak
from specmask.training.loop import train
from specmask.training.loss import draw_masks, loss_terms

ROWS, LENGTH = 6, 12


def counted(network: DraftNetwork, revealed: Tensor, order: Tensor) -> float:
    """By torch, of one step; its attention taken apart, since the fused one of a CPU is unknown."""
    tokens = torch.full((ROWS, LENGTH), 6)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_terms(network, tokens, order, revealed).total.backward()
    return counter.get_total_flops()


def own(**settings: object) -> HybridTransformer:
    sizes = {"vocab_size": 11, "length": LENGTH, "width": 32, "heads": 2, "trunk_layers": 3}
    return HybridTransformer(HybridConfig(**{**sizes, **settings}))


def plain() -> DraftNetwork:
    config = own().config
    sizes = {"vocab_size": 11, "mask_id": 11, "length": LENGTH, "trunk_layers": 3}
    return DraftNetwork(Trunk(config), config=config, **sizes)


def frozen() -> HybridTransformer:
    network = own(head_layers=2)
    network.freeze_trunk()
    return network


def adapted(folder: Path, **settings: Any) -> Any:
    return from_pretrained_trunk(folder, tokenizer=folder / "vocab.txt", **settings).network


@pytest.mark.parametrize("make", [own, lambda: own(tie_embeddings=False), frozen, plain])
def test_the_count_is_torchs(make) -> None:
    network = make()
    lengths = torch.full((ROWS,), LENGTH)
    order, revealed = draw_masks(0, 0, lengths, LENGTH)
    assert count_flops(network).of_batch(lengths, revealed) == pytest.approx(
        counted(network, revealed, order), rel=0.01
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"draft_layers": 1}, {"draft_layers": 1, "head_layers": 0}, {"lora_rank": 2}, {"all": 1}],
    ids=str,
)
def test_the_count_on_a_pretrained_trunk_is_torchs(protein_model: Path, settings) -> None:
    """Its rows are two symbols longer than ours, which the count leaves out."""
    everything = settings.pop("all", None)
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    network = adapted(protein_model, **settings)
    if everything:
        network.requires_grad_(True)
    lengths = torch.full((ROWS,), LENGTH)
    order, revealed = draw_masks(0, 0, lengths, LENGTH)
    ours = count_flops(network).of_batch(lengths, revealed)
    framed = (LENGTH + 2) / LENGTH
    assert 0.99 * ours < counted(network, revealed, order) < 1.01 * framed**2 * ours


def test_utilisation_in_the_log(tmp_path: Path, make_network, batches, make_config) -> None:
    """FLOPs of the steps' own masks a token, times tokens a second, over the chip's rate."""
    network = make_network()
    train(network, batches, make_config(steps=10, log_every=10), tmp_path)
    header, row = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert header["peak_flops"] == measured_peak(torch.device("cpu"), "fp32") > 1e8
    lengths, flops = torch.full((8,), 16), count_flops(network)
    steps = [flops.of_batch(lengths, draw_masks(0, k, lengths, 16)[1]) for k in range(10)]
    expected = sum(steps) / (10 * 8 * 16) * row["tokens_per_second"]
    assert row["mfu"] == pytest.approx(expected / header["peak_flops"])
    assert 0 < row["mfu"] < 1
