"""specmask: self-speculative masked diffusion, exact from the first draft to the last bit."""

from specmask.errors import UserError
from specmask.likelihood import (
    Conditionals,
    Elbo,
    Score,
    conditionals,
    elbo,
    evaluate,
    expected_passes,
    log_prob,
    random_orders,
    score,
)
from specmask.masking import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from specmask.models.checkpoint import Model, load, save, wrap
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.models.pretrained import from_pretrained_trunk
from specmask.samplers import (
    SAMPLERS,
    Ancestral,
    AnyOrder,
    Confidence,
    EntropyBound,
    FirstHitting,
    Frame,
    Samples,
    Speculative,
    Threshold,
    sample,
    stream,
)

__version__ = "0.1.0"

__all__ = [
    "SAMPLERS",
    "Ancestral",
    "AnyOrder",
    "Conditionals",
    "Confidence",
    "ConstantWindow",
    "CosineWindow",
    "Elbo",
    "EntropyBound",
    "FirstHitting",
    "Frame",
    "FullWindow",
    "HybridConfig",
    "HybridTransformer",
    "LinearWindow",
    "Model",
    "Samples",
    "Score",
    "Speculative",
    "Threshold",
    "UserError",
    "conditionals",
    "elbo",
    "evaluate",
    "expected_passes",
    "from_pretrained_trunk",
    "load",
    "log_prob",
    "random_orders",
    "sample",
    "save",
    "score",
    "stream",
    "wrap",
]
