"""`specmask sample`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import specmask
from specmask.bench.run import json_line, sampler_name, settings_of
from specmask.checks import check_device
from specmask.cli.canvases import Canvases, check_canvases, read_canvases
from specmask.cli.options import (
    SAMPLER_DEFAULT_HELP,
    ModeOptions,
    SamplerOptions,
    build_sampler,
    check_least,
    check_out,
    check_seed,
    given,
)
from specmask.cli.output import console, progress_bar, rows_file
from specmask.data.fasta import FASTA, write_fasta
from specmask.errors import UserError
from specmask.models.modes import check_modes
from specmask.samplers import default_sampler
from specmask.samplers.memory import fitting
from specmask.training.loop import versions


@dataclass(frozen=True)
class Sample:
    """Generate samples, or fill in a canvas, and write one JSON object per sample."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small, antibody) or a model folder."""
    trunk: str | None = None
    """Folder of the pretrained model, if the model needs one that is not where it was."""
    out: Path | None = None
    """JSONL file to write, row by row, or FASTA by its name (.fasta, .fa); without it the text is
    printed."""
    num: int = 16
    """Samples; of each template, if there are several."""
    length: int | None = None
    """Tokens of a sample; default the model's length."""
    canvas: str | None = None
    """Text to complete instead: given symbols stay, every --mask symbol is filled in."""
    mask: str = "_"
    """The symbol that marks a free position in --canvas."""
    template: str | None = None
    """Protein to complete instead: residues stay, - and X are filled in, -{10} is ten of them; or
    a FASTA of such templates, of which each gets --num samples."""
    lengths_from: Path | None = None
    """FASTA whose sequences say how long samples are: each row draws one of their lengths."""
    sampler: Annotated[str | None, SAMPLER_DEFAULT_HELP] = None
    seed: int = 0
    """Names all random numbers."""
    first_row: int = 0
    """Number of the first sample: rows 100.. continue a run of 100."""
    batch_size: int | Literal["auto"] = 32
    """Samples in one pass, or auto: what the free memory holds. In float32 on a CPU, not compiled,
    the samples do not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """Threads of a CPU's pass; default what torch takes, usually one a core."""
    overwrite: bool = False
    """Replace an existing --out, at the end: a run that is interrupted leaves it as it was."""
    mode: tyro.conf.OmitArgPrefixes[ModeOptions] = field(default_factory=ModeOptions)
    settings: tyro.conf.OmitArgPrefixes[SamplerOptions] = field(default_factory=SamplerOptions)


def run_sample(args: Sample) -> None:
    """`specmask sample`."""
    sampler = None
    if args.sampler is not None or given(args.settings):
        sampler = build_sampler(args.sampler or "speculative", args.settings)
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = specmask.load(args.model, args.device, trunk=args.trunk, **args.mode.settings())
    if sampler is None:
        sampler = default_sampler(model)
    canvases = read_canvases(model, args)
    args.mode.tell()
    lines = _sample_rows(
        model, sampler, args, canvases, _batch_size(model, sampler, args, canvases)
    )
    if args.out is None:
        for line in lines:
            print(_shown(line), flush=True)
            console.print(
                f"  NFE {line['nfe']:.1f}, {line['trunk_passes']} trunk and "
                f"{line['verify_passes']} verify passes, {line['seconds']:.2f} s",
                style="dim",
            )
        return
    if args.out.suffix in FASTA:
        written = write_fasta(args.out, map(_fasta_record, lines), args.overwrite)
        console.print(f"{written} sequences in {args.out}", markup=False, soft_wrap=True)
        return
    first = next(lines)  # so that whatever a sampler refuses is refused before --out is touched
    with rows_file(args.out) as file:
        for line in itertools.chain([first], lines):
            file.write(json_line(line))
            file.flush()
    console.print(f"{canvases.num} samples in {args.out}", markup=False, soft_wrap=True)


