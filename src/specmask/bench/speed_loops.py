"""Loops that fill rows, timed: ours, its trunk passes alone, the textbook's, and left to right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import specmask
from specmask.bench.speed_cases import Case
from specmask.host import now
from specmask.models.checkpoint import Model


@dataclass(frozen=True)
class Timed:
    """One run of a loop. passes: trunk passes of the batch; tokens: revealed, of all rows.

    rows: how many rows each pass had.
    """

    seconds: float
    passes: int
    tokens: int
    rows: tuple[int, ...]


def canvas_of(model: Model, case: Case) -> Tensor:
    """Rows with the first tokens given: symbols in turn."""
    canvas = torch.full((case.batch, case.length), model.network.mask_id)
    given = round(case.known * case.length)
    canvas[:, :given] = torch.arange(given) % min(model.network.vocab_size, 1000)
    return canvas


def ours(model: Model, case: Case, seed: int = 0) -> Timed:
    """The sampler as `stream` drives it, from the first pass on."""
    frames = specmask.stream(
        model, case.sampler, canvas=canvas_of(model, case), seed=seed, batch_size=case.batch
    )
    next(frames)  # arguments and weights are checked, nothing is drawn
    began, rows, tokens = now(model.device), [], 0
    for frame in itertools.islice(frames, case.passes):
        rows.append(len(frame.rows))
        tokens += int(frame.info.revealed.sum())
    return Timed(now(model.device) - began, len(rows), tokens, tuple(rows))


@torch.no_grad()
def bare(model: Model, case: Case, rows: Sequence[int]) -> Timed:
    """The same trunk passes, and nothing else."""
    canvas = canvas_of(model, case).to(model.device)
    lengths = torch.full((case.batch,), case.length, device=model.device)
    began = now(model.device)
    for count in rows:
        model.network.trunk(canvas[:count], lengths[:count])
    return Timed(now(model.device) - began, len(rows), 0, tuple(rows))


@torch.no_grad()
def textbook(model: Model, case: Case, steps: int, seed: int = 0) -> Timed:
    """Plain masked diffusion as it is usually written: fixed steps, all rows, logits and float64
    Gumbel noise for every position and symbol, the argmax at as many random masked positions as
    the step reveals.
    """
    network, device = model.network, model.device
    tokens = canvas_of(model, case).to(device)
    lengths = torch.full((case.batch,), case.length, device=device)
    every = torch.arange(case.length, device=device).expand_as(tokens)
    generator = torch.Generator(device).manual_seed(seed)
    masked = int((tokens[0] == network.mask_id).sum())
    began = now(device)
    for step in range(steps):
        logits = network.draft_logits(network.trunk(tokens, lengths), every)
        noise = torch.rand(logits.shape, dtype=torch.float64, device=device, generator=generator)
        drawn = (logits.double() - (-noise.log()).log()).argmax(-1)
        hidden = tokens == network.mask_id
        keys = torch.rand(tokens.shape, device=device, generator=generator).masked_fill(~hidden, 2)
        count = masked * (step + 1) // steps - masked * step // steps
        at = keys.argsort(1)[:, :count]
        tokens = tokens.scatter(1, at, drawn.gather(1, at))
    seconds = now(device) - began
    return Timed(seconds, steps, case.batch * masked, (case.batch,) * steps)


class LeftToRight:
    """An autoregressive model of equal size, GPT-2's architecture in Transformers, random weights,
    with a cache of keys and values."""

    def __init__(self, model: Model, length: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config: Any = model.network.config  # type: ignore[attr-defined]
        layers = model.network.trunk_layers + model.network.head_layers
        dtype = next(model.network.parameters()).dtype  # type: ignore[attr-defined]
        self._model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=model.network.vocab_size,
                n_positions=length,
                n_embd=config.width,
                n_layer=layers,
                n_head=config.heads,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        self._model.to(model.device, dtype).eval()  # type: ignore[arg-type]
        self._device = model.device

    @torch.no_grad()
    def __call__(self, case: Case, limit: int) -> Timed:
        """At most `limit` tokens a row after those that are given, drawn one by one."""
        given = max(1, round(case.known * case.length))
        count = min(limit, case.length - given)
        tokens = torch.zeros(case.batch, given, dtype=torch.int64, device=self._device)
        out = self._model(input_ids=tokens, use_cache=True)  # the given ones, not timed
        began = now(self._device)
        for _ in range(count):
            p = out.logits[:, -1].softmax(-1)
            tokens = torch.multinomial(p, 1)
            out = self._model(input_ids=tokens, past_key_values=out.past_key_values, use_cache=True)
        seconds = now(self._device) - began
        return Timed(seconds, count, case.batch * count, (case.batch,) * count)
