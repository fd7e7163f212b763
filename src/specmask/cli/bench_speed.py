"""`specmask bench-speed`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import tyro

import specmask
from specmask.bench import speed, speed_cases
from specmask.bench.benchmark import machine
from specmask.bench.run import Point, fingerprint, json_line, read_points
from specmask.bench.speed_loops import LeftToRight
from specmask.bench.speed_tables import write_speed
from specmask.checks import check_device
from specmask.cli.options import check_least
from specmask.cli.output import Bars, say
from specmask.errors import UserError
from specmask.models.hybrid import HybridNetwork
from specmask.models.protocol import has_head
from specmask.samplers import Ancestral
from specmask.training.loop import versions

Scale = Literal["model", "vocabulary", "gpt2", "memory"]
SCALES: tuple[Scale, ...] = ("model", "vocabulary", "gpt2", "memory")


@dataclass(frozen=True)
class BenchSpeed:
    """Time sampling by part, beside the bare network and textbook loops.

    Writes speed.jsonl, a measurement a line, then speed.md and speed.png. Made again with the same
    --out it goes on where it was stopped."""

    model: tyro.conf.Positional[str | None] = None
    """Name of a shipped model (text8-small) or a model folder; without one table and figure are
    made again from the results that are there."""
    out: Path = Path("bench-speed")
    """Folder of speed.jsonl and what is made from it."""
    scales: tuple[Scale, ...] = SCALES
    """What to time: the model itself; its sizes with larger vocabularies; GPT-2's sizes with random
    weights; peak memory at GPT-2's sizes."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Rows in a pass, on the model."""
    gpt2_batches: tuple[int, ...] = (1, 4)
    """Rows in a pass, at GPT-2's sizes."""
    gpt2_passes: int = 3
    """Trunk passes of a round at GPT-2's sizes."""
    equal_steps: tuple[int, ...] = (22, 31)
    """Steps of plain sampling that is as good as the setting timed, by whatever measure; default:
    by exact bits, and by spelling, on text8-small (docs/chooser)."""
    memory_batch: int = 16
    """Rows in a pass, for peak memory."""
    rounds: int = 5
    """Times that all loops of a setting run, in turn, after one to warm up."""
    seed: int = 0
    """Names the samples."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Begin speed.jsonl again."""


def run_bench_speed(args: BenchSpeed) -> None:
    """`specmask bench-speed`."""
    if find_spec("matplotlib") is None:  # before the work
        raise UserError("the figure needs matplotlib: pip install 'specmask[plot]'")
    file = args.out / "speed.jsonl"
    if args.model is None:
        if not file.is_file():
            raise UserError(f"no {file} to report on; name a model to measure")
    else:
        _measure(args, file)
    say(f"{args.out}: {', '.join(write_speed(args.out, read_points(file)))}")


def _measure(args: BenchSpeed, file: Path) -> None:
    check_device(args.device)
    check_least(1, rounds=args.rounds, gpt2_passes=args.gpt2_passes, memory_batch=args.memory_batch)
    for number in (*args.batches, *args.gpt2_batches):
        check_least(1, batches=number)
    for number in args.equal_steps:
        check_least(1, equal_steps=number)
    model = specmask.load(args.model or "", args.device)
    if not has_head(model.network) or not isinstance(model.network, HybridNetwork):
        raise UserError(f"{model.name} has no causal head: expected a self-speculative model")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        file.unlink(missing_ok=True)
    with Bars() as bars:
        _Measurement(args, model, file, bars).run()


class _Measurement:
    """Measures what the file does not hold yet, a line at once."""

    def __init__(self, args: BenchSpeed, model: specmask.Model, file: Path, bars: Bars) -> None:
        self.args, self.model, self.file, self.bars = args, model, file, bars
        self.done = read_points(file) if file.exists() else []
        weights = fingerprint(model.network)
        for line in self.done:
            if line.get("weights") != weights:
                raise UserError(
                    f"{file} has weights {line.get('weights', 'unknown')[:8]}, this model "
                    f"{weights[:8]}: name another --out, or --overwrite"
                )
        self.about: Point = {
            "model": model.name,
            "weights": weights,
            "seed": args.seed,
            "rounds": args.rounds,
            "versions": versions(),
            "machine": machine(),
        }

    def run(self) -> None:
        args, length = self.args, self.model.network.length
        cases: list[speed_cases.Case] = []
        if "model" in args.scales:
            cases += speed_cases.small_cases(self.model.name, length, args.batches)
        if "vocabulary" in args.scales:
            cases += speed_cases.vocabulary_cases(length, args.batches[len(args.batches) // 2])
        if "gpt2" in args.scales:
            cases += speed_cases.gpt2_cases(args.gpt2_batches, args.gpt2_passes)
        for k, case in enumerate(cases):
            self.bars.show("settings", k, len(cases))
            self._case(case)
        if "model" in args.scales:
            self._claims(max(args.batches), length)
        if "memory" in args.scales:
            for window, step in (("CosineWindow", "0.05"), ("FullWindow", "")):
                known = {"window": f"{window}({step})", "batch": args.memory_batch}
                if not self._has("memory", known):
                    self._add([speed.peak_memory(args.memory_batch, window, step)])

    def _case(self, case: speed_cases.Case) -> None:
        if self._has("loop", case.about()):
            return
        model = self.model
        if case.scale == "gpt2":
            model = specmask.wrap(speed_cases.gpt2_network().to(self.args.device))
        elif case.scale == "random":
            network = speed_cases.like(model, case.vocab_size or 0)
            model = specmask.wrap(network.to(self.args.device))
        right = None
        if find_spec("transformers") is not None:
            right = LeftToRight(model, case.length)
        self._add(speed.case_rounds(model, case, self.args.rounds, right, self.args.seed))

    def _claims(self, batch: int, length: int) -> None:
        args, model = self.args, self.model
        if not self._has("half", {}):
            self._add([speed.half_finished(model, batch, length, args.rounds, args.seed)])
        if not self._has("later round", {}):
            widths = (length // 16, length // 8, length // 4)
            self._add(
                [speed.later_rounds(model, batch, length, w, 4 * args.rounds) for w in widths]
            )
        if not any(
            line["kind"] == "equal quality"
            and set(line["seconds"]) == {"ours", *(f"{n} steps" for n in args.equal_steps)}
            for line in self.done
        ):
            plain = [Ancestral(steps, "fixed", "linear") for steps in args.equal_steps]
            self._add([speed.equal_quality(model, batch, args.rounds, plain, args.seed)])

    def _has(self, kind: str, about: Point) -> bool:
        return any(
            line["kind"] == kind and all(line.get(key) == value for key, value in about.items())
            for line in self.done
        )

    def _add(self, lines: list[Point]) -> None:
        fresh = [{**line, **self.about, "threads": torch.get_num_threads()} for line in lines]
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(map(json_line, fresh))
        self.done += fresh
