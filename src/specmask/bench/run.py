"""Measured points: quality of samples against cost, and exact bits per character against cost."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import specmask
from specmask.likelihood import conditionals, random_orders, score
from specmask.masking import GroupLaw, Window
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.spelling import spelling_accuracy
from specmask.models.checkpoint import Model
from specmask.samplers import Sampler
from specmask.training.loop import versions

Point = dict[str, Any]


def show(value: Any) -> Any:
    """A setting as one types it: windows become words, the rest stays."""
    if not isinstance(value, Window):
        return value
    name = type(value).__name__.removesuffix("Window").lower()
    return ":".join([name, *(str(number) for number in vars(value).values())])


def settings_of(sampler: Sampler) -> dict[str, Any]:
    """A sampler's settings for a results file."""
    return {name: show(value) for name, value in vars(sampler).items()}


def sampler_name(sampler: Sampler) -> str:
    """The name in `SAMPLERS`."""
    return next(name for name, kind in specmask.SAMPLERS.items() if type(sampler) is kind)


def _about(sampler: Sampler, seed: int) -> Point:
    return {
        "sampler": sampler_name(sampler),
        "settings": settings_of(sampler),
        "seed": seed,
        "versions": versions(),
    }


def _estimate(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of (n,) values."""
    values = values.double()
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def sample_point(
    model: Model,
    sampler: Sampler,
    words: frozenset[str],
    num: int,
    seed: int = 0,
    batch_size: int = 64,
    bf16: bool = False,
) -> Point:
    """Spelling accuracy, unigram entropy (nats) and metered NFE of `num` samples, each with its
    standard error over samples.

    bf16: run the network's matrix products in bfloat16; the law sampled is then that network's.
    """
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        out = specmask.sample(model, sampler, num=num, seed=seed, batch_size=batch_size)
    accuracy = spelling_accuracy(out.text or [], words)
    entropy = unigram_entropy(out.tokens)
    nfe, nfe_error = _estimate(out.nfe)
    return {
        "kind": "samples",
        **_about(sampler, seed),
        "num": num,
        "bf16": bf16,
        "nfe": nfe,
        "nfe_se": nfe_error,
        "trunk_passes": _estimate(out.trunk_passes)[0],
        "verify_passes": _estimate(out.verify_passes)[0],
        "accepted": _estimate(out.accepted)[0],
        "rejected": _estimate(out.rejected)[0],
        "spelling": accuracy.mean,
        "spelling_se": accuracy.standard_error,
        "entropy": entropy.mean,
        "entropy_se": entropy.standard_error,
        "seconds_per_sample": out.wall_seconds / num,
    }


def law_points(
    model: Model,
    tokens: Tensor,
    samplers: Sequence[Sampler],
    seed: int = 0,
    batch_size: int = 64,
    track: Callable[[range], Iterable[int]] = iter,
) -> list[Point]:
    """Exact bits per character and exact expected NFE of every sampler on (B, L) held-out rows.

    One table of conditionals per row, under one random order, scores all of them; standard errors
    are over rows. The samplers must share one tempering. `track` may show the rows' progress.
    """
    orders = random_orders(tokens, seed)
    first = samplers[0].law()
    each: list[list[tuple[float, float]]] = [[] for _ in samplers]
    trunk_layers, head_layers = model.network.trunk_layers, model.network.head_layers
    for row in track(range(len(tokens))):
        table = conditionals(
            model,
            tokens[row : row + 1],
            orders[row : row + 1],
            temperature=first.temperature,
            top_p=first.top_p,
            batch_size=batch_size,
        )
        for k, sampler in enumerate(samplers):
            result = score(table, sampler.law())
            cost = trunk_layers * result.trunk + head_layers * result.verify
            nfe = float(cost) / (trunk_layers + head_layers)
            each[k].append((-float(result.log_prob) / math.log(2) / tokens.shape[1], nfe))
    return [
        _law_point(sampler, torch.tensor(values, dtype=torch.float64), seed)
        for sampler, values in zip(samplers, each, strict=True)
    ]


def _law_point(sampler: Sampler, values: Tensor, seed: int) -> Point:
    bits, bits_error = _estimate(values[:, 0])
    nfe, nfe_error = _estimate(values[:, 1])
    return {
        "kind": "law",
        "plain": isinstance(sampler.law(), GroupLaw),
        **_about(sampler, seed),
        "rows": len(values),
        "bits": bits,
        "bits_se": bits_error,
        "nfe": nfe,
        "nfe_se": nfe_error,
    }


def json_line(row: Point) -> str:
    """One line of JSON; a number that is not finite, which JSON has no word for, becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def write_points(path: Path, points: Iterable[Point]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json_line(point) for point in points))


def read_points(path: Path) -> list[Point]:
    """What `write_points` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def frontier(points: Sequence[Point], quality: str, sign: int) -> list[Point]:
    """The points no cheaper one is as good as, by rising NFE; sign +1 if more quality is better."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p["nfe"], -sign * p[quality])):
        if not best or sign * point[quality] > sign * best[-1][quality]:
            best.append(point)
    return best


def factor_at_equal(
    plain: Sequence[Point], ours: Sequence[Point], quality: str, sign: int
) -> list[tuple[float, float, float]]:
    """(our NFE, quality, plain NFE ÷ our NFE) at each of our frontier's points that plain reaches.

    Plain NFE at that quality is interpolated in log NFE along plain's own frontier.
    """
    curve = frontier(plain, quality, sign)
    found = []
    for point in frontier(ours, quality, sign):
        for low, high in itertools.pairwise(curve):
            a, b, q = low[quality], high[quality], point[quality]
            if sign * a <= sign * q <= sign * b:
                t = (q - a) / (b - a)
                nfe = low["nfe"] * (high["nfe"] / low["nfe"]) ** t
                found.append((point["nfe"], q, nfe / point["nfe"]))
                break
    return found