def _check(args: Sample) -> None:
    """Refuse what can be refused before the model is loaded."""
    check_out(args.out, args.overwrite)
    check_device(args.device)
    check_modes(args.device, **args.mode.settings())
    check_seed(args.seed)
    check_least(1, num=args.num, length=args.length)
    if args.batch_size != "auto":
        check_least(1, batch_size=args.batch_size)
    check_least(0, first_row=args.first_row)
    cores = os.cpu_count() or 1
    if args.threads is not None and not 1 <= args.threads <= cores:
        raise UserError(f"--threads {args.threads}: expected 1 to {cores}, the cores there are")
    if args.first_row + args.num > 1 << 32:
        raise UserError(f"--first-row {args.first_row} --num {args.num}: expected rows below 2**32")
    check_canvases(args)


_TOGETHER = 8  # batches of which rows of like length are put together, before any is written


def _batch_size(model: specmask.Model, sampler: Any, args: Sample, canvases: Canvases) -> int:
    """Rows in one pass; what auto has come to is told."""
    if args.batch_size != "auto":
        return args.batch_size
    length = canvases.length or model.network.length
    if canvases.lengths is not None:
        length = int(canvases.lengths.max())
    fit = fitting(model, sampler, length, canvases.num)
    needed, free = (f"{size / 1e9:.2g} GB" for size in (fit.needed, fit.free))
    said = f"batches of {fit.rows}: at most {needed} by estimate, of {free} free"
    console.print(said, markup=False, soft_wrap=True)
    return fit.rows


def _sample_rows(
    model: specmask.Model, sampler: Any, args: Sample, canvases: Canvases, size: int
) -> Iterator[dict[str, Any]]:
    """One JSON-able object per sample, in order, as batches of `size` finish; some batches at a
    time where lengths differ."""
    lengths, told = canvases.lengths, False
    ragged = lengths is not None and bool((lengths != lengths[0]).any())

    def smaller(rows: int) -> None:
        nonlocal size, told
        if not told:
            console.print(f"out of memory: going on with batches of {rows}", soft_wrap=True)
        size, told = rows, True

    record = {
        "model": args.model,
        "sampler": sampler_name(sampler),
        "settings": settings_of(sampler),
        "seed": args.seed,
        "device": args.device,
        **args.mode.settings(),
        "versions": versions(),
    }
    with progress_bar() as progress:
        task = progress.add_task("sampling", total=canvases.num)
        stop = 0
        while stop < canvases.num:
            start, stop = stop, min(stop + size * (_TOGETHER if ragged else 1), canvases.num)
            rows = range(args.first_row + start, args.first_row + stop)
            out = specmask.sample(
                model,
                sampler,
                seed=args.seed,
                batch_size=size,
                rows=rows,
                on_frame=lambda frame: progress.advance(task, int(frame.finished.sum())),
                on_smaller=smaller,
                **canvases.take(slice(start, stop)),
            )
            for k, row in enumerate(rows):
                named = {} if canvases.names is None else {"template": canvases.names[start + k]}
                yield {
                    "row": row,
                    **named,
                    "text": None if out.text is None else out.text[k],
                    "tokens": out.tokens[k, : out.lengths[k]].tolist(),
                    "nfe": float(out.nfe[k]),
                    "trunk_passes": int(out.trunk_passes[k]),
                    "verify_passes": int(out.verify_passes[k]),
                    "accepted": int(out.accepted[k]),
                    "rejected": int(out.rejected[k]),
                    "seconds": float(out.seconds[k]),
                    **record,
                }


def _fasta_record(line: dict[str, Any]) -> tuple[str, str, dict[str, object]]:
    """Name, sequence, and a header that says how it was made and in how many passes."""
    if line["text"] is None:
        raise UserError(f"{line['model']} has no tokenizer, so there is no sequence for a FASTA")
    passes = {name: line[name] for name in ("trunk_passes", "verify_passes")}
    facts = {
        **({"template": line["template"]} if "template" in line else {}),
        "model": Path(line["model"]).name,
        "sampler": line["sampler"],
        **line["settings"],
        "seed": line["seed"],
        "nfe": f"{line['nfe']:.2f}",
        **passes,
    }
    return f"row{line['row']}", line["text"], facts


def _shown(line: dict[str, Any]) -> str:
    """The text of a sample; its token numbers where the model has no tokenizer."""
    return " ".join(map(str, line["tokens"])) if line["text"] is None else line["text"]
