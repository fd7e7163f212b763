"""Measures of samples, each with its standard error."""

from specmask.metrics.estimate import Estimate
from specmask.metrics.folding import FoldReport, fold_confidence, load_folder

__all__ = ["Estimate", "FoldReport", "fold_confidence", "load_folder"]
