"""Train, kill -9 at seeded moments, resume until it ends. Run by test_kill.py in its own process.

One process imports everything and forks a child for every life, so that thirty lives are cheap.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.training.config import TrainConfig
from specmask.training.loop import train

STEPS = 200
CONFIG = TrainConfig(
    steps=STEPS, batch_size=4, warmup=10, log_every=1, save_every=5, save_every_seconds=0.0
)


def batches(step: int) -> torch.Tensor:
    return torch.randint(0, 5, (4, 16), generator=torch.Generator().manual_seed(step))


def live(out: Path) -> None:
    torch.manual_seed(0)
    train(HybridTransformer(HybridConfig(5, 16, 16, 2, 1, 1)), batches, CONFIG, out, resume=True)


def fork(out: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            live(out)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def lines(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill(out: Path, at_line: int, delay: float) -> int:
    """Start a life, end it once the log has that many lines and a delay has passed."""
    child = fork(out)
    deadline = time.monotonic() + 60
    while lines(out) < at_line and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(out: Path, kills: int, seed: int) -> None:
    moments = random.Random(seed)
    goals = sorted(moments.randrange(2, STEPS - 10) for _ in range(kills))
    for goal in goals:
        status = kill(out, goal, moments.uniform(0, 0.03))
        if not os.WIFSIGNALED(status):
            sys.exit(f"the life to be killed at line {goal} ended by itself: status {status}")
    if os.waitpid(fork(out), 0)[1] != 0:
        sys.exit("the last life failed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
