"""The command line: train · sample · score · demo, over the same dataclasses as the library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from specmask.cli.sample import Sample, run_sample
from specmask.cli.score import Score, run_score
from specmask.cli.train import Train, run_train
from specmask.demo import DemoArgs, demo
from specmask.errors import UserError

COMMANDS: dict[type, Callable[[Any], None]] = {
    Train: run_train,
    Sample: run_sample,
    Score: run_score,
    DemoArgs: demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    args = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Sample, tyro.conf.subcommand("sample")]
        | Annotated[Score, tyro.conf.subcommand("score")]
        | Annotated[DemoArgs, tyro.conf.subcommand("demo")],
        prog="specmask",
        description="Self-speculative masked diffusion: train, sample and score.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        COMMANDS[type(args)](args)
    except UserError as error:
        print(f"specmask: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission, a file in the way
        print(f"specmask: {error.strerror or error}: {error.filename or 'output'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("specmask: interrupted", file=sys.stderr)
        return 130
    return 0
