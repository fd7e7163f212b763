"""`specmask tune`."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

import specmask
from specmask.bench.pass_times import measure_passes
from specmask.bench.run import Point, json_line, settings_of
from specmask.bench.tune import Budget, Tuning, check_tuning, tune
from specmask.bench.tune_scores import window_grid
from specmask.categorical import check_tempering
from specmask.checks import check_device
from specmask.cli.options import ModeOptions, check_least, check_out, check_seed
from specmask.cli.output import Bars, console, rows_file, say
from specmask.cli.rows import read_rows
from specmask.errors import UserError
from specmask.models.checkpoint import file_sha256
from specmask.models.modes import check_modes
from specmask.models.saved_sampler import write_sampler
from specmask.models.zoo import ZOO
from specmask.samplers import Speculative

_SHOWN = 1.12  # cost of a line on screen over that of the line before, at least


@dataclass(frozen=True)
class Tune:
    """Find the self-speculative setting with the fewest bits for a budget, or the cheapest for so
    many bits, by exact laws on held-out rows; save it as the model's default."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small, antibody) or a model folder."""
    data: Path
    """Held-out rows: text (raw, .gz, .xz or .zip), or FASTA by its name (.fasta, .fa)."""
    nfe: float | None = None
    """Budget: passes of the whole network a sample, at most."""
    bits: float | None = None
    """Instead: exact bits per token, at most, in as few passes as that takes."""
    seconds: float | None = None
    """Instead: seconds a sample on this machine, in batches of --batch-size; the passes are timed
    first."""
    trunk: str | None = None
    """Folder of the pretrained model, if the model needs one that is not where it was."""
    rows: int = 32
    """Held-out rows to score, evenly spread, each along one random order."""
    length: int | None = None
    """Tokens of a window of text; default the model's length."""
    own_rows: int = 16
    """Rows that the model draws itself, on which the passes of generating are predicted: some for
    the choice and as many others for what is told of it, which may be a little above --nfe; 0
    takes the passes that the held-out rows would take."""
    windows: int = 500
    """Windows to try, at most; each with both rules for the first rank and 1 to --rounds rounds."""
    rounds: int = 10
    """Verify passes a trunk pass may make, at most."""
    temperature: float = 1.0
    """Of draft and target alike, above 0. There is no --top-p here: a law that leaves out symbols
    gives held-out rows no probability."""
    check: int = 64
    """Samples to draw with the chosen setting and meter, against the prediction; 0 for none."""
    seed: int = 0
    """Names the orders and the samples."""
    batch_size: int = 32
    """Rows in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """JSONL file for the Pareto front, a setting a line; last what the samples of --check took."""
    overwrite: bool = False
    """Replace an existing --out, at the end: a run that is interrupted leaves it as it was."""
    no_save: bool = False
    """Leave the model folder's sampler.json as it is. A shipped model is never written to."""
    mode: tyro.conf.OmitArgPrefixes[ModeOptions] = field(default_factory=ModeOptions)


def run_tune(args: Tune) -> None:
    """`specmask tune`."""
    kind, limit = _budget(args)
    _check(args)
    saves = args.model not in ZOO and not args.no_save
    modes = args.mode.settings()
    model = specmask.load(args.model, args.device, trunk=args.trunk, **modes)
    if saves and not os.access(args.model, os.W_OK):
        raise UserError(f"{args.model} cannot be written to: pass --no-save, or tune a copy")
    data = read_rows(model, args.data, args.length, args.rows)
    if len(data.tokens) < 2:
        raise UserError(f"{args.data} has one row of {data.tokens.shape[1]} tokens: expected two")
    args.mode.tell()
    times = None
    if kind == "seconds":
        length = int(data.lengths.max())
        times = measure_passes(model, length, args.batch_size, args.temperature)
        say(
            f"a trunk pass takes {1e3 * times.trunk:.2f} ms a row here and a verify pass "
            f"{1e3 * times.verify:.2f} ms, in batches of {args.batch_size} rows of {length} "
            "(medians); seconds are the sum over the passes of a sample"
        )
    began = time.perf_counter()
    with Bars() as progress:
        tuning = tune(
            model,
            data.tokens,
            data.lengths,
            Budget(kind, limit, times),
            windows=window_grid(data.lengths, args.windows),
            rounds=args.rounds,
            own=args.own_rows,
            temperature=args.temperature,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=progress.show,
        )
    say(
        f"{tuning.settings:,} settings on {len(data.tokens)} rows of {args.data} and "
        f"{tuning.point['own_rows']} of the model's own, {time.perf_counter() - began:.0f} s"
    )
    with nullcontext() if args.out is None else rows_file(args.out) as file:
        if file is not None:
            file.writelines(json_line({**point, **modes}) for point in tuning.points)
        _print_front(tuning)
        _print_choice(tuning.point)
        if saves:  # before it is sampled with: an interruption then loses the check alone
            path = _save(args, tuning, None)
        if args.check:
            with console.status("sampling with it"):
                measured = check_tuning(
                    model, tuning, data.lengths, args.check, args.seed, args.batch_size
                )
            measured |= modes
            _print_check(measured)
            if file is not None:
                file.write(json_line(measured))
            if saves:
                _save(args, tuning, json.loads(json_line(measured)))
    if saves:
        mode = args.mode.typed()
        of = f", tuned for{mode}" if mode else ""
        say(f"saved in {path}: the default of specmask sample {args.model} from now on{of}")
    elif not args.no_save:
        say(f"{args.model} ships with specmask and is left as it is; name the setting yourself:")
    options = _options(tuning.point["settings"]) + args.mode.typed()
    print(f"specmask sample {shlex.quote(args.model)}{options}")


