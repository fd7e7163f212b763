"""The training loop: batches → masks → loss → step, and nothing that a kill can lose.

Orders, masks and dropout are pure functions of (seed, step), so weights, averages, optimiser state
and the step number are the whole state of a run.
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from rich.console import Console

from specmask.errors import UserError
from specmask.models.checkpoint import save
from specmask.models.hybrid import DraftNetwork
from specmask.training import checkpoints
from specmask.training.checks import check_input, identify, open_run
from specmask.training.config import TrainConfig
from specmask.training.feed import Batch, Feed, make_batch
from specmask.training.log import Screen, write_synced
from specmask.training.loss import Rows
from specmask.training.run import Run, versions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Batches", "train", "versions"]

Batches = Callable[[int], Rows]
"""step → `batch_size` rows; a pure function of the step, called in a thread, a few steps ahead."""

_SINGLE_COPY = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def train(
    network: DraftNetwork,
    batches: Batches,
    config: TrainConfig,
    out: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    validation: Rows | None = None,
    resume: bool = False,
    card: str | None = None,
    console: Console | None = None,
) -> Path:
    """Train a network in place and save it, with the averaged weights, in `out/model`.

    Args:
        network: a float32 network, from scratch or on a pretrained trunk; left on the training
            device with its last own weights.
        batches: step → (batch_size, D) int64 tokens; or these and their (batch_size,) lengths.
        config: see TrainConfig.
        out: the run's folder: log.jsonl, checkpoints/, model/.
        tokenizer: saved with the model.
        validation: such rows, scored every `eval_every` steps, with the averaged weights.
        resume: go on from the newest whole checkpoint in `out`; from the start if there is none.
        card: Markdown for the model's README.md.
        console: where progress goes; None is silent.

    Returns:
        The model's folder.

    Raises:
        UserError: bad input, another run in `out`, a loss that is not finite, or a full disk.
        SystemExit: 130 or 143 after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    out = Path(out)
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    if config.frozen_trunk:
        network.freeze_trunk()
    if config.checkpoint_activations:
        network.checkpoint_activations()
    first = batches(0)
    check_input(network, first, config, validation)
    identity = identify(network, first, config)
    checkpoint = open_run(out, identity, resume, console if main else None)
    run = Run(accelerator, network, config, out, identity, checkpoint)
    try:
        if main:
            checkpoints.tidy(out, run.step)
            if tokenizer is not None:  # so that `export` can take it along
                write_synced(out / "tokenizer.json", tokenizer.to_str().encode())
        with Screen(console if main else None, run.step, config.steps) as screen:
            _loop(run, batches, validation, screen)
        if main:
            with run.ema.applied():
                save(out / "model", network, tokenizer, card, torch.float32, overwrite=resume)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(  # from the log; checkpoints and models say so themselves
            f"{error.strerror} in {out}. Checkpoints are as they were: free some space and "
            "continue with --resume"
        ) from error
    finally:
        run.close()
    accelerator.wait_for_everyone()
    return out / "model"


def _loop(run: Run, batches: Batches, validation: Rows | None, screen: Screen) -> None:
    config, accelerator = run.config, run.accelerator
    process, processes = accelerator.process_index, accelerator.num_processes
    pinned = run.device.type == "cuda"

    def make(step: int) -> Batch:
        return make_batch(batches(step), step, config, process, processes, pinned)

    if config.compile:
        screen.say("compiling: the first step takes a minute or more, the others are faster")
    with _signals() as received, Feed(make, range(run.step, config.steps)) as feed:
        while run.step < config.steps:
            batch, waited = feed.take()
            stop = run.update(batch, waited, stop=bool(received))
            step, last = run.step, run.step == config.steps
            screen.advance(step)
            if last or step % config.log_every == 0:
                screen.train(step, run.log_line())
            if validation is not None and (last or step % config.eval_every == 0):
                screen.validation(step, run.validate(validation))
            if last or stop or run.save_is_due():
                run.save()
            if stop and not last:
                screen.say(f"stopped; step {step} is saved: continue with --resume")
                raise SystemExit(128 + (received[0] if received else signal.SIGINT))


def _accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps the precision of the process's first run; another run may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_steps=config.accumulation,
    )
    if accelerator.distributed_type not in _SINGLE_COPY:
        raise UserError(
            f"training under {accelerator.distributed_type.value} is not supported, because "
            "checkpoints hold whole weights: launch with plain data parallelism"
        )
    if config.batch_size % (config.accumulation * accelerator.num_processes):
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of accumulation × processes = "
            f"{config.accumulation} × {accelerator.num_processes}: choose one that is"
        )
    return accelerator


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying inside a step; the second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread alone
        return

    def take(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
