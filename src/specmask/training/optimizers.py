"""The optimisers of a run, and their state as plain named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from specmask.models.hybrid import LOW_RANK
from specmask.training.config import TrainConfig
from specmask.training.ema import trained
from specmask.training.muon import Muon

Named = dict[str, Tensor]


def build(network: nn.Module, config: TrainConfig) -> dict[str, Optimizer]:
    """Optimisers by name ("adamw", "muon") over the parameters that get gradients.

    Every group carries `names`, its parameters' names, and `peak`, its learning rate before
    `lr_factor`. Decay is on matrices only. The fused AdamW does the same sums in one pass.
    """
    parameters = trained(network)
    blocks = block_matrices(network) if config.optimizer == "muon" else {}
    rest = {name: p for name, p in parameters.items() if name not in blocks}
    matrices = {name: p for name, p in rest.items() if p.ndim >= 2}
    vectors = {name: p for name, p in rest.items() if p.ndim < 2}
    groups = _groups(matrices, config.lr, config, config.weight_decay)
    groups += _groups(vectors, config.lr, config, 0.0)
    optimizers: dict[str, Optimizer] = {}
    if groups:
        optimizers["adamw"] = AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if blocks:
        groups = _groups(blocks, config.muon_lr, config, config.weight_decay)
        optimizers["muon"] = Muon(groups, lr=config.muon_lr)
    return optimizers


def block_matrices(network: nn.Module) -> Named:
    """The trained weights of the linear maps inside transformer blocks: what Muon is for.

    Blocks are the members of module lists. Embeddings and maps to the vocabulary stand outside:
    their rows are symbols, which orthogonalising would force to equal size
    (https://kellerjordan.github.io/posts/muon/). So do the two factors of a low-rank update:
    Muon would give their product its full rank and size from the first step.
    """
    lists = [name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    inside = tuple(f"{name}." for name in lists)
    return {
        name: p
        for name, p in trained(network).items()
        if name.startswith(inside) and LOW_RANK not in name and _is_map(network, name)
    }


def set_lr(optimizers: Mapping[str, Optimizer], factor: float) -> None:
    """Every group's learning rate becomes its peak times the factor."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def flatten(optimizers: Mapping[str, Optimizer]) -> tuple[Named, dict[str, Any]]:
    """State as tensors named `optimizer/parameter/key`, and the groups as JSON-able settings."""
    tensors: Named = {}
    settings: dict[str, Any] = {}
    for kind, optimizer in optimizers.items():
        saved = optimizer.state_dict()
        names = _names(optimizer)
        for index, state in saved["state"].items():
            for key, value in state.items():
                tensors[f"{kind}/{names[index]}/{key}"] = value
        settings[kind] = [
            {key: value for key, value in group.items() if key != "params"}
            for group in saved["param_groups"]
        ]
    return tensors, settings


def restore(optimizers: Mapping[str, Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `flatten` gave; raises KeyError when a parameter's state is not there."""
    for kind, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        indices = {name: index for index, name in enumerate(_names(optimizer))}
        for name, tensor in tensors.items():
            owner, parameter, key = name.split("/")
            if owner == kind:
                state.setdefault(indices[parameter], {})[key] = tensor
        missing = [name for name, index in indices.items() if index not in state]
        if missing:
            raise KeyError(f"{kind} has no state for {missing[0]}")
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _groups(
    parameters: Named, lr: float, config: TrainConfig, decay: float
) -> list[dict[str, Any]]:
    """What is not empty of: the head's, at a learning rate of its own, and all others."""
    head = {name: p for name, p in parameters.items() if name.startswith("head.")}
    if config.head_lr == 1:
        return [_group(parameters, lr, decay)] if parameters else []
    others = {name: p for name, p in parameters.items() if name not in head}
    groups = (_group(others, lr, decay), _group(head, config.head_lr * lr, decay))
    return [group for group in groups if group["names"]]


def _group(parameters: Named, lr: float, decay: float) -> dict[str, Any]:
    return {
        "params": list(parameters.values()),
        "names": list(parameters),
        "lr": lr,
        "peak": lr,
        "weight_decay": decay,
    }


def _names(optimizer: Optimizer) -> list[str]:
    """Parameter names in the order torch numbers them."""
    return [name for group in optimizer.param_groups for name in group["names"]]


def _is_map(network: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(network.get_submodule(owner), nn.Linear)
