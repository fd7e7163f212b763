"""Measured points: quality of samples against cost, and exact bits per character against cost."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import specmask
from specmask.errors import UserError
from specmask.likelihood import Progress, conditionals, orders_of, score
from specmask.masking import GroupLaw, Window
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.estimate import ratio
from specmask.metrics.ngrams import distinct_ngrams
from specmask.metrics.proteins import composition_divergence, unique_fraction
from specmask.metrics.spelling import word_counts
from specmask.models.checkpoint import Model
from specmask.models.guides import Guide
from specmask.models.protocol import has_head
from specmask.samplers import Frame, Sampler
from specmask.training.loop import versions

Point = dict[str, Any]


def fingerprint(network: object) -> str:
    """Hex digest of a network's weights, whatever folder they came from."""
    digest = hashlib.sha256()
    if isinstance(network, torch.nn.Module):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def show(value: Any) -> Any:
    """A setting as one types it: windows become words, a model or guide name@weights.

    The eight digits tell two guides of one name apart, and one from itself trained again.
    """
    if isinstance(value, Model | Guide):
        weights = fingerprint(value.network if isinstance(value, Model) else value)
        return f"{value.name}@{weights[:8]}"
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


@dataclass(frozen=True)
class Domain:
    """What samples are judged by beside entropy, n-grams and uniqueness; nothing if both are None.

    words: of a text, for spelling accuracy. residues: (symbols,) frequencies of held-out sequences,
    for the divergence of composition.
    """

    words: frozenset[str] | None = None
    residues: NDArray[np.float64] | None = None

    @property
    def metric(self) -> tuple[str, int] | None:
        """The measure's key in a point, and 1 if more is better, −1 if less is."""
        if self.words is not None:
            return "spelling", 1
        return None if self.residues is None else ("composition", -1)

    @property
    def digest(self) -> str | None:
        """Hex digest of what samples are judged by, for a results file; None for nothing."""
        if self.words is not None:
            return hashlib.sha256("\n".join(sorted(self.words)).encode()).hexdigest()
        if self.residues is not None:
            return hashlib.sha256(self.residues.astype(np.float64).tobytes()).hexdigest()
        return None


def sample_point(
    model: Model,
    sampler: Sampler,
    domain: Domain | frozenset[str],
    num: int,
    seed: int = 0,
    batch_size: int = 64,
    bf16: bool = False,
    lengths: Tensor | None = None,
) -> Point:
    """What `num` samples are worth and what they cost, each figure with its standard error.

    Args:
        model, sampler, seed, batch_size: as in `specmask.sample`.
        domain: what the samples are judged by; a set of words stands for spelling.
        num: samples.
        bf16: run the network's matrix products in bfloat16; the law sampled is then that network's.
        lengths: (n,) of rows, which samples take in turn; default the model's length.

    Returns:
        entropy in nats, n-grams and domain metrics in their own units, NFE in passes of the whole
        network, seconds on this machine; `progress`, of a sampler with a verifier: drafts accepted
        and rejected by tenths of the row known before the pass; `runs`: trunk passes by the number
        of drafts accepted after them; `each`: per sample, for a bootstrap.
    """
    domain = Domain(words=domain) if isinstance(domain, frozenset) else domain
    sizes = torch.tensor([model.network.length]) if lengths is None else lengths
    sizes = sizes[torch.arange(num) % len(sizes)]
    canvas = torch.full((num, int(sizes.max())), model.network.mask_id)
    watch = _Acceptance(num)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        out = specmask.sample(
            model,
            sampler,
            canvas=canvas,
            lengths=sizes,
            seed=seed,
            batch_size=batch_size,
            on_frame=watch if sampler.verifies else None,
        )
    costs = {
        "nfe": out.nfe,
        "trunk_passes": out.trunk_passes,
        "verify_passes": out.verify_passes,
        "accepted": out.accepted,
        "rejected": out.rejected,
    }
    found = measures(out.tokens.cpu(), sizes, out.text, domain)
    each = found.pop("each")
    return {
        "kind": "samples",
        **describe(sampler, seed),
        "num": num,
        "bf16": bf16,
        **{name: estimate(values)[0] for name, values in costs.items()},
        **{f"{name}_se": estimate(values)[1] for name, values in costs.items()},
        **found,
        "nfe_spread": float(out.nfe.double().std()) if num > 1 else math.nan,
        "seconds_per_sample": out.wall_seconds / num,
        "seconds_per_token": out.wall_seconds / int(sizes.sum()),
        **(watch.counts() if sampler.verifies else {}),
        "texts": (out.text or [])[:2],
        "each": {"nfe": _rounded(out.nfe), **each},
    }


def measures(
    tokens: Tensor, lengths: Tensor, text: Sequence[str] | None, domain: Domain
) -> dict[str, Any]:
    """Entropy (nats), distinct n-grams, unique fraction and the domain's metric of (B, L) rows.

    Each with its standard error; `each` has what a bootstrap over rows needs.
    """
    found = {
        "entropy": unigram_entropy(tokens, lengths),
        "distinct_2": distinct_ngrams(tokens, 2, lengths),
        "distinct_4": distinct_ngrams(tokens, 4, lengths),
    }
    rows = zip(tokens, lengths.tolist(), strict=True)
    each: dict[str, Sequence[float]] = {
        "entropy": [round(unigram_entropy(row[None, :n]).mean, 5) for row, n in rows]
    }
    if text is not None:
        found["unique"] = unique_fraction(text)
        if domain.words is not None:
            correct, total = word_counts(text, domain.words)
            found["spelling"] = ratio(correct, total)
            each |= {"correct": correct, "words": total}
        if domain.residues is not None:
            found["composition"] = composition_divergence(text, domain.residues)
    return {
        **{name: value.mean for name, value in found.items()},
        **{f"{name}_se": value.standard_error for name, value in found.items()},
        "each": each,
    }


