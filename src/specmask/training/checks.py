"""What is looked at before a training starts, so that it fails at once or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from specmask.checks import whole_numbers
from specmask.errors import UserError
from specmask.models.hybrid import DraftNetwork
from specmask.training import checkpoints
from specmask.training.checkpoints import Checkpoint
from specmask.training.config import CADENCE, TrainConfig
from specmask.training.ema import trained
from specmask.training.loss import Rows, tokens_and_lengths

LATER_FIELDS = {
    **{"revealed": "uniform", "dropout": 0.0, "weighting": "row"},
    **{"target_weight": 1.0, "distil": 0.0, "head_lr": 1.0},
}
"""Settings that runs of earlier versions did not write down, and what those runs did."""


def check_input(
    network: DraftNetwork, first: Rows, config: TrainConfig, validation: Rows | None
) -> None:
    """Refuse weights and tokens that training would choke on; `first` is the batch of step 0."""
    for name, parameter in trained(network).items():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"{name} is {parameter.dtype}, expected float32 weights: call network.float() "
                "(precision='bf16' casts inside the step)"
            )
    if not trained(network):
        raise UserError("the network has no parameter to train: none has requires_grad")
    rows = _check_rows("batches(0)", first, network)
    if rows != config.batch_size:
        raise UserError(f"batches(0) has {rows} rows, not batch_size {config.batch_size}")
    if validation is not None:
        _check_rows("validation", validation, network)


def identify(network: DraftNetwork, first: Rows, config: TrainConfig) -> dict[str, Any]:
    """What makes a run this run, as JSON gives it back."""
    tokens, _ = tokens_and_lengths(first)
    parts = {
        "config": dataclasses.asdict(config),
        "network": dataclasses.asdict(network.config),
        "data": {"first_batch": hashlib.sha256(tokens.numpy().tobytes()).hexdigest()},
    }
    identity: dict[str, Any] = json.loads(json.dumps(parts))
    return identity


def open_run(
    out: Path, identity: dict[str, Any], resume: bool, console: Console | None
) -> Checkpoint | None:
    """The checkpoint to go on from, once it is sure that nothing of another run is in the way."""
    if not resume and (checkpoints.exist(out) or (out / "model").exists()):
        raise UserError(
            f"{out} already holds a run: pass --resume to go on with it, or choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = checkpoints.newest(out, console) if resume else None
    if checkpoint is not None:
        _check_same(checkpoint, identity)
    if console is not None and resume:
        found = f"going on from step {checkpoint.step}" if checkpoint else "starting from step 0"
        console.print(f"{found} in {out}", soft_wrap=True, highlight=False)
    return checkpoint


def _check_same(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    differing = []
    for section, now in identity.items():
        then = checkpoint.state[section]
        for key in sorted(now.keys() | then.keys()):
            before = then.get(key, LATER_FIELDS.get(key))
            if before != now.get(key) and not (section == "config" and key in CADENCE):
                differing.append(f"{section}.{key} (was {before}, now {now.get(key)})")
    if differing:
        raise UserError(
            f"{checkpoint.folder} belongs to a different run: {', '.join(differing)}. Resume with "
            "the settings it was started with, or choose another folder"
        )


def _check_rows(name: str, rows: Rows, network: DraftNetwork) -> int:
    """How many rows there are, once it is sure that they can be learned."""
    tokens = rows if isinstance(rows, Tensor) else rows[0]
    if tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
        raise UserError(
            f"{name} is {tokens.dtype} of shape {tuple(tokens.shape)}, expected int64 (rows, D)"
        )
    count, longest = tokens.shape
    if longest > network.length:
        raise UserError(f"{name} has rows of {longest} tokens, the network takes {network.length}")
    symbols = tokens
    if not isinstance(rows, Tensor):
        lengths = whole_numbers("lengths", rows[1], count, 1, longest, tokens.device)
        symbols = tokens[torch.arange(longest) < lengths[:, None]]
    low, high = int(symbols.min()), int(symbols.max())
    if low < 0 or high >= network.vocab_size:
        raise UserError(
            f"{name} has tokens from {low} to {high}, the network's symbols are "
            f"0 to {network.vocab_size - 1}: was it made with another tokenizer?"
        )
    never = torch.tensor(getattr(network.config, "forbidden", ()), dtype=torch.int64)
    if bool(torch.isin(symbols, never).any()):
        found = int(symbols[torch.isin(symbols, never)][0])
        raise UserError(
            f"{name} has token {found}, a special symbol that the network never draws: "
            "leave out the rows that hold it"
        )
    return count
