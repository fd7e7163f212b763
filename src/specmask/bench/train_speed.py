"""What a training step costs: the causal head over a plain network, compilation, recomputation.

    python -m specmask.bench.train_speed --out docs/performance/train.jsonl

A hybrid network of L_nc + L_c layers and a plain masked-diffusion network of as many learn the same
batch in turn, in one process, so that what slows the machine slows both; what is told are medians
over the rounds of ratios within a round. FLOPs are counted by torch on tensors without content:
exact, for networks of any size. A hybrid network computes the inside of its last block at masked
ranks alone, a plain one at all positions; "at every rank" is the hybrid without that saving.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from specmask.bench.benchmark import machine
from specmask.bench.run import Point, read_points, write_points
from specmask.bench.tables import markdown
from specmask.checks import check_device, check_seed, whole
from specmask.errors import UserError, exit_code
from specmask.models.blocks import Block, pick
from specmask.models.hybrid import (
    DraftNetwork,
    HybridConfig,
    HybridTransformer,
    PlainTransformer,
)
from specmask.training import optimizers
from specmask.training.config import TrainConfig
from specmask.training.ema import Ema, trained
from specmask.training.feed import Part, make_batch
from specmask.training.flops import count_flops
from specmask.training.loss import loss_terms
from specmask.training.run import Objective, versions

console = Console(stderr=True)

NETWORKS = {
    "small": HybridConfig(27, length=256, width=160, heads=4, trunk_layers=6),
    "text8": HybridConfig(27, length=256, width=768, heads=12, trunk_layers=11, mlp_hidden=4096),
    "gpt2-scale": HybridConfig(
        50257, length=1024, width=768, heads=12, trunk_layers=11, mlp_hidden=3072
    ),
}
"""One that two cores train, and those of the recipes text8 and openwebtext, without dropout."""

ROWS = {"small": (16, 16), "text8": (512, 4), "gpt2-scale": (32, 1)}
"""Rows of a micro-batch, the recipe's where there is one, whose FLOPs are counted, and of a timed
one: as many as a CPU core learns in some seconds."""


@dataclass(frozen=True)
class TrainSpeed:
    """Time training steps of hybrid and plain networks in turn, and count their FLOPs."""

    out: Path = Path("docs/performance/train.jsonl")
    """Results; the table goes beside it, as .md."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Whose FLOPs are counted; a small one, and those of two recipes."""
    timed: tuple[str, ...] = ("small", "text8")
    """Which of them are timed too; gpt2-scale takes 12 GB of memory."""
    width: int | None = None
    """Channels instead of theirs; the MLP's hidden ones follow, at 8/3 of them."""
    rows: int | None = None
    """Rows of a timed batch instead of 16, 4 and 1."""
    rounds: int = 15
    """Times that all are gone through, after one to warm up."""
    compiled: tuple[str, ...] = ("small",)
    """Networks to time compiled too; compiling both takes minutes."""
    precision: str = "bf16"
    """bf16 or fp32."""
    device: str = "cpu"
    """Where."""
    seed: int = 0
    """Of weights, rows and masks."""
    table_only: bool = False
    """Rebuild the table from the results."""


# --------------------------------------------------------------------------------------- networks


def plain_network(config: HybridConfig) -> PlainTransformer:
    """A masked-diffusion network of as many layers as the hybrid one has, all of them in the trunk.

    As `specmask train --head-layers 0` trains it.
    """
    layers = config.trunk_layers + config.head_layers
    return PlainTransformer(replace(config, trunk_layers=layers, head_layers=0))


