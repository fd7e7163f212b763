"""The demo: plain masked diffusion and self-speculation side by side, for the same money."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

import specmask
from specmask.errors import UserError
from specmask.masking import parse_window
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.spelling import load_words, spelling_accuracy
from specmask.models.checkpoint import Model
from specmask.models.zoo import WORDS, ZOO, zoo_folder
from specmask.samplers import Ancestral, Frame, Sampler, Samples, Speculative
from specmask.web import replay


@dataclass(frozen=True)
class DemoArgs:
    """Generate text twice at equal cost, compare, and write a page that replays a generation."""

    model: str = "text8-small"
    """Name of a shipped model."""
    num: int = 32
    """Samples by each of the two samplers."""
    window: str = "cosine:0.3"
    """Window of the self-speculative sampler."""
    rounds: int = 3
    """Verify passes a trunk pass may make."""
    seed: int = 0
    """Names all random numbers."""
    show: int = 2
    """Samples to print."""
    device: str = "cpu"
    """cpu, cuda, mps."""
    out: Path = Path("demo.html")
    """The replay page; an existing one of this name is replaced."""


def demo(args: DemoArgs) -> None:
    """`specmask demo`. The plain sampler gets the steps that the other's passes would pay for."""
    console = Console()
    if args.num < 1 or args.show < 0:
        raise UserError(f"--num {args.num} --show {args.show}: expected at least 1 and 0")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: expected a file name in a folder that exists")
    window = parse_window(args.window)
    speculative = Speculative(window=window, rounds=args.rounds)
    whole = [name for name, entry in ZOO.items() if entry.trunk is None]
    if args.model not in whole:
        raise UserError(f"no shipped model {args.model!r}: expected one of {', '.join(whole)}")
    model = specmask.load(args.model, args.device)
    words = load_words(zoo_folder(args.model) / WORDS)
    network = model.network
    console.print(
        f"[bold]{args.model}[/]: {network.trunk_layers} bidirectional layers draft, "
        f"{network.head_layers} causal layer verifies; rows of {network.length} characters.\n",
        soft_wrap=True,
    )
    ours, ours_frames = _generate(console, "self-speculation", model, speculative, args)
    cost = float(ours.nfe.mean())
    # A plain step runs the trunk alone, L_nc/(L_nc + L_c) of a pass (method.md §5).
    share = network.trunk_layers / (network.trunk_layers + network.head_layers)
    plain = Ancestral(steps=max(1, round(cost / share)))
    theirs, plain_frames = _generate(console, "plain masked diffusion", model, plain, args)

    table = Table(title=f"{args.num} samples each, at equal cost")
    for column in ("", "spelling accuracy", "entropy (nats)", "NFE", "seconds a sample"):
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, out in (("plain", theirs), ("self-speculative", ours)):
        texts = out.text or []
        accuracy = spelling_accuracy(texts, words)
        entropy = unigram_entropy(out.tokens)
        table.add_row(
            name,
            f"{accuracy.mean:.3f} ± {accuracy.standard_error:.3f}",
            f"{entropy.mean:.3f} ± {entropy.standard_error:.3f}",
            f"{float(out.nfe.mean()):.1f}",
            f"{out.wall_seconds / len(out):.2f}",
        )
        for text in texts[: args.show]:
            console.print(Panel(text, title=name, title_align="left"))
    console.print(table)
    console.print(
        f"one character a pass would take {network.length} trunk passes; "
        f"spelling accuracy is the share of words that occur in the training text\n"
    )
    titles = (("Plain masked diffusion", plain_frames), ("Self-speculation", ours_frames))
    replay.write(
        args.out, [_record(model, title, frames) for title, frames in titles], overwrite=True
    )
    console.print(f"replay of one generation: [bold]{args.out}[/] (open it in a browser)")
    console.print(
        "infill:  specmask sample text8-small --num 3 "
        "--canvas 'the king of ________________ was crowned in the year ____________'\n"
        "score:   specmask score text8-small FILE\n"
        "train:   specmask train characters --data FILE --out runs/mine",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _generate(
    console: Console, name: str, model: Model, sampler: Sampler, args: DemoArgs
) -> tuple[Samples, list[Frame]]:
    """Samples, and the frames of the first row."""
    frames: list[Frame] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=args.num * model.network.length)

        def on_frame(frame: Frame) -> None:
            progress.advance(task, int(frame.info.revealed.sum()))
            if int(frame.rows[0]) == 0:
                frames.append(frame)

        out = specmask.sample(
            model, sampler, num=args.num, seed=args.seed, batch_size=32, on_frame=on_frame
        )
    return out, frames


def _record(model: Model, title: str, frames: list[Frame]) -> replay.Replay:
    decode: Callable[[list[int]], str] = model.tokenizer.decode  # type: ignore[union-attr]
    symbols = [decode([k]) for k in range(model.network.vocab_size)]
    return replay.record(frames, symbols, model.network.mask_id, title)
