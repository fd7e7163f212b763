"""A figure and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over independent samples.

    mean: NaN if there was nothing to measure. standard_error: NaN for fewer than two samples.
    count: samples, those that had nothing to measure included.
    """

    mean: float
    standard_error: float
    count: int


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """Σ parts / Σ wholes over samples, with the delta method's standard error.

    With r the ratio and eₖ = partₖ − r·wholeₖ, the variance of r is about
    n/(n−1) · Σ eₖ² / (Σ wholes)² (Cochran, *Sampling Techniques*, 1977, ch. 6). Where every whole
    is 1, these are the mean and its usual standard error.
    """
    count, whole = len(wholes), math.fsum(wholes)
    if whole == 0:
        return Estimate(math.nan, math.nan, count)
    mean = math.fsum(parts) / whole
    if count < 2:
        return Estimate(mean, math.nan, count)
    squares = math.fsum((a - mean * b) ** 2 for a, b in zip(parts, wholes, strict=True))
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / whole, count)
