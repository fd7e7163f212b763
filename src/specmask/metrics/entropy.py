"""Unigram entropy of samples: low when a sampler repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from specmask.errors import UserError, unknown
from specmask.metrics.estimate import Estimate, ratio

_UNITS = {"nats": 1.0, "bits": math.log(2)}


def unigram_entropy(
    samples: Sequence[Sequence[int]] | Tensor,
    lengths: Sequence[int] | Tensor | None = None,
    unit: str = "nats",
) -> Estimate:
    """Mean over samples of the entropy of a sample's own token histogram.

    The companion of generative perplexity (Zheng et al., arXiv 2409.02908): a sampler that repeats
    itself flatters its perplexity and shows here.

    Args:
        samples: rows of tokens, or (B, L) int64.
        lengths: (B,) tokens of each row that count; default all.
        unit: "nats" or "bits".

    Returns:
        mean in 0..log(tokens of a row), NaN without samples.

    Raises:
        UserError: another unit, lengths that do not fit the rows, a row without a token.
    """
    if unit not in _UNITS:
        raise unknown("unit", unit, _UNITS)
    rows = samples.tolist() if isinstance(samples, Tensor) else [list(row) for row in samples]
    if isinstance(lengths, Tensor):
        lengths = lengths.tolist()
    ends = [len(row) for row in rows] if lengths is None else list(lengths)
    if len(ends) != len(rows):
        raise UserError(f"{len(ends)} lengths for {len(rows)} samples: expected one for each")
    for k, (row, end) in enumerate(zip(rows, ends, strict=True)):
        if not 1 <= end <= len(row):
            raise UserError(
                f"sample {k}: length {end} of {len(row)} tokens, expected 1 to {len(row)}; "
                "leave out samples without a token"
            )
    values = [_entropy(row[:end]) / _UNITS[unit] for row, end in zip(rows, ends, strict=True)]
    return ratio(values, [1.0] * len(values))


def bits_per_character(nats_per_token: float) -> float:
    """Nats in bits: × log₂ e. For tokens that are characters."""
    return nats_per_token / math.log(2)


def _entropy(row: Sequence[int]) -> float:
    shares = np.unique(np.asarray(row), return_counts=True)[1] / len(row)
    return float((shares * np.log(1 / shares)).sum())
