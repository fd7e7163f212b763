"""Training of the error head: which tokens of a filled row are wrong (G-Star)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from specmask.categorical import Purpose, uniform
from specmask.checks import check_seed, whole
from specmask.models.checkpoint import Model
from specmask.models.guides import ErrorHead, ErrorHeadConfig, hidden_width
from specmask.models.protocol import draft_logits
from specmask.samplers.base import check_number, draw_tokens, score_tokens
from specmask.training.guide_run import GuideRun, adamw
from specmask.training.loss import Rows, draw_masks, tokens_and_lengths

_VALIDATION = (1 << 32) - 1  # a step that no training reaches names the masks of validation


@dataclass(frozen=True)
class ErrorTraining:
    """Settings of `train_error_head`; published: learning rate 1e-4."""

    steps: int = 1000
    """Optimiser steps, at least 1."""
    lr: float = 1e-4
    """Learning rate of AdamW, above 0."""
    warmup: int = 50
    """Steps of linear warm-up, at least 0."""
    seed: int = 0
    """Names masks, drawn tokens and the head's first weights."""
    eval_every: int = 200
    """Steps between two validations."""
    save_every: int = 200
    """Steps between two checkpoints, where there is a folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "save_every"):
            whole(name, getattr(self, name), 1)
        whole("warmup", self.warmup, 0)
        check_number("lr", self.lr, 1e-12)
        check_seed(self.seed)


@dataclass(frozen=True)
class Filled:
    """Rows in which what was masked is drawn from the draft.

    tokens: (B, L). wrong: (B, L) where they differ from the row that was masked. drawn: (B, L) what
    was masked. inside: (B, L) in the row. lengths: (B,).
    """

    tokens: Tensor
    wrong: Bool[Tensor, "rows length"]
    drawn: Bool[Tensor, "rows length"]
    inside: Bool[Tensor, "rows length"]
    lengths: Tensor


@torch.no_grad()
def fill(model: Model, rows: Rows, seed: int, step: int) -> Filled:
    """Mask rows as in training (i known, uniform), and fill them in one pass of the draft.

    A pure function of its arguments.
    """
    network = model.network
    tokens, lengths = tokens_and_lengths(rows)
    tokens = tokens.to(model.device)
    if lengths is None:
        lengths = torch.full((len(tokens),), tokens.shape[1])
    lengths = lengths.to(model.device)
    order, revealed = draw_masks(seed, step, lengths, tokens.shape[1])
    places = torch.arange(tokens.shape[1], device=model.device)
    hidden_ranks = (places >= revealed[:, None]) & (places < lengths[:, None])
    drawn = torch.zeros_like(hidden_ranks).scatter(1, order, hidden_ranks)
    hidden = network.trunk(tokens.masked_fill(drawn, network.mask_id), lengths)
    logits = draft_logits(network, hidden, places.expand(tokens.shape))
    numbers = torch.arange(len(tokens), device=model.device)[:, None]
    found, _ = draw_tokens(logits, uniform(seed, numbers, places, Purpose.DRAFT, step), 1.0, 1.0)
    filled = torch.where(drawn, found, tokens)
    return Filled(filled, filled != tokens, drawn, places < lengths[:, None], lengths)


def error_loss(model: Model, head: ErrorHead, filled: Filled) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of 1[token is wrong], nats a token, and the (B, L) logits.

    Of all tokens of a row, those that were never masked too: when sampling, the head is not told
    which are which either. The trunk keeps no gradients.
    """
    with torch.no_grad():
        hidden = model.network.trunk(filled.tokens, filled.lengths)
    logits = head(hidden, filled.lengths)
    inside = filled.inside
    return F.binary_cross_entropy_with_logits(
        logits[inside], filled.wrong[inside].to(logits.dtype)
    ), logits


def area_under_curve(scores: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> float:
    """Probability that a wrong token scores above a right one (ties count half); NaN if one lacks.

    The Mann-Whitney statistic from ranks.
    """
    pos, neg = int(positive.sum()), int((~positive).sum())
    if not pos or not neg:
        return float("nan")
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # mean rank of equals
    return float((ranks[positive].sum() - pos * (pos + 1) / 2) / (pos * neg))


@torch.no_grad()
def validate(model: Model, head: ErrorHead, rows: Rows, seed: int = 0) -> dict[str, float]:
    """Loss, base rate and area under the curve on rows filled in one fixed way.

    `auc` is over the drawn tokens alone, `confidence_auc` that of −probability of the token when it
    was drawn: what the score confidence goes by.
    """
    filled = fill(model, rows, seed, _VALIDATION)
    loss, logits = error_loss(model, head, filled)
    hidden = model.network.trunk(
        filled.tokens.masked_fill(filled.drawn, model.network.mask_id), filled.lengths
    )
    places = torch.arange(filled.tokens.shape[1], device=model.device).expand(filled.tokens.shape)
    chance = score_tokens(
        draft_logits(model.network, hidden, places), filled.tokens, 1.0, 1.0
    ).exp()
    wrong = filled.wrong[filled.drawn]
    return {
        "loss": float(loss),
        "wrong": float(filled.wrong[filled.inside].double().mean()),
        "auc": area_under_curve(logits[filled.drawn], wrong),
        "confidence_auc": area_under_curve(-chance[filled.drawn], wrong),
    }


def train_error_head(
    model: Model,
    batches: Callable[[int], Rows],
    config: ErrorTraining | None = None,
    *,
    validation: Rows | None = None,
    heads: int = 4,
    mlp_hidden: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> ErrorHead:
    """Train g_φ for `Star(score="learned")` on rows of the model's data (arXiv 2510.08369).

    Each step masks a batch, fills it from the frozen draft, and learns which tokens differ from the
    data's. (The paper fills in one ancestral step; here, as the sampler does, all at once.)

    Args:
        model: from `load` or `wrap`; frozen.
        batches: step → rows of data. validation: others, for loss and area under the curve.
        config: default `ErrorTraining()`.
        heads, mlp_hidden: of the head's block; default 3 times the trunk's width.
        out: folder for log.jsonl, checkpoints and, at the end, `guide/`, which `load_error_head`
            and `--error-head` read. resume: go on from the newest checkpoint there.
        on_step: told of every step: loss, at times validation, time left (s).

    Returns:
        The head, in eval mode.

    Raises:
        UserError: `out` holds a run and `resume` is False, or one of other settings.
    """
    config = ErrorTraining() if config is None else config
    width = hidden_width(model.network)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = ErrorHead(ErrorHeadConfig(width, heads, mlp_hidden or 3 * width))
    head = head.to(model.device).train()
    optimizer = adamw(head, config.lr)
    run = GuideRun(None if out is None else Path(out), asdict(config), head, optimizer, resume)
    began, start = time.perf_counter(), run.step
    while run.step < config.steps:
        filled = fill(model, batches(run.step), config.seed, run.step)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (run.step + 1) / max(1, config.warmup))
        optimizer.zero_grad()
        loss, _ = error_loss(model, head, filled)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        row: dict[str, Any] = {"loss": float(loss.detach())}
        last = run.step + 1 == config.steps
        if validation is not None and (last or (run.step + 1) % config.eval_every == 0):
            found = validate(model, head, validation, config.seed)
            row |= {f"validation_{name}": value for name, value in found.items()}
        run.advance("train", row)
        pace = (time.perf_counter() - began) / (run.step - start)
        if on_step is not None:
            on_step({"step": run.step, **row, "seconds_left": pace * (config.steps - run.step)})
    head.eval()
    run.finish()
    return head
