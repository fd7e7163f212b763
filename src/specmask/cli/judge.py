"""`specmask judge`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from specmask.bench.run import json_line
from specmask.checks import check_device
from specmask.cli.options import check_least, check_out
from specmask.cli.output import progress_bar, rows_file
from specmask.data.files import read_text
from specmask.errors import UserError
from specmask.metrics import Estimate
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.perplexity import generative_perplexity, load_judge
from specmask.training.loop import versions


@dataclass(frozen=True)
class Judge:
    """Generative perplexity of samples under another language model, and their entropy."""

    judge: tyro.conf.Positional[str]
    """Causal language model of Transformers: a folder, or a name on the Hub (gpt2-large)."""
    file: tyro.conf.Positional[Path]
    """Samples, as `specmask sample --out` writes them: JSON lines with text and tokens."""
    gguf_file: str | None = None
    """The weights' file in the judge's folder, if they are GGUF."""
    prompt: str = ""
    """What the judge reads before each sample and does not score."""
    context: int | None = None
    """Tokens the judge sees at a time; default as many as it can."""
    stride: int | None = None
    """Tokens between the windows of a sample longer than that; default half the context."""
    batch_size: int = 8
    """Windows in one pass."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """JSONL file for the scores of each sample."""
    overwrite: bool = False
    """Replace an existing --out, at the end: a run that is interrupted leaves it as it was."""


def run_judge(args: Judge) -> None:
    """`specmask judge`."""
    check_out(args.out, args.overwrite)
    check_device(args.device)
    check_least(1, batch_size=args.batch_size)
    texts, tokens = _read_samples(args.file)
    judge = load_judge(args.judge, args.gguf_file, args.device)
    with progress_bar() as bar:
        task = bar.add_task("judging", total=None)
        report = generative_perplexity(
            texts,
            tokens,
            judge,
            prompt=args.prompt,
            batch_size=args.batch_size,
            context=args.context,
            stride=args.stride,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.out is not None:
        record = {"judge": args.judge, "samples": str(args.file), "versions": versions()}
        scores = zip(report.texts_nll, report.texts_tokens, tokens, strict=True)
        with rows_file(args.out) as file:
            for number, (nll, count, row) in enumerate(scores):
                line = {"row": number, "nll": nll, "judge_tokens": count}
                entropy = unigram_entropy([row]).mean
                file.write(json_line({**line, "entropy": entropy, **record}))
    print(
        f"perplexity {_shown(report.perplexity, 2)} under {args.judge}, "
        f"unigram entropy {_shown(report.entropy, 3)} nats "
        f"({len(texts)} samples, {sum(report.texts_tokens)} tokens of the judge)"
    )


def _read_samples(path: Path) -> tuple[list[str], list[list[int]]]:
    """The texts of samples and their own tokens."""
    texts, tokens = [], []
    for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
        try:
            row: Any = json.loads(line)
            text, ids = row["text"], row["tokens"]
        except (ValueError, KeyError, TypeError):
            text, ids = None, None
        whole = isinstance(ids, list) and all(isinstance(one, int) for one in ids)
        if not isinstance(text, str) or not whole:
            raise UserError(
                f"{path}, line {number}: expected a JSON object with text and tokens; make the "
                "file with specmask sample --out, of a model that has a tokenizer"
            )
        texts.append(text)
        tokens.append(ids)
    return texts, tokens


def _shown(figure: Estimate, digits: int) -> str:
    error = f" ± {figure.standard_error:.{digits}f}" if figure.count > 1 else ""
    return f"{figure.mean:.{digits}f}{error}"
