"""All samplers on one model: exact laws, samples and costs, a line of JSON each, resumable."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from specmask.bench.grid import default_grid, named
from specmask.bench.run import (
    Domain,
    Point,
    describe,
    fingerprint,
    json_line,
    law_points,
    measures,
    read_points,
    sample_point,
    sampler_name,
)
from specmask.bench.tune import Budget, tune
from specmask.bench.tune_scores import window_grid
from specmask.errors import UserError
from specmask.likelihood import conditionals, random_orders
from specmask.likelihood.profile import nll_profile
from specmask.likelihood.table import Conditionals
from specmask.models.checkpoint import Model
from specmask.models.protocol import has_head
from specmask.samplers import Ancestral, Optimal, Sampler, Speculative, make_sampler
from specmask.samplers.checks import check_call
from specmask.samplers.driver import decode_rows
from specmask.training.loop import versions

_PLAIN_STEPS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_PROFILE_ROWS = 32
_TUNED = ("window", "rounds", "first")
_EARLIER: dict[str, Any] = {
    "bf16": False,
    "dtype": "float32",
    "compile": False,
    "quantize": None,
}
"""What a file says of a run, by an earlier version that did not write it down."""
_UNSAID = ("judged_by",)
"""What such a file does not tell."""
_NEEDED = {
    "run": ("model", "layers", "weights", "rows", "length", "data", "seed", "num"),
    "held-out": ("entropy",),
    "profile": ("draft", "target"),
    "tuning": ("sampler", "settings", "nfe"),
    "law": ("sampler", "settings", "nfe", "bits", "plain", "each"),
    "samples": ("sampler", "settings", "nfe", "entropy", "entropy_se"),
}
"""What the report needs to know of each kind of point."""
__all__ = ["Benchmark", "Results", "check_benchmark", "fingerprint", "read_results"]


class Rows(Protocol):
    """(B, L) held-out rows, padded beyond their (B,) lengths."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...


@dataclass(frozen=True)
class Benchmark:
    """What is measured.

    scored, tuning: held-out rows for the exact laws, and others to choose settings on. reference:
    rows that are measured as samples are. domain: what they are judged by. targets: NFE. grid:
    settings, or None for `default_grid`. names: samplers to measure, all for none. num: samples at
    each setting. about: of the run, for the first line. bf16: samples, not laws, with the
    network's matrix products in bfloat16; the lines say so.
    """

    scored: Rows
    tuning: Rows
    reference: Rows
    domain: Domain
    targets: tuple[float, ...]
    grid: tuple[Sampler, ...] | None
    names: tuple[str, ...]
    num: int
    seed: int
    batch_size: int
    about: dict[str, Any]
    bf16: bool = False


class Watch(Protocol):
    """Told what is being done and how far it is, and of every point as it comes."""

    def progress(self, what: str, done: int, total: int) -> None: ...
    def point(self, point: Point) -> None: ...


def machine() -> dict[str, Any]:
    """Where seconds were measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"system": platform.system(), "device": device, "threads": torch.get_num_threads()}


class Results:
    """results.jsonl: every line is written at once, so that a run goes on where it was stopped.

    The first line says what was measured on what. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.points: list[Point] = []
        if path.exists():
            _drop_unfinished(path)
            self.points = read_results(path) if path.stat().st_size else []
        if not self.points:
            self.add([{"kind": "run", **about, "versions": versions(), "machine": machine()}])
            return
        before = _EARLIER | self.points[0]
        for key, value in about.items():
            if key in _UNSAID and key not in before:
                continue
            if before.get(key) != value:
                raise UserError(
                    f"{path} was measured with {key} {_brief(before.get(key))}, this run has "
                    f"{_brief(value)}: choose another --out, or pass --overwrite to begin again"
                )
        front = self.find("tuning")
        if front and len(front) < front[0].get("of", 0):
            self._drop("tuning")

    def add(self, points: Iterable[Point]) -> None:
        """Append points and write them."""
        fresh = [json.loads(json_line(point)) for point in points]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(json_line, fresh))
        self.points += fresh

    def _drop(self, kind: str) -> None:
        """Write the file anew without the points of a kind, of which it has only a part."""
        self.points = [point for point in self.points if point["kind"] != kind]
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text("".join(map(json_line, self.points)), encoding="utf-8")
        scratch.replace(self.path)

    def find(self, kind: str, sampler: Sampler | None = None) -> list[Point]:
        """The points of a kind, and of a setting."""
        same = [point for point in self.points if point["kind"] == kind]
        if sampler is None:
            return same
        key = _key(describe(sampler, 0))
        return [point for point in same if _key(point) == key]


