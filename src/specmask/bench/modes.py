"""What a mode of inference costs in bits, and what it saves in seconds, on this machine.

    python -m specmask.bench.modes text8-small docs/performance

Rows are drawn by the plain float32 model, so its own bits on them are what another mode's are held
against. All modes run a pass in turn, once a round, so that what slows the machine slows all of
them, and what is told of seconds are ratios within a round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

import specmask
from specmask.bench.benchmark import machine
from specmask.bench.run import Point, fingerprint, read_points, write_points
from specmask.bench.tables import markdown
from specmask.checks import whole
from specmask.errors import exit_code
from specmask.host import now
from specmask.models.checkpoint import Model
from specmask.models.protocol import has_head
from specmask.training.loop import versions

MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "compiled": {"compile": True},
    "compiled bfloat16": {"compile": True, "dtype": "bfloat16"},
    "graphs": {"compile": "graphs"},
    "graphs bfloat16": {"compile": "graphs", "dtype": "bfloat16"},
}
SOURCES: tuple[Literal["draft", "target"], ...] = ("draft", "target")


@dataclass(frozen=True)
class Modes:
    """Bits and seconds of the modes of a model."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model or a model folder."""
    folder: tyro.conf.Positional[Path]
    """Of modes.jsonl and modes.md."""
    modes: tuple[str, ...] = ("float32", "bfloat16", "int8", "compiled", "compiled bfloat16")
    """Which ones, float32 first; graphs and graphs bfloat16 on CUDA, int8 on a CPU."""
    rows: int = 16
    """Rows drawn by the float32 model, of which the bits are taken."""
    length: int | None = None
    """Tokens of a row; default the model's length."""
    batches: tuple[int, ...] = (1, 8)
    """Rows of a pass that is timed."""
    window: int = 16
    """Ranks of a verify pass that is timed."""
    rounds: int = 7
    """Passes of each mode, after one to warm up."""
    device: str = "cpu"
    """cpu, cuda."""
    seed: int = 0
    """Names the rows."""


def bits(model: Model, tokens: Tensor, order: Tensor) -> dict[str, float]:
    """Exact bits a token of (B, L) rows along their orders, token by token, from either law."""
    nats = {s: -specmask.log_prob(model, tokens, order, specmask.AnyOrder(s)) for s in SOURCES}
    return {s: float(n.mean()) / (tokens.shape[1] * math.log(2)) for s, n in nats.items()}


Pass = Callable[[], object]


@torch.no_grad()
def passes_of(model: Model, tokens: Tensor, window: int) -> dict[str, Pass]:
    """A trunk pass over (B, L) masked rows; and a verify pass over the next ranks of rows of which
    half is known, in a model that has a head."""
    network, (rows, length) = model.network, tokens.shape
    lengths = torch.full((rows,), length)
    found: dict[str, Pass] = {"trunk": lambda: network.trunk(tokens, lengths)}
    if has_head(network):
        order = torch.arange(length, device=tokens.device).expand(rows, -1)
        known = torch.full((rows,), length // 2)
        ranks = length // 2 + torch.arange(min(window, length - length // 2), device=tokens.device)
        ranks = ranks.expand(rows, -1)
        drafts = torch.zeros_like(tokens)
        prefix = network.prefix(network.trunk(tokens, lengths), drafts, order, known)
        found["verify"] = lambda: network.verify(prefix, ranks, drafts)
    return found


@torch.no_grad()
def seconds(passes: Sequence[Pass], device: torch.device, rounds: int) -> list[list[float]]:
    """Of each pass, in turn, by round."""
    taken: list[list[float]] = [[] for _ in passes]
    for turn in range(1 + rounds):
        for one, found in zip(passes, taken, strict=True):
            began = now(device)
            one()
            if turn:
                found.append(now(device) - began)
    return taken


def measure(args: Modes) -> list[Point]:
    """A line a mode."""
    models = [specmask.load(args.model, args.device, **MODES[name]) for name in args.modes]
    plain = specmask.load(args.model, args.device)
    out = specmask.sample(plain, num=args.rows, length=args.length, seed=args.seed)
    blank = torch.full_like(out.tokens[:1], plain.network.mask_id)
    about = {
        "model": plain.name,
        "weights": fingerprint(plain.network),
        "rows": args.rows,
        "length": out.tokens.shape[1],
    }
    about |= {"seed": args.seed, "window": args.window}
    about |= {"versions": versions(), "machine": machine()}
    points: list[Point] = [
        {
            **{"kind": "mode", "mode": name, **about},
            "bits": bits(model, out.tokens, out.order),
            "seconds": {},
        }
        for name, model in zip(args.modes, models, strict=True)
    ]
    for n in args.batches:
        kinds = [passes_of(model, blank.expand(n, -1), args.window) for model in models]
        for kind in kinds[0]:
            taken = seconds([each[kind] for each in kinds], plain.device, args.rounds)
            for point, found in zip(points, taken, strict=True):
                point["seconds"][f"{kind} of {n}"] = found
    return points


def table(points: Sequence[Point]) -> str:
    """Markdown: bits beside the first mode's, and medians over rounds of ratios to its seconds."""
    first = points[0]
    batches = list(first["seconds"])
    rows = []
    for p in points:
        told = [f"{p['bits'][s]:.4f} ({p['bits'][s] - first['bits'][s]:+.4f})" for s in SOURCES]
        for n in batches:
            pairs = zip(p["seconds"][n], first["seconds"][n], strict=True)
            ratios = [mine / plain for mine, plain in pairs]
            middle = statistics.median(ratios)
            told.append(f"{middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        rows.append((p["mode"], *told))
    header = ("mode", "draft bits", "target bits", *(f"{n} ÷ plain" for n in batches))
    about = f"Model: {first['model']} (weights {first.get('weights', 'unknown')[:8]})."
    return f"{about}\n\n{markdown(header, rows)}"


def main(args: Modes) -> None:
    """Measure, write the results and the table."""
    for name in ("rows", "rounds", "window"):
        whole(name, getattr(args, name), 1)
    args.folder.mkdir(parents=True, exist_ok=True)
    out = args.folder / "modes.jsonl"
    write_points(out, measure(args))
    (args.folder / "modes.md").write_text(table(read_points(out)), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Modes))))