class Hybrid(HybridTransformer):
    """A hybrid network that may compute its last block at known ranks too, as a plain one does."""

    every_rank = False

    def features(
        self,
        masked: Tensor,
        tokens: Tensor,
        order: Tensor,
        lengths: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As its base's."""
        if scored is None or not self.every_rank:
            return super().features(masked, tokens, order, lengths, scored)
        draft, target = super().features(masked, tokens, order, lengths)
        return pick(draft, scored), pick(target, scored)


BUILD: dict[str, Callable[[HybridConfig], DraftNetwork]] = {
    "hybrid": Hybrid,
    "plain": plain_network,
}


def set_way(network: DraftNetwork, every_rank: bool = False, recompute: bool = False) -> None:
    """How the network computes from now on; what it computes is the same."""
    if isinstance(network, Hybrid):
        network.every_rank = every_rank
    for module in network.modules():
        if isinstance(module, Block):
            module.recompute = recompute


WAYS: dict[str, dict[str, bool]] = {
    "hybrid": {},
    "hybrid, every rank": {"every_rank": True},
    "hybrid, recomputing": {"recompute": True},
    "plain": {},
}


def batch_of(config: HybridConfig, rows: int, seed: int) -> Part:
    """Random rows, with the masks of a first training step."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab_size, (rows, config.length), generator=generator)
    train = TrainConfig(steps=1, warmup=0, batch_size=rows, seed=seed)
    (part,) = make_batch(tokens, 0, train).parts
    return part


# ------------------------------------------------------------------------------------------ FLOPs


def counted_flops(network: DraftNetwork, part: Part) -> int:
    """Of forward and backward, by torch; both on the meta device, so nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        loss_terms(network, *part).total.backward()
    return int(counter.get_total_flops())


def flops_point(name: str, config: HybridConfig, rows: int, seed: int) -> Point:
    """FLOPs of a batch each way, and those of the target's logits, which plain has not."""
    part = batch_of(config, rows, seed).on(torch.device("meta"))
    with torch.device("meta"):
        networks = {kind: build(config) for kind, build in BUILD.items()}
    point: Point = {"kind": "flops", "network": name, "rows": rows, "length": config.length}
    for way in ("plain", "hybrid", "hybrid, every rank"):
        network = networks[way.partition(",")[0]]
        set_way(network, **WAYS[way])
        point[way] = counted_flops(network, part)
    logits = count_flops(networks["plain"]).scored * part.scored.shape[1]
    return {**point, "target logits": round(logits)}


# ---------------------------------------------------------------------------------------- seconds


class Learner:
    """Makes training steps of one network on one batch, as the training loop does."""

    def __init__(
        self, network: DraftNetwork, part: Part, args: TrainSpeed, compiled: bool = False
    ) -> None:
        device = torch.device(args.device)
        config = TrainConfig(steps=1, warmup=0, precision=args.precision)
        self.network, self._part = network.to(device).train(), part.on(device)
        self._device, self._bf16 = device, args.precision == "bf16"
        # A processor's time is what other work on the machine disturbs least.
        self._clock = time.process_time if device.type == "cpu" else time.perf_counter
        self._objective, parameters = Objective(network), trained(network)
        if compiled:
            torch._dynamo.maybe_mark_dynamic(self._part.scored, 1)
            self._objective.compile()
        self._optimizers, self._ema = optimizers.build(network, config), Ema(parameters, config.ema)
        self._parameters = list(parameters.values())

    def step(self) -> float:
        """Make a step; its seconds."""
        self._wait()
        started = self._clock()
        self._loss().backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        self._ema.update(0)
        self._wait()
        return self._clock() - started

    def saved_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, weights left out."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self._loss()  # while it lives, no address is given twice
        own = {p.data_ptr() for p in self._parameters}
        del loss
        return sum(size for place, size in kept.items() if place not in own)

    def _loss(self) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss: Tensor = self._objective(*self._part)[0]
        return loss

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def step_point(name: str, config: HybridConfig, rows: int, args: TrainSpeed) -> Point:
    """Seconds of steps each way, of every round, and what these keep for the backward pass."""
    part = batch_of(config, rows, args.seed)

    def learner(kind: str, compiled: bool = False) -> Learner:
        torch.manual_seed(args.seed)
        return Learner(BUILD[kind](config), part, args, compiled)

    eager = {kind: learner(kind) for kind in BUILD}
    turns: dict[str, tuple[Learner, dict[str, bool]]] = {
        way: (eager[way.partition(",")[0]], settings) for way, settings in WAYS.items()
    }
    if name in args.compiled:
        turns |= {f"{kind}, compiled": (learner(kind, True), {}) for kind in BUILD}
    saved = {}
    for way in WAYS:
        one, settings = turns[way]
        set_way(one.network, **settings)
        saved[way] = one.saved_bytes()
    seconds = timed(turns, args.rounds, name)
    point = {"kind": "step", "network": name, "rows": rows, **asdict(config)}
    return {**point, "saved_bytes": saved, "seconds": seconds}


def timed(
    turns: Mapping[str, tuple[Learner, dict[str, bool]]], rounds: int, what: str
) -> dict[str, list[float]]:
    """Seconds of a step each way in every round; each round begins with another way."""
    seconds: dict[str, list[float]] = {way: [] for way in turns}
    for turn in track(range(rounds + 1), what, console=console):
        ways = list(turns)
        first = turn % len(ways)
        for way in ways[first:] + ways[:first]:
            one, settings = turns[way]
            set_way(one.network, **settings)
            taken = one.step()
            if turn:  # the first one warms up, and compiles
                seconds[way].append(taken)
    return seconds


def measure(args: TrainSpeed) -> Iterator[Point]:
    """The line of the run, and for every network one of FLOPs and one of seconds."""
    about = {k: v for k, v in asdict(args).items() if k not in ("out", "table_only")}
    clock = "processor" if torch.device(args.device).type == "cpu" else "wall"
    yield {"kind": "run", **about, "clock": clock, "versions": versions(), "machine": machine()}
    for name in args.networks:
        config = NETWORKS[name]
        if args.width is not None:
            config = replace(config, width=args.width, mlp_hidden=None)
        counted, rows = ROWS[name]
        yield flops_point(name, config, counted, args.seed)
        if name in args.timed:
            yield step_point(name, config, args.rows or rows, args)
            gc.collect()


# ------------------------------------------------------------------------------------------ table


def ratios(point: Point, one: str, other: str) -> list[float]:
    """Of two steps' seconds, round by round."""
    seconds = point["seconds"]
    return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


_PAGE = """# What a training step costs

Made by `python -m specmask.bench.train_speed`, from [train.jsonl](train.jsonl). A hybrid network
beside a plain masked-diffusion network of as many layers, on the same batch. The hybrid computes
the inside of its last block at masked ranks alone, the plain one at all positions; "at every rank"
is the hybrid without that saving: the price of the head's own maps and of the target's logits.

## FLOPs

Forward and backward of a micro-batch, the recipe's where there is one, counted by torch; exact.

{flops}
## Time

A whole step with AdamW, everything in turn, round by round: median of the rounds' ratios, and their
quartiles.

{seconds}"""


def table(points: Sequence[Point]) -> str:
    """The page in Markdown: FLOPs, and seconds as medians (and quartiles) of the rounds' ratios."""
    (run,) = (p for p in points if p["kind"] == "run")
    flops = [
        (
            p["network"],
            f"{p['rows']} × {p['length']}",
            f"{p['plain'] / 1e9:,.1f}",
            f"{p['hybrid'] / p['plain'] - 1:+.2%}",
            f"{(p['hybrid'] - p['target logits']) / p['plain'] - 1:+.2%}",
            f"{p['hybrid, every rank'] / p['plain'] - 1:+.2%}",
            f"{(p['hybrid, every rank'] - p['target logits']) / p['plain'] - 1:+.2%}",
        )
        for p in points
        if p["kind"] == "flops"
    ]
    seconds = [
        (
            p["network"],
            f"{p['rows']} × {p['length']}",
            f"{statistics.median(p['seconds']['hybrid']):.2f}",
            _ratio(p, "hybrid", "plain"),
            _ratio(p, "hybrid, every rank", "plain"),
            _ratio(p, "hybrid, compiled", "plain, compiled"),
            _ratio(p, "hybrid, compiled", "hybrid"),
            _ratio(p, "hybrid, recomputing", "hybrid"),
            f"{p['saved_bytes']['hybrid, recomputing'] / p['saved_bytes']['hybrid']:.2f}",
        )
        for p in points
        if p["kind"] == "step"
    ]
    counted = markdown(
        (
            *("network", "rows", "GFLOPs of a plain step", "hybrid", "without the target's logits"),
            *("hybrid at every rank", "it without them"),
        ),
        flops,
    )
    clock, precision = run["clock"], run["precision"]
    taken = markdown(
        (
            *("network", "rows", f"{clock} seconds, {precision}", "hybrid ÷ plain"),
            *("hybrid at every rank ÷ plain", "hybrid ÷ plain, compiled", "compiled ÷ not"),
            *("recomputing ÷ not", "its saved bytes ÷"),
        ),
        seconds,
    )
    return _PAGE.format(flops=counted, seconds=taken)


def _ratio(point: Point, one: str, other: str) -> str:
    if one not in point["seconds"]:
        return "–"
    found = ratios(point, one, other)
    middle = f"{statistics.median(found):.3f}"
    if len(found) < 4:
        return middle
    low, _, high = statistics.quantiles(found, method="inclusive")
    return f"{middle} ({low:.3f}–{high:.3f})"


def check(args: TrainSpeed) -> None:
    """Refuse settings before any work."""
    for name in (*args.networks, *args.timed, *args.compiled):
        if name not in NETWORKS:
            raise UserError(f"network {name!r}: expected some of {', '.join(NETWORKS)}")
    whole("rounds", args.rounds, 1)
    check_seed(args.seed)
    check_device(args.device)
    TrainConfig(steps=1, warmup=0, precision=args.precision)
    if args.rows is not None:
        whole("rows", args.rows, 1)
    if args.width is not None:
        for name in args.networks:
            replace(NETWORKS[name], width=args.width)


def main(args: TrainSpeed) -> None:
    """Measure, write the results and the table."""
    if not args.table_only:
        check(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        points: list[Point] = []
        for point in measure(args):  # what is there stays, should a larger network not fit
            points.append(point)
            write_points(args.out, points)
    text = table(read_points(args.out))
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(TrainSpeed))))
