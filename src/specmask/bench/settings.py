"""Exact laws of self-speculative settings on one model: what each setting is worth, all else equal.

    python -m specmask.bench.settings text8-small --data FILE

Windows × rounds × first-rank rule along random orders and left to right, verified token by token;
and along random orders verified by blocks. Nothing is sampled. `python -m specmask.bench.results`
shows the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import specmask
from specmask.bench.benchmark import Results
from specmask.bench.run import Point, fingerprint, law_point, law_points
from specmask.bench.tune_scores import score_settings, settings_grid
from specmask.checks import check_device, check_seed, whole
from specmask.data.batches import windows
from specmask.data.files import read_text
from specmask.data.tokenizers import encode
from specmask.errors import UserError, exit_code
from specmask.likelihood import orders_of
from specmask.masking import ConstantWindow, CosineWindow, FullWindow, LinearWindow, Window
from specmask.models.checkpoint import Model, file_sha256
from specmask.models.protocol import has_head
from specmask.samplers import Speculative

console = Console(stderr=True)

WINDOWS: tuple[Window, ...] = (
    *(ConstantWindow(k) for k in (4, 8, 16, 32)),
    *(CosineWindow(step) for step in (0.02, 0.05, 0.1, 0.3)),
    *(LinearWindow(step) for step in (0.05, 0.133, 0.3)),
    FullWindow(),
)


@dataclass(frozen=True)
class Settings:
    """Score self-speculative settings by their exact laws; goes on where it was stopped."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model, or a model folder."""
    data: Path
    """Held-out text: windows of it, evenly spread, are the rows."""
    out: Path = Path("docs/results/settings.jsonl")
    """Results file, a setting a line."""
    rows: int = 32
    """Held-out rows, of the model's length."""
    rounds: int = 10
    """Token by token: every number of rounds up to this one, scored together."""
    block_rounds: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 10)
    """By blocks: numbers of rounds. Each setting takes seconds to a minute by itself."""
    batch_size: int = 64
    """Rows in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Names the random orders."""


def token_settings(rounds: int, order: str) -> list[Speculative]:
    """Windows × first-rank rules × 1..rounds, in the order of `score_settings`."""
    return [replace(one, order=order) for one in settings_grid(WINDOWS, rounds)]  # type: ignore[arg-type]


def block_settings(rounds: Sequence[int]) -> list[Speculative]:
    """As `token_settings`, verified by blocks; those that are quickly scored first."""
    return [
        Speculative(window, n, first, verification="block")
        for n in sorted(rounds)
        for first in ("accept", "verify")
        for window in WINDOWS
    ]


Tell = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""


def measure(model: Model, tokens: Tensor, results: Results, args: Settings, tell: Tell) -> None:
    """Add every law that the file does not hold yet."""
    for order in ("random", "left-to-right"):
        settings = token_settings(args.rounds, order)
        if all(results.find("law", one) for one in settings):
            continue
        results.add(
            point
            for one, point in zip(
                settings, _token_laws(model, tokens, settings, args, tell), strict=True
            )
            if not results.find("law", one)
        )
    fresh = [one for one in block_settings(args.block_rounds) if not results.find("law", one)]
    if not fresh:
        return
    done = 0

    def add(point: Point) -> None:
        nonlocal done
        done += 1
        results.add([point])
        tell("laws by blocks", done, len(fresh))

    law_points(
        *(model, tokens, fresh, args.seed, args.batch_size),
        progress=lambda now, of: tell("table of conditionals for blocks", now, of),
        on_point=add,
    )


def _token_laws(
    model: Model, tokens: Tensor, settings: Sequence[Speculative], args: Settings, tell: Tell
) -> list[Point]:
    """What `law_points` says of the settings, which share an order, from one sweep."""
    order = orders_of(settings[0], tokens, args.seed)
    lengths = torch.full((len(tokens),), tokens.shape[1])
    scores = score_settings(
        *(model, tokens, order, lengths, WINDOWS, args.rounds),
        batch_size=args.batch_size,
        progress=lambda what, now, of: tell(f"{settings[0].order}: {what}", now, of),
    )
    trunk, head = model.network.trunk_layers, model.network.head_layers
    bits = scores.bits / lengths[:, None]
    nfe = (trunk * scores.trunk + head * scores.verify) / (trunk + head)
    values = torch.stack((bits, nfe))  # (2, B, S)
    return [law_point(one, values[..., k], args.seed) for k, one in enumerate(settings)]


def main(args: Settings) -> None:
    """Score what is missing.

    Raises:
        UserError: a model without a head or a tokenizer, a file that is no text of its alphabet or
            is shorter than a row, results of another run.
    """
    check_seed(args.seed)
    for name, low in (("rows", 2), ("rounds", 1), ("batch_size", 1)):
        whole(name, getattr(args, name), low)
    for n in args.block_rounds:
        whole("block_rounds", n, 1)
    check_device(args.device)
    model = specmask.load(args.model, args.device)
    if not has_head(model.network) or model.tokenizer is None:
        lacks = "tokenizer" if has_head(model.network) else "causal head"
        raise UserError(
            f"{args.model} has no {lacks}: expected a self-speculative model of text, e.g. "
            "text8-small"
        )
    ids = encode(model.tokenizer, read_text(args.data).rstrip("\n"), str(args.data))
    tokens = windows(ids, model.network.length, args.rows)
    about = {
        "model": model.name,
        "weights": fingerprint(model.network),
        "layers": [model.network.trunk_layers, model.network.head_layers],
        "data": {"file": args.data.name, "sha256": file_sha256(args.data)},
        "rows": len(tokens),
        "length": tokens.shape[1],
        "seed": args.seed,
        "num": 0,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = Results(args.out, about)
    with Progress(console=console) as bar:
        task = bar.add_task("")
        measure(
            *(model, tokens, results, args),
            lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    console.print(f"{args.out}: {len(results.find('law'))} exact laws")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Settings))))
