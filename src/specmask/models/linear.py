"""Linear maps that a CPU computes with oneDNN while nothing is trained.

torch sends float32 products to MKL, which leaves the wider half of the vector units of many
processors idle and changes the last bits of a row with the number of rows beside it. oneDNN, which
comes with torch too, does neither: on an AMD EPYC of 2025 its products take two fifths of the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ops = torch.ops.mkldnn


class PackedWeight:
    """A weight in oneDNN's own layout, made again when the weight has changed.

    Changes are seen by the weight's version, which every in-place operation of torch raises, except
    those through `weight.data`.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._packed: Tensor | None = None

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x·weightᵀ + bias, as `torch.nn.functional.linear`."""
        if not _serves(x, weight):
            return F.linear(x, weight, bias)
        of = (weight.data_ptr(), weight.shape, weight._version)
        if self._of != of:
            self._packed, self._of = _ops._reorder_linear_weight(weight.detach(), None), of
        return _ops._linear_pointwise(x, self._packed, bias, "none", [], "")

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()  # a copy of the module packs its own


def _serves(x: Tensor, weight: Tensor) -> bool:
    """Whether it is for oneDNN: float32 on a CPU, without gradients, autocast or compiler."""
    return bool(
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and not weight.is_inference()
        and x.numel() > 0
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` through a `PackedWeight`; the weights and their names are the same."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self._packed = PackedWeight()

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs)."""
        return self._packed.linear(input, self.weight, self.bias)


class Int8Linear(nn.Module):
    """A linear map of 8-bit weights: inputs are rounded to 8 bits as they come, sums are exact.

    Weights have a scale for each output channel, inputs one for each row and position: the largest
    magnitude over 127. So what a row gives does not depend on the rows beside it. The integer
    product is `torch._int_mm`. No gradients.

    Args:
        linear: what it replaces; its weight is not kept.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=_LEAST) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) → (..., outputs), in the type of the input."""
        rows = x.detach().float().flatten(0, -2)
        y = rows.new_empty(len(rows), len(self.weight))
        for some, into in zip(rows.split(_ROWS), y.split(_ROWS), strict=True):
            scale = some.abs().amax(-1, keepdim=True).clamp_(min=_LEAST).div_(127)
            whole = (some / scale).round_().to(torch.int8)
            into.copy_(torch._int_mm(whole, self.weight.t())).mul_(scale).mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


_LEAST = 1e-30  # so that zeros can be divided by their scale
_ROWS = 512  # whose integers stay in a core's cache until they are scaled
