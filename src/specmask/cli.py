"""The command line: train · sample · score · demo, over the same dataclasses as the library."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeAlias,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import specmask
from specmask.bench.run import json_line, settings_of, show
from specmask.data.batches import Batches, windows
from specmask.data.corpora import load_corpus
from specmask.data.files import read_text
from specmask.data.tokenizers import encode
from specmask.demo import DemoArgs, demo
from specmask.errors import UserError, unknown
from specmask.masking import Window, parse_window
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.recipes import recipe
from specmask.samplers import SAMPLERS
from specmask.training.config import TrainConfig
from specmask.training.loop import train, versions

console = Console(stderr=True)


# ------------------------------------------------------------- settings of tables, as options


def _field_docs(owner: type) -> dict[str, str]:
    """The string that stands below each field of a dataclass, as one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    assert isinstance(tree.body[0], ast.ClassDef)
    body, docs = tree.body[0].body, {}
    for above, below in itertools.pairwise(body):
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr):
            name, text = ast.unparse(above.target), ast.literal_eval(below.value)
            docs[name] = " ".join(text.split())
    return docs


def _union(tables: dict[str, type], skip: frozenset[str] = frozenset()) -> list[Any]:
    """One optional field for every setting that any of the dataclasses has.

    So a sampler that is added to `SAMPLERS` has its settings on the command line at once.
    """
    types: dict[str, Any] = {}
    helps: dict[str, list[str]] = {}
    for name, owner in tables.items():
        hints, docs = get_type_hints(owner), _field_docs(owner)
        for item in fields(owner):
            if item.name in skip:
                continue
            hint = hints[item.name]
            word = hint is Window or get_origin(hint) is Literal
            types.setdefault(item.name, str if word else hint)
            default = "" if item.default is MISSING else f" [{show(item.default)}]"
            prefix = f"{name}{default}: " if name else f"{default.lstrip()} "
            helps.setdefault(item.name, []).append(f"{prefix}{docs[item.name]}")
    return [
        (name, Annotated[kind | None, _option(kind, helps[name])], field(default=None))
        for name, kind in types.items()
    ]


def _option(kind: Any, helps: list[str]) -> Any:
    """How an optional setting shows in --help: its kind and its tables' defaults, not None."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    name = (kinds[0] if kinds and get_origin(kind) is not tuple else kind).__name__.upper()
    text = "\n".join(dict.fromkeys(helps))
    return tyro.conf.arg(metavar=name, help=text, help_behavior_hint="")


if TYPE_CHECKING:
    SamplerOptions: TypeAlias = Any
    TrainOptions: TypeAlias = Any
    NetworkOptions: TypeAlias = Any
else:
    SamplerOptions = make_dataclass("SamplerOptions", _union(SAMPLERS), frozen=True)
    TrainOptions = make_dataclass("TrainOptions", _union({"": TrainConfig}), frozen=True)
    NetworkOptions = make_dataclass(
        "NetworkOptions", _union({"": HybridConfig}, frozenset({"vocab_size"})), frozen=True
    )


def _given(options: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if value is not None}


def build_sampler(name: str, options: Any) -> specmask.samplers.Sampler:
    """The sampler of that name with the options that were given.

    Raises:
        UserError: unknown name; an option of another sampler; a value out of range.
    """
    key = name.replace("-", "_")
    if key not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    settings = _given(options)
    own = {item.name for item in fields(SAMPLERS[key])}
    for option in settings:
        if option not in own:
            raise UserError(
                f"--{option.replace('_', '-')} is not a setting of sampler {name!r}: it has "
                + ", ".join(f"--{one.replace('_', '-')}" for one in sorted(own))
            )
    if "window" in settings:
        settings["window"] = parse_window(settings["window"])
    return SAMPLERS[key](**settings)


# ------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Train:
    """Train a model: RECIPE names the network and its training, --data the text."""

    recipe: tyro.conf.Positional[str]
    """One of: text8-small, text8, openwebtext, characters."""
    out: Path
    """Folder of the run: log.jsonl, checkpoints/, model/."""
    data: Path | None = None
    """Text file: raw, .gz, .xz or .zip. Recipes for text8 fetch that corpus without it."""
    init: str | None = None
    """Model whose weights to start from (a further stage of training); of the same shape."""
    fresh_head: bool = False
    """With --init: take the trunk alone, and start the head anew."""
    resume: bool = False
    """Continue from the newest sound checkpoint in --out."""
    network: tyro.conf.OmitArgPrefixes[NetworkOptions] = field(default_factory=NetworkOptions)
    train: tyro.conf.OmitArgPrefixes[TrainOptions] = field(default_factory=TrainOptions)


@dataclass(frozen=True)
class Sample:
    """Generate samples, or fill in a canvas, and write one JSON object per sample."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small) or a model folder."""
    out: Path | None = None
    """JSONL file to write; without it the text is printed."""
    num: int = 16
    """Samples."""
    length: int | None = None
    """Tokens of a sample; default the model's length."""
    canvas: str | None = None
    """Text to complete instead: given symbols stay, every --mask symbol is filled in."""
    mask: str = "_"
    """The symbol that marks a free position in --canvas."""
    sampler: str = "speculative"
    """One of: speculative, ancestral, any_order."""
    seed: int = 0
    """Names all random numbers."""
    first_row: int = 0
    """Number of the first sample: rows 100.. continue a run of 100."""
    batch_size: int = 32
    """Samples in one pass; the samples do not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Replace an existing --out."""
    settings: tyro.conf.OmitArgPrefixes[SamplerOptions] = field(default_factory=SamplerOptions)


