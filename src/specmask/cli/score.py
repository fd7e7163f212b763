"""`specmask score`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

import specmask
from specmask.bench.run import json_line, settings_of
from specmask.checks import check_device
from specmask.cli.options import (
    ModeOptions,
    SamplerOptions,
    build_sampler,
    check_least,
    check_out,
    check_seed,
)
from specmask.cli.output import progress_bar, rows_file
from specmask.cli.rows import read_windows
from specmask.data.tokenizers import decode
from specmask.metrics.estimate import Estimate, ratio
from specmask.models.modes import check_modes
from specmask.training.loop import versions


@dataclass(frozen=True)
class Score:
    """Exact bits per character or token of a text under a sampler's own law, and expected cost."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small) or a model folder."""
    file: tyro.conf.Positional[Path]
    """Text file: raw, .gz, .xz or .zip."""
    trunk: str | None = None
    """Folder of the pretrained model, if the model needs one that is not where it was."""
    rows: int = 4
    """Windows of the text to score, evenly spread."""
    length: int | None = None
    """Tokens of a window; default the model's length."""
    orders: int = 1
    """Random orders for each window; the mean bounds log p from below."""
    sampler: str = "speculative"
    """One with an exact law: speculative, ancestral (with --counts fixed), any_order,
    first_hitting."""
    seed: int = 0
    """Names the orders."""
    batch_size: int = 64
    """Prefixes in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """JSONL file for the scores of each window and order."""
    overwrite: bool = False
    """Replace an existing --out, at the end: a run that is interrupted leaves it as it was."""
    mode: tyro.conf.OmitArgPrefixes[ModeOptions] = field(default_factory=ModeOptions)
    settings: tyro.conf.OmitArgPrefixes[SamplerOptions] = field(default_factory=SamplerOptions)


def run_score(args: Score) -> None:
    """`specmask score`."""
    sampler = build_sampler(args.sampler, args.settings)
    sampler.law()
    check_out(args.out, args.overwrite)
    check_device(args.device)
    check_modes(args.device, **args.mode.settings())
    check_seed(args.seed)
    check_least(
        1, rows=args.rows, length=args.length, orders=args.orders, batch_size=args.batch_size
    )
    model = specmask.load(args.model, args.device, trunk=args.trunk, **args.mode.settings())
    tokens = read_windows(model, args.file, args.length, args.rows)
    length = tokens.shape[1]
    args.mode.tell()
    lines = _score_rows(model, sampler, args, tokens)
    if args.out is not None:
        with rows_file(args.out) as file:
            file.writelines(map(json_line, lines))
    bits = [-line["log_prob"] / math.log(2) for line in lines]
    figures = [f"{_shown(ratio(bits, [line['characters'] for line in lines]))} bits per character"]
    if any(line["characters"] != length for line in lines):
        figures.insert(0, f"{_shown(ratio(bits, [length] * len(bits)))} bits per token")
    nfe = sum(line["expected_nfe"] for line in lines) / len(lines)
    print(
        f"{', '.join(figures)}, {nfe:.2f} NFE expected "
        f"({len(tokens)} rows of {length}, {args.orders} orders each, {args.sampler})"
    )


def _shown(figure: Estimate) -> str:
    error = f" ± {figure.standard_error:.4f}" if figure.count > 1 else ""
    return f"{figure.mean:.4f}{error}"


def _score_rows(
    model: specmask.Model, sampler: Any, args: Score, tokens: torch.Tensor
) -> list[dict[str, Any]]:
    network, lines = model.network, []
    assert model.tokenizer is not None
    characters = [len(decode(model.tokenizer, row)) for row in tokens]
    layers = network.trunk_layers + network.head_layers
    with progress_bar() as progress:
        task = progress.add_task("scoring", total=len(tokens) * args.orders)
        for number in range(args.orders):
            orders = specmask.random_orders(tokens, args.seed, number)
            if getattr(sampler, "order", "random") == "left-to-right":
                orders = torch.arange(tokens.shape[1]).expand_as(tokens)
            for row in range(len(tokens)):
                one = slice(row, row + 1)
                result = specmask.evaluate(
                    model, tokens[one], orders[one], sampler, batch_size=args.batch_size
                )
                trunk, verify = result.trunk.item(), result.verify.item()
                log_prob = result.log_prob.item()
                bits = -log_prob / math.log(2)
                lines.append(
                    {
                        "row": row,
                        "order": number,
                        "log_prob": log_prob,
                        "characters": characters[row],
                        "bits_per_token": bits / tokens.shape[1],
                        "bits_per_character": bits / characters[row],
                        "expected_trunk_passes": trunk,
                        "expected_verify_passes": verify,
                        "expected_nfe": (
                            network.trunk_layers * trunk + network.head_layers * verify
                        )
                        / layers,
                        "model": args.model,
                        "sampler": args.sampler,
                        "settings": settings_of(sampler),
                        "seed": args.seed,
                        **args.mode.settings(),
                        "versions": versions(),
                    }
                )
                progress.advance(task)
    return lines
