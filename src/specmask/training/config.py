"""The settings of a training run, checked, and the learning rate they imply at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from specmask.errors import UserError, unknown

PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = ("adamw", "muon")
REVEALED = ("uniform", "log")
WEIGHTINGS = ("row", "token")

CADENCE = frozenset(
    {
        *("log_every", "eval_every", "save_every", "save_every_seconds", "keep"),
        *("compile", "checkpoint_activations"),
    }
)
"""Fields that may differ when a run is resumed: they say when to look and how fast, not what."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run besides the network and the data.

    Raises:
        UserError: a field is of the wrong kind or out of its range.
    """

    steps: int
    """Optimiser steps in the whole run; the learning rate schedule ends here."""
    batch_size: int = 64
    """Rows per optimiser step, over all micro-batches and devices."""
    accumulation: int = 1
    """Micro-batches per step; more of them need less memory and give the same gradient."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 100
    """Steps of linear warm-up, at most `steps`."""
    final_lr: float = 0.1
    """Learning rate at the last step, as a fraction of the peak (0 to 1)."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only (never on norms and biases)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    clip: float = 1.0
    """Largest gradient norm; longer gradients are scaled down to it."""
    ema: float = 0.999
    """Decay of the averaged weights, min(ema, (1 + t) / (10 + t)) at step t; 0 averages nothing."""
    precision: str = "fp32"
    """fp32, or bf16 (automatic mixed precision; weights and optimiser state stay float32)."""
    optimizer: str = "adamw"
    """adamw, or muon (Muon for the matrices of the blocks, AdamW for everything else)."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon, scaled by max(1, rows/columns)^½ for each matrix."""
    compile: bool = False
    """Compile the training step with torch.compile (slow start, faster steps)."""
    checkpoint_activations: bool = False
    """Recompute what is inside a block in the backward pass: far less memory, somewhat slower."""
    revealed: str = "uniform"
    """How many tokens of a training row are revealed: uniform (the paper's), or log, uniform in
    log(1 + i). Where a few tokens decide the row, as in proteins of one family, that is where
    the head has most to learn, and uniform shows it too seldom. Validation is always uniform."""
    weighting: str = "row"
    """What counts alike in the loss: every row (the bound, the paper's), or every masked token,
    whose gradient has a third of the noise at 256 tokens. Validation is always the bound."""
    target_weight: float = 1.0
    """Weight of the target's term in the loss; the draft's is one."""
    distil: float = 0.0
    """Share (0 to 1) of the draft's term that learns the target's distribution, not the token."""
    head_lr: float = 1.0
    """Learning rate of the causal head, as a multiple of the others'."""
    frozen_trunk: bool = False
    """Train the causal head alone; the trunk stays as it is."""
    seed: int = 0
    """Seed of the orders, masks and dropout, 0 to 2³²−1."""
    log_every: int = 50
    """Steps between two lines of the log."""
    eval_every: int = 1000
    """Steps between two validations."""
    eval_rows: int = 256
    """Validation rows to use, the first ones; fewer if there are fewer."""
    save_every: int = 1000
    """Steps between two checkpoints; 0 saves by the clock only (and at the end)."""
    save_every_seconds: float = 600.0
    """Seconds between two checkpoints; 0 saves by steps only (and at the end)."""
    keep: int = 2
    """Checkpoints kept; at least 2, so that a damaged one has a predecessor."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name in ("steps", "batch_size", "accumulation", "log_every", "eval_every", "eval_rows"):
            _check_range(self, name, 1)
        _check_range(self, "warmup", 0, self.steps)
        _check_range(self, "seed", 0, 2**32 - 1)
        _check_range(self, "save_every", 0)
        _check_range(self, "save_every_seconds", 0)
        _check_range(self, "keep", 2)
        _check_range(self, "final_lr", 0, 1)
        _check_range(self, "target_weight", 0)
        _check_range(self, "distil", 0, 1)
        _check_range(self, "weight_decay", 0)
        for name in ("lr", "muon_lr", "head_lr", "clip"):
            _check_range(self, name, math.ulp(0.0))
        for value in (self.ema, *self.betas):
            if not 0 <= value < 1:
                raise UserError(f"ema and betas must be at least 0 and below 1, got {value}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.revealed not in REVEALED:
            raise unknown("revealed", self.revealed, REVEALED)
        if self.weighting not in WEIGHTINGS:
            raise unknown("weighting", self.weighting, WEIGHTINGS)
        if self.batch_size % self.accumulation:
            raise UserError(
                f"batch_size {self.batch_size} is not a multiple of accumulation "
                f"{self.accumulation}: choose an accumulation that divides it"
            )


def lr_factor(step: int, config: TrainConfig) -> float:
    """The learning rate of a step (0-based) as a fraction of the peak.

    Rises linearly to 1 over `warmup` steps, then falls along half a cosine to `final_lr`, which
    the last step has exactly.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * done)) / 2


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
}


def _check_kinds(config: TrainConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "betas":
            pair = isinstance(value, tuple) and len(value) == 2
            if not pair or not all(_is_kind(beta, "float") for beta in value):
                raise UserError(f"betas must be two numbers, got {value!r}")
        elif not _is_kind(value, str(field.type)):
            raise UserError(f"{field.name} must be {field.type}, got {value!r}")


def _is_kind(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "bool":
        return False
    return isinstance(value, _KINDS[kind])


def _check_range(config: TrainConfig, name: str, low: float, high: float = math.inf) -> None:
    value = getattr(config, name)
    if not (low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
        wanted = "above 0" if low == math.ulp(0.0) else wanted
        raise UserError(f"{name} must be finite and {wanted}, got {value}")
