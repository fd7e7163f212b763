"""Measured points: quality of samples against cost, and exact bits per character against cost."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import specmask
from specmask.likelihood import Progress, conditionals, orders_of, score
from specmask.masking import GroupLaw, Window
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.estimate import ratio
from specmask.metrics.spelling import word_counts
from specmask.models.checkpoint import Model
from specmask.samplers import Sampler
from specmask.training.loop import versions

Point = dict[str, Any]


def show(value: Any) -> Any:
    """A setting as one types it: windows become words, a model its name, the rest stays."""
    if isinstance(value, Model):
        return value.name
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


def describe(sampler: Sampler, seed: int) -> Point:
    """What a results file says of a setting."""
    return {
        "sampler": sampler_name(sampler),
        "settings": settings_of(sampler),
        "seed": seed,
        "versions": versions(),
    }


def estimate(values: Tensor) -> tuple[float, float]:
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
    correct, total = word_counts(out.text or [], words)
    accuracy = ratio(correct, total)
    entropy = unigram_entropy(out.tokens)
    nfe, nfe_error = estimate(out.nfe)
    return {
        "kind": "samples",
        **describe(sampler, seed),
        "num": num,
        "bf16": bf16,
        "nfe": nfe,
        "nfe_se": nfe_error,
        "trunk_passes": estimate(out.trunk_passes)[0],
        "verify_passes": estimate(out.verify_passes)[0],
        "accepted": estimate(out.accepted)[0],
        "rejected": estimate(out.rejected)[0],
        "spelling": accuracy.mean,
        "spelling_se": accuracy.standard_error,
        "entropy": entropy.mean,
        "entropy_se": entropy.standard_error,
        "seconds_per_sample": out.wall_seconds / num,
        "each": {"correct": correct, "words": total, "nfe": _rounded(out.nfe)},
    }


def law_points(
    model: Model,
    tokens: Tensor,
    samplers: Sequence[Sampler],
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Point]:
    """Exact bits per token and exact expected NFE of every sampler on (B, L) held-out rows.

    Each row has one order, random or, for samplers that go so, left to right. One table of
    conditionals scores all samplers of one kind of order; standard errors are over rows. The
    samplers must share one tempering.
    """
    laws = [sampler.law() for sampler in samplers]
    each: list[list[Tensor]] = [[] for _ in samplers]
    orders = [orders_of(sampler, tokens, seed) for sampler in samplers]
    kinds = list({bytes(order.cpu().numpy()): order for order in orders}.values())
    trunk_layers, head_layers = model.network.trunk_layers, model.network.head_layers
    size = max(1, (1 << 24) // tokens.shape[1] ** 2)  # rows whose tables stay below 256 MB
    parts = [slice(at, at + size) for at in range(0, len(tokens), size)]
    done, total = 0, len(kinds) * tokens.numel()
    for kind, part in itertools.product(kinds, parts):
        table = conditionals(
            model,
            tokens[part],
            kind[part],
            temperature=laws[0].temperature,
            top_p=laws[0].top_p,
            target=model.network.head_layers > 0,
            best=any(getattr(law, "stop", 0) > 0 for law in laws),
            batch_size=batch_size,
            progress=None if progress is None else _after(done, total, progress),
        )
        done += tokens[part].numel()
        for k, law in enumerate(laws):
            if torch.equal(orders[k], kind):
                result = score(table, law)
                cost = trunk_layers * result.trunk + head_layers * result.verify
                bits = -result.log_prob / math.log(2) / tokens.shape[1]
                each[k].append(torch.stack((bits, cost / (trunk_layers + head_layers))))
    return [
        _law_point(sampler, torch.cat(values, 1).cpu(), seed)
        for sampler, values in zip(samplers, each, strict=True)
    ]


def _after(done: int, total: int, progress: Progress) -> Progress:
    return lambda now, _: progress(done + now, total)


def _law_point(sampler: Sampler, values: Tensor, seed: int) -> Point:
    bits, bits_error = estimate(values[0])
    nfe, nfe_error = estimate(values[1])
    return {
        "kind": "law",
        "plain": isinstance(sampler.law(), GroupLaw),
        **describe(sampler, seed),
        "rows": values.shape[1],
        "bits": bits,
        "bits_se": bits_error,
        "nfe": nfe,
        "nfe_se": nfe_error,
        "each": {"bits": _rounded(values[0]), "nfe": _rounded(values[1])},
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def json_line(row: Point) -> str:
    """One line of JSON; a number that is not finite, which JSON has no word for, becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def write_points(path: Path, points: Iterable[Point]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json_line(point) for point in points), encoding="utf-8")


def read_points(path: Path) -> list[Point]:
    """What `write_points` wrote; settings that came later than a file have their defaults."""
    points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for point in points:
        if (kind := specmask.SAMPLERS.get(point.get("sampler"))) is not None:
            usual = {one.name: show(one.default) for one in fields(kind) if one.default != MISSING}
            point["settings"] = usual | point["settings"]
    return points
