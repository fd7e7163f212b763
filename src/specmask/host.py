"""Numbers on the host: what decides shapes is small, and stays where looking at it costs nothing.

To look at a number on an accelerator is to wait until all that was asked of it is done, while
nothing new is asked; so it is done once a pass, or once a round of verification.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor


def upload(device: torch.device, *numbers: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape and type on a device, moved there as one, without waiting for it."""
    together = torch.stack(numbers) if len(numbers) > 1 else numbers[0][None]
    # Metal may read the source when it is gone (github.com/pytorch/pytorch/issues/189690).
    return together.to(device, non_blocking=device.type != "mps").unbind(0)


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