def read_results(path: Path) -> list[Point]:
    """The points of results.jsonl, the run first.

    Raises:
        UserError: what `read_points` refuses; a file that does not begin with a run, or has a line
            that says not what it is.
    """
    points = read_points(path)
    if not points or points[0].get("kind") != "run":
        raise UserError(
            f"{path} does not begin with the line of a run: expected results of specmask bench; "
            "choose another --out, or pass --overwrite to begin again"
        )
    for number, point in enumerate(points, 1):
        lacking = [key for key in _NEEDED.get(point.get("kind", ""), ("kind",)) if key not in point]
        if lacking:
            raise UserError(
                f"{path}, line {number} has no {lacking[0]}: expected a measured point; delete "
                "the line"
            )
    return points


def _key(point: Point) -> str:
    return json.dumps((point["sampler"], point["settings"]), sort_keys=True)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _drop_unfinished(path: Path) -> None:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)


def run_benchmark(model: Model, benchmark: Benchmark, path: Path, watch: Watch) -> list[Point]:
    """Measure what the file does not hold yet, and return all of its points.

    In this order: the losses by known tokens, which `Optimal` needs; the self-speculative settings
    of the least bits for each target, by exact laws on rows of their own; exact laws of all
    settings that have one; then samples, setting by setting. A law is written when it is scored,
    the samples of a setting when they are drawn.

    Raises:
        UserError: the file is of another run; a setting does not fit the model.
    """
    check_benchmark(model, benchmark)
    results = Results(path, benchmark.about)
    if not results.find("held-out"):
        held = benchmark.reference
        text = decode_rows(model, held.tokens, held.lengths)
        found = measures(held.tokens, held.lengths, text, benchmark.domain)
        results.add([{"kind": "held-out", "num": len(held.tokens), **found}])
    if not results.find("profile"):
        results.add(_profile(model, benchmark, watch))
    wanted = benchmark.grid is None and _named("speculative", benchmark)
    if wanted and has_head(model.network) and not results.find("tuning"):
        results.add(_tuned(model, benchmark, watch))
    chosen = _chosen(model, benchmark, results)
    rows = benchmark.scored
    for alike in _alike(_with_laws(chosen, benchmark, results)):
        law_points(
            *(model, rows.tokens, alike, benchmark.seed, benchmark.batch_size),
            progress=lambda done, total: watch.progress("exact laws", done, total),
            lengths=rows.lengths,
            on_point=lambda point: results.add([point]),
        )
    for k, sampler in enumerate(chosen):
        watch.progress("samples", k, len(chosen))
        if not results.find("samples", sampler):
            point = sample_point(
                *(model, sampler, benchmark.domain, benchmark.num, benchmark.seed),
                *(benchmark.batch_size, benchmark.bf16, benchmark.scored.lengths),
            )
            results.add([point])
            watch.point(point)
    return results.points


def check_benchmark(model: Model, benchmark: Benchmark) -> None:
    """Raise UserError where a name has no setting or a setting does not fit the model.

    Before any work; a self-speculative setting, which is tuned first, counts as there.
    """
    grid = benchmark.grid
    if grid is None:
        tuned = dict.fromkeys(benchmark.targets, Speculative()) if has_head(model.network) else None
        length = int(benchmark.scored.lengths.max())
        grid = tuple(default_grid(model, length, benchmark.targets, tuned=tuned))
    for sampler in named(grid, benchmark.names):
        check_call(model, sampler, benchmark.seed, benchmark.batch_size)


def _named(name: str, benchmark: Benchmark) -> bool:
    return not benchmark.names or name in benchmark.names


