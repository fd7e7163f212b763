"""Muon, with the matrices of one shape orthogonalised together.

Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024
(https://kellerjordan.github.io/posts/muon/). torch's own goes matrix by matrix, some forty small
operations each: on a GPU it waits for their launches longer than for the gradients of a small
network. Here a step is those operations once a shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`: arguments, state and steps are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of matrices of one shape."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        means = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, means, group["momentum"])
        turned = orthogonal(
            torch.stack(ahead if group["nesterov"] else means),
            *(group["ns_coefficients"], group["ns_steps"], group["eps"]),
        )
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            *(parameters, turned.to(parameters[0].dtype).unbind()),
            alpha=-group["lr"] * _scale(group["adjust_lr_fn"], *parameters[0].shape),
        )


def _scale(rule: str | None, rows: int, columns: int) -> float:
    """What a shape multiplies the learning rate by, under a name of torch's `adjust_lr_fn`."""
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def orthogonal(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """(n, rows, columns) → bfloat16 matrices of the same directions, singular values near one.

    Newton and Schulz's iteration X ← a·X + (b·G + c·G²)·X with G = X·Xᵀ, whose polynomial lifts
    small singular values fast and leaves them between about 0.7 and 1.2.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
