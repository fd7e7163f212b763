"""A pretended accelerator: tensors on device meta, computed on the CPU, that count who waits.

Like CUDA it refuses to mix its tensors with the CPU's, and makes the host wait for everything that
was asked of it whenever a number is looked at there: by `item`, `int`, `bool`, `tolist`, `cpu` and
`equal`, by operations whose shape depends on values (`nonzero`, masks as an index), and by uploads
that are not `non_blocking`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_LOOKS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select",
        "_unique2", "unique_dim", "unique_consecutive", "bincount",
    )
}  # fmt: skip
_MIXES = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_", "aten::index_put"}


class Far(Tensor):
    """A tensor there; `near` holds its numbers here."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Self:
        far = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            *(cls, near.shape, near.stride(), near.storage_offset()),
            **{"dtype": near.dtype, "device": DEVICE},
        )
        far.near = near
        return far  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings, name = dict(kwargs or {}), func._schema.name
        given = [x for x in tree_leaves((args, settings)) if isinstance(x, Tensor)]
        aimed = settings.get("device")
        home = aimed is not None and torch.device(aimed) != DEVICE
        if aimed is not None:
            settings["device"] = torch.device("cpu")
        _count(name, given, args, home, bool(settings.get("non_blocking")))
        if name not in _MIXES and any(not isinstance(x, Far) and x.ndim for x in given):
            raise RuntimeError(f"{name}: got tensors of two devices")
        found = func(*tree_map(_near, args), **tree_map(_near, settings))
        return found if home else tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, found)


def _near(x: Any) -> Any:
    return x.near if isinstance(x, Far) else x


waits: Counter[str] = Counter()
"""Operations that the host has waited for since `accelerator` was entered."""


def _count(name: str, given: list[Tensor], args: Any, home: bool, unhurried: bool) -> None:
    here = any(not isinstance(x, Far) for x in given)
    if home or name in _LOOKS:
        waits[name] += 1
    elif name in ("aten::index", "aten::index_put_", "aten::index_put"):
        at = [x for x in args[1] if x is not None]
        if any(x.dtype in (torch.bool, torch.uint8) or not isinstance(x, Far) for x in at):
            waits[name] += 1
    elif name in ("aten::masked_fill", "aten::masked_fill_") and isinstance(args[2], Tensor):
        waits[name] += 1  # takes the value to the host
    elif here and name in ("aten::_to_copy", "aten::copy_") and not unhurried:
        waits["upload"] += 1


class _Factories(TorchDispatchMode):
    """Sends what is made on the device there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aimed = (kwargs or {}).get("device")
        if aimed is not None and torch.device(aimed) == DEVICE:
            return Far.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


@contextmanager
def accelerator() -> Iterator[Counter[str]]:
    """Within it device meta computes; yields what is counted."""
    make, convert = torch.tensor, torch.as_tensor

    def tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
        return make(data, **settings).to(device)

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return convert(data, dtype=dtype).to(device)

    waits.clear()
    with (
        torch.no_grad(),
        patch.object(torch, "tensor", tensor),
        patch.object(torch, "as_tensor", as_tensor),
        _Factories(),
    ):
        yield waits


def move(network: nn.Module) -> nn.Module:
    """The network's weights and buffers there, in place."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(Far(weight.detach()), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, Far(buffer))
    return network
