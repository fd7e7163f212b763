"""Linear maps through oneDNN: the same numbers, never stale, whatever rows stand beside."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from specmask.models.linear import Linear, PackedWeight

SIZES = [(160, 896), (448, 160), (160, 27), (5, 3)]


@pytest.fixture
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(160, 96)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_the_products_are_torchs(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer, x = Linear(inputs, outputs), torch.randn(2, 7, inputs)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        assert layer(x[:0]).shape == (0, 7, outputs)


@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_row_does_not_depend_on_the_rows_beside_it(inputs: int, outputs: int) -> None:
    """Bit for bit."""
    torch.manual_seed(0)
    layer, x = Linear(inputs, outputs, bias=False), torch.randn(600, inputs)
    with torch.no_grad():
        whole = layer(x)
        for rows in (1, 2, 3, 5, 12, 17, 64, 100, 256, 511):
            assert torch.equal(layer(x[:rows]), whole[:rows])
            assert torch.equal(layer(x[rows:]), whole[rows:])


@torch.no_grad()
def test_a_changed_weight_is_packed_again(layer: Linear) -> None:
    x = torch.randn(4, 160)
    other = Linear(160, 96)
    for change in (
        lambda: layer.weight.mul_(2),
        lambda: layer.load_state_dict(other.state_dict()),
        lambda: torch.optim.SGD(layer.parameters(), 0.5).step(),
        lambda: setattr(layer, "weight", torch.nn.Parameter(torch.randn(96, 160))),
        lambda: torch._foreach_add_([layer.weight], 1.0),
    ):
        layer(x)
        layer.weight.grad = torch.ones_like(layer.weight)
        change()
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_gradients_other_types_and_autocast_are_torchs(layer: Linear) -> None:
    x = torch.randn(3, 160)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        double = copy.deepcopy(layer).double()
        torch.testing.assert_close(double(x.double()).float(), layer(x))


@torch.no_grad()
def test_a_copy_packs_its_own(layer: Linear) -> None:
    """Deep copies and saved modules, after the original has packed its weight."""
    x = torch.randn(3, 160)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        other.weight.zero_()
        assert torch.equal(layer(x), expected)
    assert set(layer.state_dict()) == {"weight", "bias"}


@torch.no_grad()
def test_part_of_a_matrix_can_be_packed() -> None:
    """As tied embeddings are, which have a row for the mask."""
    embedding, packed = torch.nn.Embedding(28, 160), PackedWeight()
    x = torch.randn(3, 160)
    for _ in range(2):
        torch.testing.assert_close(
            packed.linear(x, embedding.weight[:27]), F.linear(x, embedding.weight[:27])
        )
        embedding.weight.add_(1)


def test_inference_mode(layer: Linear) -> None:
    with torch.inference_mode():
        x = torch.randn(3, 160)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        made_there = Linear(160, 8)
        torch.testing.assert_close(made_there(x), F.linear(x, made_there.weight, made_there.bias))
