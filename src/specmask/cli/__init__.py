"""The command line, over the library's dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from specmask.cli.adapt import Adapt, run_adapt
from specmask.cli.bench import Bench, run_bench
from specmask.cli.bench_speed import BenchSpeed, run_bench_speed
from specmask.cli.error_head import TrainErrorHead, run_error_head
from specmask.cli.judge import Judge, run_judge
from specmask.cli.output import flush_stdout
from specmask.cli.sample import Sample, run_sample
from specmask.cli.score import Score, run_score
from specmask.cli.train import Train, run_train
from specmask.cli.tune import Tune, run_tune
from specmask.demo import DemoArgs, demo
from specmask.errors import exit_code

COMMANDS: dict[type, Callable[[Any], None]] = {
    Train: run_train,
    Adapt: run_adapt,
    Sample: run_sample,
    Score: run_score,
    Judge: run_judge,
    Bench: run_bench,
    BenchSpeed: run_bench_speed,
    TrainErrorHead: run_error_head,
    Tune: run_tune,
    DemoArgs: demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; what it returns is said by `exit_code`."""
    return exit_code(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    try:
        args = tyro.cli(
            Annotated[Train, tyro.conf.subcommand("train")]
            | Annotated[Adapt, tyro.conf.subcommand("adapt")]
            | Annotated[Sample, tyro.conf.subcommand("sample")]
            | Annotated[Score, tyro.conf.subcommand("score")]
            | Annotated[Judge, tyro.conf.subcommand("judge")]
            | Annotated[Bench, tyro.conf.subcommand("bench")]
            | Annotated[BenchSpeed, tyro.conf.subcommand("bench-speed")]
            | Annotated[Tune, tyro.conf.subcommand("tune")]
            | Annotated[TrainErrorHead, tyro.conf.subcommand("error-head")]
            | Annotated[DemoArgs, tyro.conf.subcommand("demo")],
            prog="specmask",
            description="Self-speculative masked diffusion: train, sample, score and compare.",
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        COMMANDS[type(args)](args)
    finally:
        flush_stdout()
