"""Where commands write: rows to a file, and what people read to the console on stderr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
