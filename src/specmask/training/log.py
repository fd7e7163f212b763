"""What a training run tells: `log.jsonl` for programs, the screen for people."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

TIMINGS = frozenset({"seconds", "tokens_per_second", "mfu", "data_wait", "peak_flops"})
"""Fields in which a resumed log may differ from an uninterrupted one."""


@dataclass
class Since:
    """Sums over the steps since the last line of the log; part of every checkpoint."""

    steps: int = 0
    tokens: int = 0
    draft_nll: float = 0.0
    target_nll: float = 0.0
    grad_norm: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    flops: float = 0.0

    def add(self, draft: float, target: float, norm: float) -> None:
        """Take the losses and the gradient norm of one step in."""
        self.steps += 1
        self.draft_nll += draft
        self.target_nll += target
        self.grad_norm += norm

    def time(self, tokens: int, flops: float, seconds: float, waited: float) -> None:
        """Take in what one step did and how long it took, the wait for its data included."""
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds
        self.waited += waited

    def row(self, peak: float) -> dict[str, float]:
        """Means over the steps, the speed, and its share of `peak`, FLOPs a second at best."""
        seconds = max(self.seconds, 1e-9)
        return {
            **nats_and_bits(self.draft_nll / self.steps, self.target_nll / self.steps),
            "grad_norm": self.grad_norm / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.flops / seconds / peak,
            "data_wait": self.waited / seconds,
        }


def nats_and_bits(draft: float, target: float) -> dict[str, float]:
    """Both terms per token (method.md §3), in nats and, log₂ e times as large, in bits."""
    log2_e = 1.4426950408889634
    return {
        "draft_nll": draft,
        "target_nll": target,
        "draft_bits": draft * log2_e,
        "target_bits": target * log2_e,
    }


class Log:
    """`log.jsonl`: a header, then one object a line.

    Args:
        path: the file. From `step` 0 it is started over, else lines past `step` (and a torn last
            one) are dropped, so that the log becomes that of a run never interrupted.
        header: written first; an existing header stays.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], step: int) -> None:
        first = json.dumps({"kind": "header", **header})
        kept = _rows_until(path, step) if step else []
        temporary = path.with_suffix(".tmp")
        write_synced(temporary, "".join(f"{line}\n" for line in kept or [first]).encode())
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Add a line: the row and its kind."""
        self._file.write(json.dumps({"kind": kind, **row}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until the lines are on the disk; a checkpoint must not be newer than the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; nothing is written after that."""
        self._file.close()


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rows_until(path: Path, step: int) -> list[str]:
    """The header and the lines up to a step; nothing if the file or its header is not there."""
    kept: list[str] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break  # torn by a kill or a full disk: it and what follows is written again
            if (row.get("kind") == "header") != (not kept) or row.get("step", 0) > step:
                break
            kept.append(line)
    return kept


class Screen:
    """A progress bar on a terminal, plain lines elsewhere, nothing without a console."""

    def __init__(self, console: Console | None, step: int, steps: int) -> None:
        self._console, self._first, self._steps = console, step, steps
        self._started = time.perf_counter()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console is not None and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("starting", total=steps, completed=step)

    def __enter__(self) -> Screen:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, row: Mapping[str, float]) -> None:
        """Both terms, the speed and the time left."""
        text = f"{_terms(row)}  {_speed(row)}  {self._left(step)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        else:
            self.say(f"step {step}/{self._steps}  {text}")

    def validation(self, step: int, row: Mapping[str, float]) -> None:
        """Both terms, with the averaged weights."""
        self.say(f"step {step}/{self._steps}  validation {_terms(row)}")

    def say(self, text: str) -> None:
        """One line, whatever else is on the screen."""
        if self._console is not None:
            self._console.print(text, soft_wrap=True, highlight=False)

    def _left(self, step: int) -> timedelta:
        pace = (time.perf_counter() - self._started) / max(1, step - self._first)
        return timedelta(seconds=round(pace * (self._steps - step)))


def _terms(row: Mapping[str, float]) -> str:
    return f"draft {row['draft_nll']:.4f}  target {row['target_nll']:.4f} nats/token"


def _speed(row: Mapping[str, float]) -> str:
    """Waiting for data is told where it is worth mending."""
    text = f"{row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.1%}"
    return text if row["data_wait"] < 0.01 else f"{text}  waiting for data {row['data_wait']:.0%}"
