"""Activations computed again: the same loss and gradients, and far less kept for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specmask import from_pretrained_trunk
from specmask.errors import UserError
from specmask.models.hybrid import DraftNetwork, HybridConfig, HybridTransformer
from specmask.training.loop import train
from specmask.training.loss import draw_masks, loss_terms

ROWS, LENGTH = 4, 12
Step = tuple[Tensor, dict[str, Tensor], int]


def adapted(folder: Path, **settings: Any) -> Any:
    return from_pretrained_trunk(folder, tokenizer=folder / "vocab.txt", **settings).network


def step(network: DraftNetwork, lengths: Tensor | None = None) -> Step:
    """Loss, gradients, and the bytes kept for these."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)  # of dropout
    tokens = torch.randint(5, 9, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    sizes = torch.full((ROWS,), LENGTH) if lengths is None else lengths
    order, revealed = draw_masks(0, 0, sizes, LENGTH)
    network.train().zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_terms(network, tokens, order, revealed, lengths).total
    loss.backward()
    weights = {p.data_ptr() for p in network.parameters()}
    saved = sum(size for place, size in kept.items() if place not in weights)
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, saved


def assert_same(one: Step, other: Step) -> None:
    torch.testing.assert_close(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [None, [3, 5, 12, 9]], ids=["full", "ragged"])
def test_same_loss_and_gradients_from_less(dropout: float, lengths: list[int] | None) -> None:
    network = HybridTransformer(HybridConfig(9, LENGTH, 32, 2, 4, 2, dropout=dropout))
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    sizes = None if lengths is None else torch.tensor(lengths)
    whole = step(network, sizes)
    network.checkpoint_activations()
    again = step(network, sizes)
    assert_same(whole, again)
    assert again[2] < whole[2] / 3


def test_a_pretrained_trunk_that_is_trained(protein_model: Path) -> None:
    """Its own dropout acts too, so that the random state must be the same the second time."""
    network = adapted(protein_model, draft_layers=1)
    network.requires_grad_(True)
    whole = step(network)
    network.checkpoint_activations()
    again = step(network)
    assert_same(whole, again)
    assert any(name.startswith("trunk.backbone") for name in again[1])
    assert again[2] < whole[2] / 2


def test_a_frozen_pretrained_trunk_keeps_nothing_anyway(protein_model: Path) -> None:
    network = adapted(protein_model, draft_layers=1)
    whole = step(network)
    network.checkpoint_activations()
    again = step(network)
    assert_same(whole, again)
    assert again[2] < whole[2]


def test_low_rank_updates_are_refused(protein_model: Path) -> None:
    pytest.importorskip("peft")
    network = adapted(protein_model, lora_rank=2)
    with pytest.raises(UserError, match="checkpoint_activations with low-rank updates"):
        network.checkpoint_activations()


def test_a_trunk_that_cannot_is_refused(protein_model: Path) -> None:
    network = adapted(protein_model)
    network.requires_grad_(True)
    network.trunk.backbone.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="does not support it"):
        network.checkpoint_activations()


def test_a_run_is_the_same_and_may_turn_to_it(
    tmp_path: Path, make_network, batches, make_config, crash_at
) -> None:
    def crash() -> None:
        raise RuntimeError("the lights went out")

    train(make_network(), batches, make_config(), tmp_path / "whole")
    out = tmp_path / "turned"
    with pytest.raises(RuntimeError, match="lights"):
        train(make_network(), crash_at(batches, 25, crash), make_config(), out)
    network = make_network()
    train(network, batches, make_config(checkpoint_activations=True), out, resume=True)
    assert all(block.recompute for block in network.trunk.blocks)
    whole, turned = (
        (folder / "model/model.safetensors").read_bytes() for folder in (tmp_path / "whole", out)
    )
    assert whole == turned
