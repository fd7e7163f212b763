"""`specmask bench`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import tyro

import specmask
from specmask.bench.benchmark import (
    Benchmark,
    check_benchmark,
    fingerprint,
    read_results,
    run_benchmark,
)
from specmask.bench.grid import named, read_grid
from specmask.bench.run import Domain, Point
from specmask.bench.tables import family, metric_of
from specmask.checks import check_device
from specmask.cli.options import ModeOptions, check_least, check_seed
from specmask.cli.output import Bars, say
from specmask.cli.rows import HeldOut, is_fasta, read_rows
from specmask.data.files import read_text
from specmask.errors import UserError, unknown
from specmask.metrics.proteins import composition
from specmask.metrics.spelling import load_words, vocabulary
from specmask.models.checkpoint import file_sha256
from specmask.models.modes import check_modes
from specmask.models.zoo import WORDS, ZOO, zoo_folder
from specmask.samplers import SAMPLERS
from specmask.samplers.driver import decode_rows


@dataclass(frozen=True)
class Bench:
    """Compare samplers on a model: exact laws on held-out rows, quality and cost of samples.

    Writes results.jsonl, a setting a line, then table.md, figures and, with --report, a page. Made
    again with the same --out it goes on where it was stopped."""

    model: tyro.conf.Positional[str | None] = None
    """Name of a shipped model (text8-small, antibody) or a model folder; without one figures,
    table and page are made again from the results that are there."""
    data: Path | None = None
    """Held-out rows: text (raw, .gz, .xz or .zip), or FASTA by its name (.fasta, .fa)."""
    out: Path = Path("bench")
    """Folder of results.jsonl and what is made from it."""
    samplers: tuple[str, ...] = ()
    """Which samplers; default every one of the grid."""
    grid: Path | None = None
    """TOML or JSON of settings, a table a sampler, lists for several values; default about the
    targets' cost of every sampler that needs no trained guide."""
    nfe: tuple[float, ...] = (8, 16, 32, 64, 128)
    """Targets of the default grid: passes of the whole network a sample."""
    samples: int = 256
    """Samples at each setting."""
    rows: int = 16
    """Held-out rows for the exact laws; as many others choose the self-speculative settings."""
    length: int | None = None
    """Tokens of a window of text; default the model's length."""
    words: Path | None = None
    """Text whose words count as spelled right; default the words of the model's folder, if it has
    any."""
    trunk: str | None = None
    """Folder of the pretrained model, if the model needs one that is not where it was."""
    seed: int = 0
    """Names orders and samples."""
    batch_size: int = 64
    """Rows in one pass."""
    bf16: bool = False
    """Draw samples with the network's matrix products in bfloat16, about twice as fast where the
    machine has them; exact laws stay in float32."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Begin results.jsonl again."""
    report: bool = False
    """Also write report.html, one page that holds all it needs."""
    mode: tyro.conf.OmitArgPrefixes[ModeOptions] = field(default_factory=ModeOptions)


def run_bench(args: Bench) -> None:
    """`specmask bench`."""
    if find_spec("matplotlib") is None:  # before hours of work
        raise UserError("the figures need matplotlib: pip install 'specmask[plot]'")
    from specmask.bench.report import write_report

    file = args.out / "results.jsonl"
    if args.model is None:
        if args.data is not None:
            raise UserError("--data without a model: name the model first, e.g. text8-small")
        if not file.is_file():
            raise UserError(f"no {file} to report on; name a model and --data to measure one")
        points = read_results(file)
        if not {"samples", "law"} & {point["kind"] for point in points}:
            raise UserError(
                f"{file}: nothing is measured yet; name the model and --data again to go on"
            )
    else:
        points = _measure(args, file)
    made = write_report(args.out, points, page=args.report)
    say(f"{args.out}: {', '.join(made)}")