# ---------------------------------------------------------------------------------------- options


def _budget(args: Tune) -> tuple[Literal["nfe", "bits", "seconds"], float]:
    kinds: tuple[Literal["nfe", "bits", "seconds"], ...] = ("nfe", "bits", "seconds")
    given = [(kind, getattr(args, kind)) for kind in kinds if getattr(args, kind) is not None]
    if len(given) != 1:
        got = " and ".join(f"--{kind}" for kind, _ in given) or "none of them"
        raise UserError(f"got {got}: expected one of --nfe, --bits and --seconds, e.g. --nfe 32")
    kind, limit = given[0]
    if not (limit > 0 and math.isfinite(limit)):
        raise UserError(f"--{kind} {limit}: expected a finite number above 0")
    return kind, limit


def _check(args: Tune) -> None:
    """Refuse what can be refused before the model is loaded."""
    check_out(args.out, args.overwrite)
    check_device(args.device)
    check_modes(args.device, **args.mode.settings())
    check_seed(args.seed)
    check_least(2, rows=args.rows)
    check_least(
        1,
        length=args.length,
        windows=args.windows,
        rounds=args.rounds,
        batch_size=args.batch_size,
    )
    for name in ("own_rows", "check"):  # two, since one has no standard error
        check_least(2, **{name: getattr(args, name) or 2})
    check_tempering(args.temperature, 1.0)
    if args.temperature == 0:
        raise UserError(
            "--temperature 0: expected more, since a law without chance gives held-out rows no "
            "probability"
        )


# ----------------------------------------------------------------------------------------- screen


def _print_front(tuning: Tuning) -> None:
    """The front, thinned for the eye; the chosen setting is marked."""
    timed = "seconds_per_sample" in tuning.point
    generating = tuning.point["own_rows"] > 0
    head = ["  bits/token", f"{'NFE':>8}"]
    head += [f"{'on text':>8}"] * generating + [f"{'seconds':>8}"] * timed
    print(*head, " setting")
    last = 0.0
    for number, point in enumerate(tuning.points):
        ends = number in (tuning.chosen, len(tuning.points) - 1)
        if point["nfe"] < _SHOWN * last and not ends:
            continue
        last = point["nfe"]
        row = [f"{'*' if point['chosen'] else ' '} {point['bits']:10.4f}", f"{point['nfe']:8.2f}"]
        row += [f"{point['nfe_text']:8.2f}"] * generating
        row += [f"{point['seconds_per_sample']:8.3f}"] * timed if timed else []
        print(*row, _options(point["settings"]))


def _print_choice(point: Point) -> None:
    """What the chosen setting costs, and what it is worth."""
    text = f"{point['nfe_text']:.2f} ± {point['nfe_text_se']:.2f} NFE"
    print(f"chosen:{_options(point['settings'])}")
    print(f"  {point['bits']:.4f} ± {point['bits_se']:.4f} bits per token, exact, on the text")
    if point["own_rows"]:
        print(
            f"  {point['nfe']:.2f} ± {point['nfe_se']:.2f} NFE to generate, exact, on "
            f"{point['own_rows']} rows of its own; {text} on the text"
        )
    else:
        print(f"  {text}, exact, on the text; generating may take more or fewer")
    if "seconds_per_sample" in point:
        print(
            f"  {point['seconds_per_sample']:.3f} ± {point['seconds_per_sample_se']:.3f} seconds "
            "a sample, from the passes"
        )


def _print_check(measured: Point) -> None:
    print(
        f"  {measured['nfe']:.2f} ± {measured['nfe_se']:.2f} NFE metered on {measured['samples']} "
        f"samples, {measured['apart']:.1f} standard errors apart; "
        f"{measured['seconds_per_sample']:.3f} seconds a sample"
    )


def _options(settings: dict[str, Any]) -> str:
    """The settings as one types them; those that are never tuned are left out at their default."""
    never = settings_of(Speculative())
    for name in ("window", "rounds", "first"):
        del never[name]
    named = {name: value for name, value in settings.items() if never.get(name) != value}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in named.items())


def _save(args: Tune, tuning: Tuning, measured: Point | None) -> Path:
    """Write the choice and where it comes from as the model's default."""
    figures = {
        name: value
        for name, value in tuning.point.items()
        if name not in ("kind", "chosen", "sampler", "settings")
    }
    about = {
        "data": {"file": args.data.name, "sha256": file_sha256(args.data)},
        **args.mode.settings(),
        **figures,
        "metered": measured,
    }
    return write_sampler(Path(args.model), "speculative", tuning.point["settings"], about)
