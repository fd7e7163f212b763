"""Measures of samples, each with its standard error."""

from specmask.metrics.estimate import Estimate

__all__ = ["Estimate"]
