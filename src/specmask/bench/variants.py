"""Training choices side by side: one text, one budget, the same rows, one change at a time.

    python -m specmask.bench.variants docs/experiments --data FILE --runs runs/variants

trains what is not in the results file yet, and scores it by exact laws, so no sampling stands
between a choice and what it is worth. `--table-only` draws the page again from the file.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor

import specmask
from specmask.bench.benchmark import machine
from specmask.bench.compare import frontier
from specmask.bench.run import Point, describe, estimate, json_line, read_points
from specmask.bench.variant_tables import BASE, write_page
from specmask.checks import check_seed, whole
from specmask.data.batches import Batches, windows
from specmask.data.corpora import Corpus, load_corpus
from specmask.errors import UserError, exit_code, unknown
from specmask.likelihood import Conditionals, conditionals, random_orders, score
from specmask.masking import CosineWindow, FullWindow, GroupLaw, Window
from specmask.models.checkpoint import Model
from specmask.models.hybrid import DraftNetwork, HybridConfig, HybridNetwork, build
from specmask.samplers import Ancestral, Sampler, Speculative
from specmask.training.config import TrainConfig
from specmask.training.loop import train, versions

console = Console(stderr=True)

LAYERS = 6
"""Blocks of every network, whatever share of them is causal."""

NETWORK = HybridConfig(27, length=64, width=128, heads=4, trunk_layers=5)
TRAIN = TrainConfig(
    steps=800,
    batch_size=64,
    optimizer="muon",
    lr=2e-3,
    muon_lr=0.02,
    weight_decay=0.01,
    warmup=50,
    final_lr=0.02,
    ema=0.99,
    precision="bf16",
    compile=True,
    weighting="token",
    eval_every=200,
    eval_rows=512,
    save_every=0,
    save_every_seconds=120,
)
"""The budget: 3.3 M characters in rows of 64, some minutes of one CPU core."""


@dataclass(frozen=True)
class Variant:
    """What differs from the base, and why it is tried.

    group: "ablation", of the paper's choices; or "gain", to make more of them.
    network, train: fields of `NETWORK` and `TRAIN` that differ.
    trunk_of: another variant whose trunk, trained first for the same budget, is taken and frozen.
    drafts_of: another variant that drafts in place of this one's own trunk.
    """

    group: str
    why: str
    network: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    trunk_of: str | None = None
    drafts_of: str | None = None


VARIANTS = {
    BASE: Variant("ablation", "the base: five blocks draft, one causal block verifies"),
    "row weights": Variant(
        "gain", "the paper's loss, the bound itself", train={"weighting": "row"}
    ),
    "distil 0.5": Variant(
        "gain", "half of the draft's term learns the target", train={"distil": 0.5}
    ),
    "6 + 0": Variant(
        "ablation", "plain masked diffusion", network={"trunk_layers": 6, "head_layers": 0}
    ),
    "no residual": Variant(
        "ablation", "the head's output is not added to the trunk's", network={"residual": False}
    ),
    "4 + 2": Variant(
        "ablation", "two causal blocks", network={"trunk_layers": 4, "head_layers": 2}
    ),
    "head lr × 2": Variant("gain", "the head learns faster", train={"head_lr": 2.0}),
    "head lr × 2, distil 0.5": Variant(
        "gain", "both of these two", train={"head_lr": 2.0, "distil": 0.5}
    ),
    "target × 2": Variant("gain", "the target's term weighs more", train={"target_weight": 2.0}),
    "distil 1": Variant("gain", "the draft learns the target alone", train={"distil": 1.0}),
    "target × 0.5": Variant("gain", "and less", train={"target_weight": 0.5}),
    "log masks": Variant(
        "gain", "rows with few characters known are seen more often", train={"revealed": "log"}
    ),
    "3 + 3": Variant(
        "ablation", "three causal blocks", network={"trunk_layers": 3, "head_layers": 3}
    ),
    "5 + 0": Variant(
        "part", "a plain trunk, for the next", network={"trunk_layers": 5, "head_layers": 0}
    ),
    "frozen trunk": Variant(
        "ablation",
        "the trunk of a plain network, then as long the head alone",
        train={"frozen_trunk": True},
        trunk_of="5 + 0",
    ),
    "3 + 0": Variant(
        "part", "half a network drafts, for the next", network={"trunk_layers": 3, "head_layers": 0}
    ),
    "two networks": Variant(
        "ablation",
        "a plain network of three blocks drafts; another, 1 + 2, verifies",
        network={"trunk_layers": 1, "head_layers": 2},
        drafts_of="3 + 0",
    ),
}


@dataclass(frozen=True)
class Variants:
    """Train and score what is not in the results file yet."""

    out: tyro.conf.Positional[Path]
    """Folder of results.jsonl and of the tables and figures drawn from it."""
    data: Path | None = None
    """Characters: 90 % train, the next 5 % validate, the last 5 % score."""
    runs: Path = Path("runs/variants")
    """Where the trainings live; one that was interrupted goes on."""
    only: tuple[str, ...] = ()
    """Variants, by name; default all."""
    seeds: tuple[int, ...] = (0,)
    """Of weights, order of the text, and masks."""
    rows: int = 128
    """Held-out rows for the exact laws."""
    steps: int | None = None
    """Another budget than the usual one."""
    table_only: bool = False
    """Draw the page again from the results."""


def variants(args: Variants) -> None:
    """What the command does."""
    for name in args.only:
        if name not in VARIANTS:
            raise unknown("variant", name, VARIANTS)
    for seed in args.seeds:
        check_seed(seed)
    whole("rows", args.rows, 1)
    if args.steps is not None:
        whole("steps", args.steps, 1)
    path = args.out / "results.jsonl"
    if not args.table_only:
        if args.data is None:
            raise UserError("--data is needed to train and score: expected a file of characters")
        corpus = load_corpus(args.data, "text8")
        args.out.mkdir(parents=True, exist_ok=True)
        _check_same(path, corpus, args)
        for seed in args.seeds:
            for name in args.only or VARIANTS:
                if not _is_there(path, name, seed):
                    console.print(f"{name}, seed {seed}", style="bold", highlight=False)
                    points = measure(name, seed, corpus, args)
                    with path.open("a", encoding="utf-8") as file:
                        file.writelines(map(json_line, points))
    if not path.exists():
        raise UserError(f"{path} is not there: run without --table-only first")
    write_page(args.out, read_points(path))


def _check_same(path: Path, corpus: Corpus, args: Variants) -> None:
    """Refuse a results file of another budget, text or number of rows."""
    points = read_points(path) if path.exists() else []
    asked = {
        "steps": TRAIN.steps if args.steps is None else args.steps,
        "text": corpus.sha256[:8],
        "rows": args.rows,
    }
    for p in points:
        if p["kind"] == "variant":
            found: dict[str, Any] = {"steps": p["train"]["steps"], "text": p["data"][:8]}
        else:
            found = {"rows": p["rows"]}
        for name, value in found.items():
            if value != asked[name]:
                raise UserError(
                    f"{path} has {name} {value}, and {asked[name]} is asked for: name another "
                    "folder, or ask for the same"
                )


def _is_there(path: Path, name: str, seed: int) -> bool:
    points = read_points(path) if path.exists() else []
    return any(p["kind"] == "variant" and (p["name"], p["seed"]) == (name, seed) for p in points)


def measure(name: str, seed: int, corpus: Corpus, args: Variants) -> list[Point]:
    """Train one variant, and score its laws; its own line comes last, when all else is there."""
    variant = VARIANTS[name]
    network, log = trained(name, seed, corpus, args)
    drafter = trained(variant.drafts_of, seed, corpus, args)[0] if variant.drafts_of else None
    rows = windows(corpus.test, network.length, args.rows)
    points = [
        {"variant": name, "train_seed": seed, **point} for point in laws(network, drafter, rows)
    ]
    last = [row for row in log if row["kind"] == "validation"][-1]
    about = {
        "kind": "variant",
        "name": name,
        "seed": seed,
        "group": variant.group,
        "why": variant.why,
        "layers": [network.trunk_layers, network.head_layers],
        "parameters": sum(p.numel() for p in network.parameters()),
        "network": asdict(network.config),
        "train": log[0]["config"],
        "data": corpus.sha256,
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "draft_bits": last["draft_bits"],
        "target_bits": last["target_bits"],
        "curve": [
            [r["tokens"], r["draft_bits"], r["target_bits"]]
            for r in log
            if r["kind"] == "validation"
        ],
        "versions": versions(),
        "machine": machine(),
    }
    return [*points, about]


def trained(
    name: str, seed: int, corpus: Corpus, args: Variants
) -> tuple[DraftNetwork, list[dict[str, Any]]]:
    """The averaged network of a variant and its log; trained now if it is not in `args.runs`."""
    variant = VARIANTS[name]
    out = args.runs / f"{name.replace(' ', '')}-{seed}"
    if not (out / "model").is_dir():
        config = replace(TRAIN, seed=seed, **variant.train)
        if args.steps is not None:
            config = replace(config, steps=args.steps, warmup=min(config.warmup, args.steps))
        torch.manual_seed(seed)
        network = build(replace(NETWORK, **variant.network))
        if variant.trunk_of is not None:
            other, _ = trained(variant.trunk_of, seed, corpus, args)
            network.trunk.load_state_dict(other.trunk.state_dict())
            assert isinstance(network, HybridNetwork)
            network.head.norm.load_state_dict(other.trunk.norm.state_dict())
        train(
            network,
            Batches(corpus.train, network.length, config.batch_size, seed),
            config,
            out,
            tokenizer=corpus.tokenizer,
            validation=windows(corpus.validation, network.length, config.eval_rows),
            resume=out.exists(),
            console=console,
        )
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    done = specmask.load(out / "model").network
    assert isinstance(done, DraftNetwork)
    return done, read_points(out / "log.jsonl")


# ------------------------------------------------------------------------------------------- laws


def speculative_grid() -> list[Speculative]:
    """Windows × rounds × first-rank rule."""
    wide: list[Window] = [
        *(CosineWindow(step) for step in (0.02, 0.05, 0.1, 0.2, 0.4)),
        FullWindow(),
    ]
    return [
        Speculative(window=window, rounds=rounds, first=first)
        for window in wide
        for rounds in (1, 2, 3, 4, 6, 8, 16)
        for first in ("accept", "verify")
    ]


def plain_grid(length: int) -> list[Ancestral]:
    """Steps up to one token each."""
    counts = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    return [Ancestral(n, "fixed", "linear") for n in counts if n <= length]


def laws(network: DraftNetwork, drafter: DraftNetwork | None, rows: Tensor) -> list[Point]:
    """Exact bits and expected cost of every setting on the rows, in passes of `LAYERS` blocks."""
    orders = random_orders(rows, 0)
    model = Model(network)
    table = conditionals(model, rows, orders, target=network.head_layers > 0)
    extra = 0
    if drafter is not None:  # it drafts beside the trunk that the verifier needs
        theirs = conditionals(Model(drafter), rows, orders, target=False)
        table = Conditionals(theirs.log_q, table.log_p, table.lengths, 1.0, 1.0)
        extra = drafter.trunk_layers
    samplers: list[Sampler] = [*plain_grid(rows.shape[1])]
    if network.head_layers:
        samplers += speculative_grid()
    points = []
    for sampler in samplers:
        law = sampler.law()
        plain = isinstance(law, GroupLaw)
        result = score(table, law)
        # Plain sampling of two networks needs the one that drafts.
        trunk = extra if plain and extra else network.trunk_layers + extra
        nfe = (trunk * result.trunk + network.head_layers * result.verify) / LAYERS
        bits = -result.log_prob / math.log(2) / rows.shape[1]
        points.append(
            {
                "kind": "law",
                "plain": plain,
                **describe(sampler, 0),
                "rows": len(rows),
                **dict(zip(("bits", "bits_se"), estimate(bits), strict=True)),
                **dict(zip(("nfe", "nfe_se"), estimate(nfe), strict=True)),
                "trunk_passes": float(result.trunk.mean()),
                "verify_passes": float(result.verify.mean()),
                "each": {
                    "bits": [round(x, 4) for x in bits.tolist()],
                    "nfe": [round(x, 3) for x in nfe.tolist()],
                },
            }
        )
    best = [p for plain in (True, False) for p in frontier(_family(points, plain), "bits", -1)]
    for point in points:  # a bootstrap needs the rows of these alone
        if not any(point is one for one in best):
            del point["each"]
    return points


def _family(points: Sequence[Point], plain: bool) -> list[Point]:
    return [point for point in points if point["plain"] is plain]


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: variants(tyro.cli(Variants))))