def _profile(model: Model, benchmark: Benchmark, watch: Watch) -> list[Point]:
    """Mean nats of a masked token by known tokens, of draft and target, on the tuning rows."""
    tokens = benchmark.tuning.tokens[:_PROFILE_ROWS]
    lengths = benchmark.tuning.lengths[:_PROFILE_ROWS]
    if bool((lengths < tokens.shape[1]).any()):
        return [{"kind": "profile", "draft": [], "target": []}]  # rows of many lengths have none
    table = conditionals(
        model,
        tokens,
        random_orders(tokens, benchmark.seed),
        target=has_head(model.network),
        batch_size=benchmark.batch_size,
        progress=lambda done, total: watch.progress("losses by known tokens", done, total),
    )
    target: Sequence[float] = []
    if table.log_p is not None:
        target = nll_profile(Conditionals(**{**vars(table), "log_q": table.log_p}))
    rounded = [[round(value, 5) for value in values] for values in (nll_profile(table), target)]
    return [{"kind": "profile", "rows": len(tokens), "draft": rounded[0], "target": rounded[1]}]


def _tuned(model: Model, benchmark: Benchmark, watch: Watch) -> list[Point]:
    """The front of self-speculative settings up to the largest target."""
    rows = benchmark.tuning
    found = tune(
        model,
        rows.tokens,
        rows.lengths,
        Budget("nfe", max(benchmark.targets)),
        windows=window_grid(rows.lengths, 120),
        rounds=24,
        seed=benchmark.seed,
        batch_size=benchmark.batch_size,
        progress=watch.progress,
    )
    # Each line says how many there are, so that a part of them is not taken for the front.
    return [{**point, "of": len(found.points)} for point in found.points]


def _chosen(model: Model, benchmark: Benchmark, results: Results) -> list[Sampler]:
    (profile,) = results.find("profile")
    if benchmark.grid is not None:  # where it names no profile it means the model's own
        own = tuple(profile["draft"])
        return [
            replace(one, profile=one.profile or own) if isinstance(one, Optimal) else one
            for one in named(benchmark.grid, benchmark.names)
        ]
    tuned = _at_targets(results.find("tuning"), benchmark.targets)
    length = int(benchmark.scored.lengths.max())
    return named(
        default_grid(model, length, benchmark.targets, tuple(profile["draft"]), tuned),
        benchmark.names,
    )


def _at_targets(front: Sequence[Point], targets: Sequence[float]) -> dict[float, Speculative]:
    """Of each target the best setting that costs no more, which on a front is the dearest."""
    found: dict[float, Speculative] = {}
    for target in targets:
        within = [point for point in front if point["nfe"] <= target]
        if within:
            settings = max(within, key=lambda point: point["nfe"])["settings"]
            sampler = make_sampler("speculative", {name: settings[name] for name in _TUNED})
            assert isinstance(sampler, Speculative)
            found[target] = sampler
    return found


def _with_laws(chosen: Sequence[Sampler], benchmark: Benchmark, results: Results) -> list[Sampler]:
    """Settings whose law is tractable and not in the file; for curves, more of the exact kinds."""
    every = list(chosen)
    if benchmark.grid is None:
        (profile,) = results.find("profile")
        longest = int(benchmark.scored.lengths.max())
        steps = [n for n in _PLAIN_STEPS if n <= longest]
        every += [
            Ancestral(n, "fixed", schedule) for n in steps for schedule in ("cosine", "linear")
        ]
        every += [Optimal(n, tuple(profile["draft"])) for n in steps]
        every += list(
            _at_targets(results.find("tuning"), [2 ** (k / 2) for k in range(20)]).values()
        )
        every += [replace(one, verification="block") for one in every if type(one) is Speculative]
    every = [one for one in every if _named(sampler_name(one), benchmark)]
    fresh = [one for one in dict.fromkeys(every) if not results.find("law", one)]
    return [one for one in fresh if _has_law(one)]


def _has_law(sampler: Sampler) -> bool:
    try:
        sampler.law()
    except UserError:
        return False
    return True


def _alike(samplers: Sequence[Sampler]) -> list[list[Sampler]]:
    """Samplers by the tempering of their law, since one table serves one."""
    kinds: dict[tuple[float, float], list[Sampler]] = {}
    for sampler in samplers:
        law = sampler.law()
        kinds.setdefault((law.temperature, law.top_p), []).append(sampler)
    return list(kinds.values())
