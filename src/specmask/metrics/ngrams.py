"""Distinct n-grams: how much a sample repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specmask.checks import whole
from specmask.metrics.estimate import Estimate, ratio


def distinct_ngrams(
    samples: Sequence[Sequence[int]] | Tensor,
    n: int,
    lengths: Sequence[int] | Tensor | None = None,
) -> Estimate:
    """Different n-grams of a sample over all its n-grams (Li et al., arXiv 1510.03055).

    Counted within a sample, so that the figure does not fall with their number; a ratio of totals
    over samples, with their standard error. It does fall with the length of a sample: compare
    samples of one length.

    Args:
        samples: rows of tokens, or (B, L) int64.
        n: tokens in a row, at least 1.
        lengths: (B,) tokens of each row that count; default all.

    Returns:
        mean in 0..1, NaN if no sample has n tokens.

    Raises:
        UserError: n below 1.
    """
    whole("n", n, 1)
    rows = samples.tolist() if isinstance(samples, Tensor) else [list(row) for row in samples]
    ends = [len(row) for row in rows] if lengths is None else [int(end) for end in lengths]
    grams = [
        [tuple(row[k : k + n]) for k in range(end - n + 1)]
        for row, end in zip(rows, ends, strict=True)
    ]
    return ratio([len(set(each)) for each in grams], [len(each) for each in grams])
