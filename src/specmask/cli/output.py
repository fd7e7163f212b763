"""Where commands write: rows to a file, and what people read to the console on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


def progress_bar() -> Progress:
    """Shown only where someone watches, and gone when the work is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def flush_stdout() -> None:
    """Write what stdout still holds, here, where a failure can be told.

    Python would try again at exit, in vain and aloud, so what is left then goes to nowhere
    (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def rows_file(path: Path) -> Iterator[TextIO]:
    """The file of `--out`, to write rows to.

    A new file has each row as it comes. One that exists is replaced at the end, by a neighbour
    written meanwhile, and stays as it was if the end is not reached.
    """
    target = path.resolve()  # a link stays a link
    if not target.is_file():  # new, or a pipe or device, which has no old content
        with target.open("w", encoding="utf-8") as file:
            yield file
        return
    neighbour = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with neighbour.open("w", encoding="utf-8") as file:
            yield file
        neighbour.replace(target)
    finally:
        neighbour.unlink(missing_ok=True)


class Bars:
    """One bar for each thing that is being done."""

    def __enter__(self) -> Bars:
        self._bar = progress_bar().__enter__()
        self._tasks: dict[str, Any] = {}
        return self

    def show(self, what: str, done: int, total: int) -> None:
        """A bar for `what`, made when it is first shown."""
        task = self._tasks.setdefault(what, None)
        if task is None:
            task = self._tasks[what] = self._bar.add_task(what)
        elif self._bar.tasks[task].finished:  # again, of other rows
            self._bar.reset(task)
        self._bar.update(task, completed=done, total=total)

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


def say(text: str) -> None:
    """A line on the console as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
