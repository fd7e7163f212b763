"""How fast corpora are read, and in how much memory: made files, each step in a process of its own.

    python -m specmask.bench.ingest docs/ingest.jsonl

Speeds are told beside those of reading the same file and doing nothing, measured in turn.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from specmask.bench.run import json_line
from specmask.checks import peak_memory
from specmask.data.documents import documents
from specmask.data.fasta import AMINO_ACIDS, read_fasta
from specmask.data.sequences import pack_sequences, residue_encoder
from specmask.data.subwords import train_bpe
from specmask.data.token_ids import tokenize_corpus
from specmask.errors import exit_code
from specmask.training.loop import versions

console = Console(stderr=True)


@dataclass(frozen=True)
class Ingest:
    """Time the reading of made corpora, and note the memory it takes."""

    out: tyro.conf.Positional[Path]
    """JSON lines, one a step and size."""
    records: int = 1_000_000
    """Of the FASTA, 50 to 350 residues each."""
    megabytes: int = 200
    """Of the text."""
    repeats: int = 3
    """Of each step, in turn; medians are written."""
    step: str | None = None
    """Do one step on --file in this process, and print seconds and bytes of memory."""
    file: Path | None = None


# ------------------------------------------------------------------------------------ made files


def make_fasta(path: Path, records: int) -> None:
    """Random proteins, one line each."""
    dice = random.Random(0)
    pool = "".join(dice.choices(AMINO_ACIDS, k=1 << 20))
    with path.open("w", encoding="utf-8") as file:
        for k in range(records):
            size, start = dice.randint(50, 350), dice.randrange(len(pool) - 350)
            file.write(f">protein{k}\n{pool[start : start + size]}\n")


def make_text(path: Path, megabytes: int) -> None:
    """Documents of a few paragraphs out of five thousand, of words whose frequencies fall as those
    of a language do."""
    dice = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(dice.choices(letters, k=dice.randint(1, 9))) for _ in range(20_000)]
    weights = [1 / (k + 10) for k in range(len(words))]
    written = 0
    sizes = (dice.randint(20, 200) for _ in range(5000))
    paragraphs = [" ".join(dice.choices(words, weights, k=size)) for size in sizes]
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            end = "\n\n" if dice.random() < 0.3 else "\n"
            written += file.write(dice.choice(paragraphs) + end)


# ----------------------------------------------------------------------------------------- steps


def _read(file: Path, _: Path) -> None:
    with file.open("rb") as raw:
        while raw.read(1 << 20):
            pass


def _fasta(file: Path, _: Path) -> None:
    for _record in read_fasta(file):
        pass


def _pack(file: Path, folder: Path) -> None:
    pack_sequences(read_fasta(file), residue_encoder(), folder / "packed")


def _documents(file: Path, _: Path) -> None:
    for _document in documents(file):
        pass


def _tokenise(file: Path, folder: Path) -> None:
    make_text(folder / "learn.txt", 2)
    tokenizer = train_bpe(folder / "learn.txt", 4096)
    _TIMER[0] = time.perf_counter()  # learning the tokenizer is not what is asked
    tokenize_corpus(documents(file), tokenizer, folder / "ids")


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "read the FASTA's bytes": _read,
    "read FASTA records": _fasta,
    "pack FASTA into ids": _pack,
    "read the text's bytes": _read,
    "read documents": _documents,
    "tokenise, BPE of 4096": _tokenise,
}
_TIMER = [0.0]


def one_step(step: str, file: Path) -> None:
    """Do a step here; print its seconds and this process's peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        _TIMER[0] = time.perf_counter()
        STEPS[step](file, Path(folder))
        print(json.dumps([time.perf_counter() - _TIMER[0], peak_memory()]))


def measure(args: Ingest) -> None:
    """Every step on files of a quarter of the size and of all of it."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for share in (4, 1):
            fasta, text = Path(folder) / "made.fasta", Path(folder) / "made.txt"
            make_fasta(fasta, args.records // share)
            make_text(text, max(1, args.megabytes // share))
            found: dict[str, list[tuple[float, int]]] = {step: [] for step in STEPS}
            for _ in range(args.repeats):
                for step in STEPS:
                    file = fasta if "FASTA" in step else text
                    command = [sys.executable, "-m", __spec__.name, str(args.out)]
                    command += ["--step", step, "--file", str(file)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True)
                    found[step].append(tuple(json.loads(out.stdout)))
            for step, times in found.items():
                file = fasta if "FASTA" in step else text
                seconds = statistics.median(one for one, _ in times)
                line = {
                    "step": step,
                    "bytes": file.stat().st_size,
                    "seconds": seconds,
                    "megabytes_per_second": file.stat().st_size / 1e6 / seconds,
                    "peak_memory_megabytes": max(memory for _, memory in times) / 1e6,
                    "repeats": args.repeats,
                    "records": args.records // share if "FASTA" in step else None,
                    "versions": versions(),
                }
                lines.append(json_line(line))
                console.print(
                    f"{step}: {line['megabytes_per_second']:.1f} MB/s, "
                    f"{line['peak_memory_megabytes']:.0f} MB of memory",
                    highlight=False,
                )
    args.out.write_text("".join(lines), encoding="utf-8")


def main(args: Ingest) -> None:
    """`python -m specmask.bench.ingest`."""
    if args.step is not None and args.file is not None:
        one_step(args.step, args.file)
    else:
        measure(args)


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Ingest))))
