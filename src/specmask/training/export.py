"""From a run's averaged weights to a model folder."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from specmask.errors import UserError
from specmask.models.checkpoint import save
from specmask.models.hybrid import HybridConfig, build
from specmask.training.checkpoints import newest
from specmask.training.ema import copy_into, weights


def export(
    out: str | Path,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn the averaged weights of a run's newest checkpoint into a model folder.

    Only reads in `out`, so it may be called while the training goes on.

    Args:
        out: a run of a network from scratch. folder: where the model goes.
        dtype: of the weights saved. card, overwrite: see `models.checkpoint.save`.

    Raises:
        UserError: there is no whole checkpoint in `out`.
    """
    found = newest(Path(out))
    if found is None:
        raise UserError(f"no checkpoint in {out}: expected the folder a training was started with")
    network = build(HybridConfig(**found.state["network"]))
    averages = found.tensors("ema.safetensors")
    copy_into(weights(network), {**found.tensors("model.safetensors"), **averages})
    file = Path(out) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.exists() else None
    save(folder, network, tokenizer, card, dtype, overwrite)
    return Path(folder)
