"""The loss of a masked token by how many are known, from tables of conditionals."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from numpy.polynomial import Polynomial
from torch import Tensor

from specmask.errors import UserError
from specmask.likelihood.table import Conditionals

_DEGREE = 5


def nll_profile(table: Conditionals) -> tuple[float, ...]:
    """f(0), …, f(D − 1): mean nats of a masked token's draft with i ranks known (method.md §6).

    The mean is over the rows, their orders and all masked ranks. Its noise is taken out by a
    polynomial of degree 5, weighted by the number of terms, and by isotonic regression, since more
    knowledge cannot hurt on average: cuts found on the raw means would fall where those happen to
    be flat.

    Raises:
        UserError: rows of different lengths.
    """
    rows, length, _ = table.log_q.shape
    if bool((table.lengths < length).any()):
        raise UserError("a loss profile needs rows of one length: pass full rows")
    masked = torch.arange(length) >= torch.arange(length)[:, None]
    total = -table.log_q.cpu().masked_fill(~masked, 0).sum((0, 2))
    terms = rows * masked.sum(1).double()
    return tuple(falling(_smooth(total / terms, terms), terms).tolist())


def _smooth(values: Float64[Tensor, "n"], weights: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The polynomial nearest in weighted squares."""
    degree = min(_DEGREE, len(values) - 1)
    ranks = np.arange(len(values))
    # numpy squares a residual with its weight
    fitted = Polynomial.fit(ranks, values.numpy(), degree, w=weights.sqrt().numpy())
    return torch.from_numpy(fitted(ranks))


def falling(values: Float64[Tensor, "n"], weights: Float64[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """The non-increasing sequence nearest in weighted squares (pool adjacent violators)."""
    means: list[float] = []
    sizes: list[tuple[float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        sizes.append((weight, 1))
        while len(means) > 1 and means[-1] > means[-2]:
            (a, m), (b, n) = sizes.pop(), sizes.pop()
            high, low = means.pop(), means.pop()
            means.append((a * high + b * low) / (a + b))
            sizes.append((a + b, m + n))
    counts = torch.tensor([count for _, count in sizes])
    return torch.tensor(means, dtype=torch.float64).repeat_interleave(counts)