@dataclass(frozen=True)
class Score:
    """Exact bits per character of a text under a sampler's own law, and its expected cost."""

    model: tyro.conf.Positional[str]
    """Name of a shipped model (text8-small) or a model folder."""
    file: tyro.conf.Positional[Path]
    """Text file: raw, .gz, .xz or .zip."""
    rows: int = 4
    """Windows of the text to score, evenly spread."""
    length: int | None = None
    """Tokens of a window; default the model's length."""
    orders: int = 1
    """Random orders for each window; the mean bounds log p from below."""
    sampler: str = "speculative"
    """One of: speculative, ancestral (with --counts fixed), any_order."""
    seed: int = 0
    """Names the orders."""
    batch_size: int = 64
    """Prefixes in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """JSONL file for the scores of each window and order."""
    overwrite: bool = False
    """Replace an existing --out."""
    settings: tyro.conf.OmitArgPrefixes[SamplerOptions] = field(default_factory=SamplerOptions)


def run_train(args: Train) -> None:
    """`specmask train`."""
    plan = recipe(args.recipe)
    settings = _given(args.train)
    if "steps" in settings:  # a short run warms up for a short while, unless it says otherwise
        settings.setdefault("warmup", min(plan.train.warmup, max(settings["steps"] // 10, 0)))
    config = replace(plan.train, **settings)
    network_config = replace(plan.network, **_given(args.network))
    if args.data is None and plan.corpus != "text8":
        raise UserError(f"recipe {plan.name!r} needs a text: pass --data FILE")
    corpus = load_corpus(args.data, plan.corpus)
    network_config = replace(network_config, vocab_size=corpus.tokenizer.get_vocab_size())
    torch.manual_seed(config.seed)
    network = HybridTransformer(network_config)
    if args.init is not None:
        start = specmask.load(args.init)
        if start.tokenizer is None or start.tokenizer.to_str() != corpus.tokenizer.to_str():
            raise UserError(f"--init {args.init} reads other symbols than the text of this run has")
        _start_from(network, start, args.fresh_head)
    length = network_config.length
    folder = train(
        network,
        Batches(corpus.train, length, config.batch_size, config.seed),
        config,
        args.out,
        tokenizer=corpus.tokenizer,
        validation=windows(corpus.validation, length, config.eval_rows),
        resume=args.resume,
        console=console,
    )
    console.print(
        f"model saved in {folder}: specmask sample {folder}", markup=False, soft_wrap=True
    )


def _start_from(network: HybridTransformer, model: specmask.Model, fresh_head: bool) -> None:
    """Copy a model's weights, or its trunk's, into a network of the same shape.

    The length may differ: no weight depends on it, and short rows are a good first stage.
    """
    other, length = model.network, network.config.length
    if not isinstance(other, HybridTransformer) or (
        replace(other.config, length=length) != network.config
    ):
        raise UserError(
            f"--init {model.name} has another shape ({getattr(other, 'config', type(other))}) than "
            f"this training ({network.config}): pass the same sizes"
        )
    part = "trunk" if fresh_head else ""
    network.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
    if fresh_head:  # so that the target begins as the draft
        network.head.norm.load_state_dict(other.trunk.norm.state_dict())


def run_sample(args: Sample) -> None:
    """`specmask sample`."""
    sampler = build_sampler(args.sampler, args.settings)
    _check_out(args.out, args.overwrite)
    _check_device(args.device)
    model = specmask.load(args.model, args.device)
    if args.first_row < 0:
        raise UserError(f"--first-row {args.first_row}: expected at least 0")
    if args.num < 1 or args.batch_size < 1:
        raise UserError(f"--num {args.num} --batch-size {args.batch_size}: expected at least 1")
    canvas = None if args.canvas is None else _parse_canvas(model, args)
    lines = _sample_rows(model, sampler, args, canvas)
    if args.out is None:
        for line in lines:
            print(line["text"])
            console.print(
                f"  NFE {line['nfe']:.1f}, {line['trunk_passes']} trunk and "
                f"{line['verify_passes']} verify passes, {line['seconds']:.2f} s",
                style="dim",
            )
        return
    first = next(lines)  # so that whatever a sampler refuses is refused before --out is touched
    with args.out.open("w") as file:
        for line in itertools.chain([first], lines):
            file.write(json_line(line))
            file.flush()
    console.print(f"{args.num} samples in {args.out}", markup=False, soft_wrap=True)


def _sample_rows(
    model: specmask.Model, sampler: Any, args: Sample, canvas: torch.Tensor | None
) -> Iterator[dict[str, Any]]:
    """One JSON-able object per sample, in order, as batches finish."""
    record = {
        "model": args.model,
        "sampler": args.sampler,
        "settings": settings_of(sampler),
        "seed": args.seed,
        "device": args.device,
        "versions": versions(),
    }
    with _progress() as progress:
        task = progress.add_task("sampling", total=args.num)
        for start in range(0, args.num, args.batch_size):
            count = min(args.batch_size, args.num - start)
            rows = range(args.first_row + start, args.first_row + start + count)
            what: dict[str, Any] = {"num": count, "length": args.length}
            if canvas is not None:
                what = {"canvas": canvas.expand(count, -1)}
            out = specmask.sample(
                model,
                sampler,
                seed=args.seed,
                batch_size=args.batch_size,
                rows=rows,
                on_frame=lambda frame: progress.advance(task, int(frame.finished.sum())),
                **what,
            )
            for k, row in enumerate(rows):
                yield {
                    "row": row,
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


def _parse_canvas(model: specmask.Model, args: Sample) -> torch.Tensor:
    """(1, L) tokens from text in which `--mask` marks the free positions."""
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer, so --canvas cannot be read")
    if args.length is not None:
        raise UserError("--length and --canvas together: the canvas has its own length")
    if len(args.mask) != 1:
        raise UserError(f"--mask {args.mask!r}: expected one symbol")
    text = args.canvas or ""
    if len(text) > model.network.length:
        raise UserError(
            f"--canvas has {len(text)} symbols, the model takes at most {model.network.length}"
        )
    if args.mask not in text:
        raise UserError(f"--canvas holds no {args.mask!r}: nothing to fill in")
    given = [k for k, symbol in enumerate(text) if symbol != args.mask]
    tokens = torch.full((1, len(text)), model.network.mask_id)
    # Masks become some symbol, so that an error's offset is that in the canvas as it was typed.
    some = model.tokenizer.decode([0], skip_special_tokens=False)
    known = encode(model.tokenizer, text.replace(args.mask, some), "--canvas")
    tokens[0, given] = torch.as_tensor(known.astype("int64"))[given]
    return tokens


def run_score(args: Score) -> None:
    """`specmask score`."""
    sampler = build_sampler(args.sampler, args.settings)
    sampler.law()
    _check_out(args.out, args.overwrite)
    _check_device(args.device)
    if min(args.orders, args.rows, args.batch_size) < 1:
        raise UserError(
            f"--rows {args.rows} --orders {args.orders} --batch-size {args.batch_size}: expected "
            "at least 1 of each"
        )
    if not 0 <= args.seed < 1 << 64:
        raise UserError(f"--seed {args.seed}: expected 0 <= seed < 2**64")
    model = specmask.load(args.model, args.device)
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer, so it cannot read {args.file}")
    length = model.network.length if args.length is None else args.length
    if not 1 <= length <= model.network.length:
        raise UserError(f"--length {length}: the model takes 1 to {model.network.length}")
    ids = encode(model.tokenizer, read_text(args.file).rstrip("\n"), str(args.file))
    tokens = windows(ids, length, args.rows)
    lines = _score_rows(model, sampler, args, tokens)
    if args.out is not None:
        args.out.write_text("".join(map(json_line, lines)))
    bits = torch.tensor([line["bits_per_character"] for line in lines], dtype=torch.float64)
    nfe = torch.tensor([line["expected_nfe"] for line in lines], dtype=torch.float64)
    error = f" ± {bits.std() / math.sqrt(len(bits)):.4f}" if len(bits) > 1 else ""
    print(
        f"{bits.mean():.4f}{error} bits per character, {nfe.mean():.2f} NFE expected "
        f"({len(tokens)} rows of {length}, {args.orders} orders each, {args.sampler})"
    )


def _score_rows(
    model: specmask.Model, sampler: Any, args: Score, tokens: torch.Tensor
) -> list[dict[str, Any]]:
    network, lines = model.network, []
    layers = network.trunk_layers + network.head_layers
    with _progress() as progress:
        task = progress.add_task("scoring", total=len(tokens) * args.orders)
        for number in range(args.orders):
            orders = specmask.random_orders(tokens, args.seed, number)
            if getattr(sampler, "order", "random") == "left-to-right":
                orders = torch.arange(tokens.shape[1]).expand_as(tokens)
            for row in range(len(tokens)):
                one = slice(row, row + 1)
                result = specmask.evaluate(
                    model, tokens[one], orders[one], sampler, batch_size=args.batch_size
                )
                trunk, verify = result.trunk.item(), result.verify.item()
                lines.append(
                    {
                        "row": row,
                        "order": number,
                        "log_prob": result.log_prob.item(),
                        "bits_per_character": -result.log_prob.item()
                        / math.log(2)
                        / tokens.shape[1],
                        "expected_trunk_passes": trunk,
                        "expected_verify_passes": verify,
                        "expected_nfe": (
                            network.trunk_layers * trunk + network.head_layers * verify
                        )
                        / layers,
                        "model": args.model,
                        "sampler": args.sampler,
                        "settings": settings_of(sampler),
                        "seed": args.seed,
                        "versions": versions(),
                    }
                )
                progress.advance(task)
    return lines


# ---------------------------------------------------------------------------------------- parts


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _check_out(path: Path | None, overwrite: bool) -> None:
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: expected a file")
    if path.exists() and not overwrite:
        raise UserError(f"--out {path} exists: choose another file or pass --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None


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


if __name__ == "__main__":
    sys.exit(main())