def _measure(args: Bench, file: Path) -> list[Point]:
    if args.data is None:
        raise UserError("no --data: expected a file of held-out text or FASTA, e.g. --data text8")
    check_device(args.device)
    modes = args.mode.settings()
    check_modes(args.device, **modes)
    if args.bf16 and (args.mode.quantize or args.mode.dtype != "float32"):
        raise UserError(
            "--bf16 with --dtype or --quantize: --bf16 casts the float32 network for samples "
            "alone; leave one of the two out"
        )
    check_seed(args.seed)
    check_least(2, samples=args.samples, rows=args.rows)
    check_least(1, length=args.length, batch_size=args.batch_size)
    if not args.nfe or not all(0 < target < math.inf for target in args.nfe):  # nan neither
        raise UserError(f"--nfe {' '.join(map(str, args.nfe))}: expected finite numbers above 0")
    grid = None if args.grid is None else tuple(read_grid(args.grid))
    for name in args.samplers:
        if name not in SAMPLERS:
            raise unknown("sampler", name, SAMPLERS)
    if grid is not None:
        named(grid, args.samplers)
    model = specmask.load(args.model or "", args.device, trunk=args.trunk, **modes)
    scored, tuning = _halves(read_rows(model, args.data, args.length, 2 * args.rows), args)
    reference = read_rows(model, args.data, args.length, args.samples)
    domain = _domain(args, model, reference)
    about = {
        "model": model.name,
        **modes,
        "weights": fingerprint(model.network),
        "layers": [model.network.trunk_layers, model.network.head_layers],
        "data": {"file": args.data.name, "sha256": file_sha256(args.data)},
        "rows": len(scored.tokens),
        "length": int(scored.lengths.max()),
        "seed": args.seed,
        "num": args.samples,
        "bf16": args.bf16,
        "judged_by": domain.digest,
    }
    benchmark = Benchmark(
        scored,
        tuning,
        reference,
        domain,
        tuple(sorted(args.nfe)),
        grid,
        args.samplers,
        args.samples,
        args.seed,
        args.batch_size,
        about,
        args.bf16,
    )
    check_benchmark(model, benchmark)  # before an earlier file is begun again
    args.out.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        file.unlink(missing_ok=True)
    args.mode.tell()
    with Bars() as bars:
        return run_benchmark(model, benchmark, file, _Screen(bars))


def _halves(held: HeldOut, args: Bench) -> tuple[HeldOut, HeldOut]:
    """Every second row scores, the others tune."""
    if len(held.tokens) < 4:
        raise UserError(
            f"{args.data} has {len(held.tokens)} rows of {held.tokens.shape[1]} tokens: expected "
            "4 or more; use a longer text or a shorter --length"
        )
    parts = (slice(0, None, 2), slice(1, None, 2))
    scored, tuning = (HeldOut(held.tokens[part], held.lengths[part]) for part in parts)
    return scored, tuning


class _Screen:
    """A bar for each thing that is being done, and a line for each setting."""

    def __init__(self, bars: Bars) -> None:
        self.progress = bars.show

    def point(self, point: Point) -> None:
        """Told by `run_benchmark` of every setting it has sampled."""
        quality = metric_of([point])
        say(
            f"{family(point)}: {point['nfe']:.1f} NFE, {quality} {point[quality]:.4f} ± "
            f"{point[f'{quality}_se']:.4f}, entropy {point['entropy']:.3f}, "
            f"{point['seconds_per_sample']:.2f} s a sample"
        )


def _domain(args: Bench, model: specmask.Model, held: HeldOut) -> Domain:
    """Spelling where there are words, composition where the rows are sequences of residues."""
    if args.words is not None:
        return Domain(words=vocabulary(read_text(args.words)))
    folder = zoo_folder(args.model) if args.model in ZOO else Path(args.model or "")
    if (folder / WORDS).is_file():
        return Domain(words=load_words(folder / WORDS))
    if args.data is not None and is_fasta(args.data):
        return Domain(residues=composition(decode_rows(model, held.tokens, held.lengths) or []))
    return Domain()