_TENTHS = 10


class _Acceptance:
    """Counts drafts by how much of the row was known when they were made."""

    def __init__(self, num: int) -> None:
        self._known = torch.zeros(num, dtype=torch.float64)
        self._drafts = torch.zeros(2, _TENTHS, dtype=torch.int64)
        self._runs: Counter[int] = Counter()

    def __call__(self, frame: Frame) -> None:
        rows, info = frame.rows.cpu(), frame.info
        if frame.step:
            tenth = (self._known[rows] * _TENTHS).long().clamp(max=_TENTHS - 1)
            for drafts, more in zip(self._drafts, (info.accepted, info.rejected), strict=True):
                drafts.index_add_(0, tenth, more.cpu())
            self._runs.update(info.accepted.tolist())
        self._known[rows] = (frame.revealed / frame.lengths).double().cpu()

    def counts(self) -> dict[str, Any]:
        accepted, rejected = self._drafts.tolist()
        runs = [self._runs[n] for n in range(max(self._runs) + 1)]
        return {"progress": {"accepted": accepted, "rejected": rejected}, "runs": runs}


def law_points(
    model: Model,
    tokens: Tensor,
    samplers: Sequence[Sampler],
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
    lengths: Tensor | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Exact bits per token and exact expected NFE of every sampler on (B, L) held-out rows.

    Each row has one order, random or, for samplers that go so, left to right. One table of
    conditionals scores all samplers of one kind of order; standard errors are over rows. The
    samplers must share one tempering. `on_point` is told each law as soon as it is scored on all
    rows, before the next one is.
    """
    laws = [sampler.law() for sampler in samplers]
    each: list[list[Tensor]] = [[] for _ in samplers]
    points: dict[int, Point] = {}
    sizes = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
    orders = [orders_of(sampler, tokens, seed, 0, sizes) for sampler in samplers]
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
            lengths=sizes[part],
            temperature=laws[0].temperature,
            top_p=laws[0].top_p,
            target=has_head(model.network) and not all(isinstance(x, GroupLaw) for x in laws),
            best=any(getattr(law, "stop", 0) > 0 for law in laws),
            batch_size=batch_size,
            progress=None if progress is None else _after(done, total, progress),
        )
        done += tokens[part].numel()
        for k, law in enumerate(laws):
            if torch.equal(orders[k], kind):
                result = score(table, law)
                cost = (trunk_layers * result.trunk + head_layers * result.verify).cpu()
                bits = -result.log_prob.cpu() / math.log(2) / sizes[part]
                each[k].append(torch.stack((bits, cost / (trunk_layers + head_layers))))
                if len(each[k]) == len(parts):
                    points[k] = law_point(samplers[k], torch.cat(each[k], 1), seed)
                    if on_point is not None:
                        on_point(points[k])
    return [points[k] for k in range(len(samplers))]


def _after(done: int, total: int, progress: Progress) -> Progress:
    return lambda now, _: progress(done + now, total)


def law_point(sampler: Sampler, values: Tensor, seed: int) -> Point:
    """What a results file says of a law: (2, B) exact bits per token and expected NFE of rows."""
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


def estimates(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its standard error under their names; NaN where there is nothing."""
    if not values:
        return {name: math.nan, f"{name}_se": math.nan}
    mean, error = estimate(torch.tensor(values, dtype=torch.float64))
    return {name: mean, f"{name}_se": error}


def json_line(row: Point) -> str:
    """One line of JSON; a number that is not finite, which JSON has no word for, becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [finite(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def write_points(path: Path, points: Iterable[Point]) -> None:
    """One JSON object a line; a file that is there is replaced whole."""
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text("".join(json_line(point) for point in points), encoding="utf-8")
    scratch.replace(path)


def read_points(path: Path) -> list[Point]:
    """What `write_points` wrote; settings that came later than a file have their defaults.

    A last line that was cut off, as by an interruption, is left out.

    Raises:
        UserError: any other line that is no JSON object, or has a sampler without settings.
    """
    lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines
    points = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        try:
            points.append(_as_point(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: {error}; expected one measured point a line, as JSON: "
                "delete the line, or begin the file again"
            ) from None
    return points


def _as_point(line: str) -> Point:
    """Raises ValueError, which that of JSON is, for what is no point."""
    point = json.loads(line)
    if not isinstance(point, dict):
        raise ValueError(f"got {line[:40]}")
    name = point.get("sampler")
    if name is not None and not isinstance(point.get("settings"), dict):
        raise ValueError(f"sampler {name} without settings")
    if isinstance(name, str) and (kind := specmask.SAMPLERS.get(name)) is not None:
        usual = {one.name: show(one.default) for one in fields(kind) if one.default != MISSING}
        point["settings"] = usual | point["settings"]
    return point
