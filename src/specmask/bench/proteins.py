"""Quality against cost on protein models: exact laws of held-out rows, and judged samples.

    python -m specmask.bench.proteins OUT --pretrained FOLDER --models adapted=RUN/model ... \
        --data held-out.fasta

writes results.jsonl, quality.png and table.md. NFE counts passes of the pretrained model: layers
run ÷ its layers, so that models with other numbers of new layers share one axis.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import specmask
from specmask.bench.plot import protein_figure
from specmask.bench.protein_report import HELD_OUT, KEY, UNTOUCHED, newest, report, with_structures
from specmask.bench.recombination import RecombinationLaw
from specmask.bench.run import (
    Point,
    describe,
    estimate,
    json_line,
    law_points,
    read_points,
    write_points,
)
from specmask.checks import optional_package
from specmask.data.fasta import read_fasta
from specmask.data.sequences import residue_encoder
from specmask.errors import UserError, exit_code
from specmask.masking import CosineWindow, FullWindow, Window
from specmask.metrics.perplexity import generative_perplexity
from specmask.metrics.proteins import composition, composition_divergence, unique_fraction
from specmask.models.checkpoint import Model
from specmask.models.hybrid import DraftNetwork
from specmask.models.pretrained import from_pretrained_trunk
from specmask.models.vocabulary import read_vocabulary
from specmask.samplers import Ancestral, AnyOrder, Sampler, Speculative
from specmask.training.loop import versions
from specmask.training.loss import draw_masks, loss_terms

console = Console(stderr=True)


@dataclass(frozen=True)
class Proteins:
    """Measure samplers on a pretrained protein model and on models adapted from it."""

    out: tyro.conf.Positional[Path]
    """Folder for results.jsonl, quality.png and table.md; what is measured already is kept."""
    pretrained: str = ""
    """Name or folder of the masked language model, measured as it is."""
    tokenizer: str | None = None
    """Its tokenizer, or vocab.txt, if it has none."""
    models: tuple[str, ...] = ()
    """name=FOLDER of each adapted model."""
    data: Path = Path("held-out.fasta")
    """Held-out sequences: scored by the exact laws, and the lengths of the samples."""
    chain: str | None = None
    """The data's exact recombination law, e.g. human_B_heavy (needs olga)."""
    judge: Path | None = None
    """Folder of a causal language model of Transformers."""
    judge_tokenizer: Path | None = None
    """Its vocab.txt."""
    prompt: str = ""
    """What the judge reads before each sequence, e.g. [HEAVY][HUMAN]."""
    rows: int = 24
    """Held-out sequences of one length for the exact laws; 0 for none."""
    loss_rows: int = 512
    """Held-out sequences for the two terms of the training loss, each at one random mask."""
    samples: int = 64
    """Samples at each setting; 0 for none. Settings that have fewer are drawn again."""
    bf16: bool = False
    """Sample with bfloat16 matrix products; the exact laws stay float32."""
    targets: tuple[float, ...] = (3, 5, 8, 14, 24)
    """NFE near which settings are sampled."""
    batch_size: int = 32
    """Rows in one pass."""
    seed: int = 0
    """Of samples and orders."""
    fold: int = 0
    """Samples at each setting, and held-out sequences, whose structure IgFold predicts (needs
    igfold; about 2 s each); settings with fewer are folded again."""
    report_only: bool = False
    """Draw figure and table again from the results that are there."""


PLAIN = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96)


def grid() -> list[Sampler]:
    """Self-speculative settings: windows × rounds."""
    steps = (0.005, 0.01, 0.02, 0.04, 0.06, 0.083, 0.12, 0.17, 0.25, 0.4)
    windows: list[Window] = [*(CosineWindow(step) for step in steps), FullWindow()]
    return [Speculative(window=w, rounds=n) for w in windows for n in (1, 2, 3, 4, 8, 16)]


def plain(steps: Sequence[int]) -> list[Sampler]:
    """Plain ancestral sampling at fixed counts, its steadier form."""
    return [Ancestral(steps=n, counts="fixed") for n in steps]


# ------------------------------------------------------------------------------------- measuring


def measure(args: Proteins) -> None:
    """Add to results.jsonl what is not there yet, a model at a time."""
    file = args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    known = read_points(file) if file.exists() else []
    sequences = [record.sequence for record in read_fasta(args.data)]
    law = None if args.chain is None else RecombinationLaw(args.chain)
    judge = _judge(args)
    for name, model in _models(args):
        mine = [point for point in known if point["model"] == name]
        with file.open("a", encoding="utf-8") as out:
            if args.rows and not any(point["kind"] == "law" for point in mine):
                found = _laws(model, name, sequences, law, args)
                out.writelines(map(json_line, found))
                out.flush()
                mine += found
            if layers(model)[2] and not any(point["kind"] == "loss" for point in mine):
                out.write(json_line(_loss(model, name, sequences, args)))
                out.flush()
            for sampler in _sampled(model, mine, args):
                about = {"model": name, **describe(sampler, args.seed)}
                if any(_drawn(p, about, args) for p in mine):
                    continue
                point = {**about, **_sample(model, sampler, sequences, law, judge, args)}
                out.write(json_line(point))
                out.flush()
                console.print(_line(point), soft_wrap=True, highlight=False)
    write_points(file, newest(read_points(file)))


def _drawn(point: Point, about: Point, args: Proteins) -> bool:
    """Whether the point is of as many samples as are asked for, or more, in their precision."""
    return (
        point["kind"] == "samples"
        and about.items() <= point.items()
        and point["num"] >= args.samples
        and point.get("bf16", False) == args.bf16
    )


def fold(args: Proteins) -> None:
    """Add what IgFold says of the samples, and of as many held-out sequences."""
    file = args.out / "results.jsonl"
    points = read_points(file)
    held_out = [record.sequence for record in islice(read_fasta(args.data), args.fold)]
    drawn: list[tuple[Point, list[str]]] = [({"model": HELD_OUT, "seed": None}, held_out)]
    for p in points:
        if p["kind"] == "samples":
            drawn.append(({key: p[key] for key in KEY}, p["sequences"][: args.fold]))
    known = [p for p in points if p["kind"] == "structure"]
    todo = [
        (about, sequences)
        for about, sequences in drawn
        if not any(about.items() <= p.items() and p["num"] >= len(sequences) for p in known)
    ]
    if not todo:
        return
    predict = rmsd_predictor()
    with Progress(console=console) as bar, file.open("a", encoding="utf-8") as out:
        for about, sequences in bar.track(todo, description="folding"):
            each = predict(sequences)
            point = {"kind": "structure", **about, "versions": versions(), "num": len(each)}
            out.write(json_line({**point, **_estimates("rmsd", each), "each": {"rmsd": each}}))
            out.flush()
    write_points(file, newest(read_points(file)))


def rmsd_predictor() -> Callable[[Sequence[str]], list[float]]:
    """IgFold's prediction of its own error on heavy chains, Å: the mean over residues.

    One network of its ensemble of four: the ensemble takes the surest answer of the four, at four
    times the cost. Ruffolo et al., *Nature Communications* 14, 2023.
    """
    library = optional_package("igfold", "predicting structures needs", extra=None)
    runner = library.IgFoldRunner(num_models=1, verbose=False)

    def predict(sequences: Sequence[str]) -> list[float]:
        folded = runner.predict([{"H": sequence} for sequence in sequences])
        # (1, residues, 4 atoms of the backbone)
        return [float(fold.prmsd.square().mean(dim=-1).sqrt().mean()) for fold in folded]

    return predict


def _models(args: Proteins) -> list[tuple[str, Model]]:
    """Every model, loaded before anything is measured."""
    found = [
        (UNTOUCHED, from_pretrained_trunk(args.pretrained, tokenizer=args.tokenizer, head_layers=0))
    ]
    for entry in args.models:
        name, equals, folder = entry.partition("=")
        if not equals or not name or name in dict(found):
            raise UserError(f"--models {entry}: expected name=FOLDER, each name once")
        found.append((name, specmask.load(folder, trunk=args.pretrained)))
    return found


def layers(model: Model) -> tuple[int, int, int]:
    """Layers of the pretrained model, of the draft and of the head."""
    network = model.network
    assert isinstance(network, DraftNetwork)
    new = getattr(network.config, "draft_layers", 0)
    return network.trunk_layers - new, network.trunk_layers, network.head_layers


def _loss(model: Model, name: str, sequences: Sequence[str], args: Proteins) -> Point:
    """Both terms of the training loss on held-out rows, and how far the target is below."""
    network = model.network
    assert isinstance(network, DraftNetwork)
    found = []
    for number, sequence in enumerate(sequences[: args.loss_rows]):
        tokens = _ids(model, [sequence])
        order, revealed = draw_masks(
            args.seed, number, torch.tensor([len(sequence)]), len(sequence)
        )
        with torch.no_grad():
            terms = loss_terms(network, tokens, order, revealed)
        found.append((float(terms.draft_nll), float(terms.target_nll)))
    draft, target = map(list, zip(*found, strict=True))
    return {
        "kind": "loss",
        "model": name,
        "rows": len(found),
        "seed": args.seed,
        "versions": versions(),
        **_estimates("draft", draft),
        **_estimates("target", target),
        **_estimates("margin", [a - b for a, b in found]),
    }


def _laws(
    model: Model, name: str, sequences: Sequence[str], law: RecombinationLaw | None, args: Proteins
) -> list[Point]:
    rows = rows_of_one_length(sequences, args.rows)
    tokens = _ids(model, rows)
    samplers = [*plain(PLAIN), AnyOrder()]
    pretrained, draft, head = layers(model)
    if head:
        samplers += grid()
    with Progress(console=console) as bar:
        task = bar.add_task(f"laws of {name}")
        points = law_points(
            *(model, tokens, samplers, args.seed),
            batch_size=args.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    floor = [] if law is None else [-law.log_prob(row) / len(row) for row in rows]
    unit = (draft + head) / pretrained
    for point in points:
        each = point.pop("each")
        nats = [bits * math.log(2) for bits in each["bits"]]
        nfe = [value * unit for value in each["nfe"]]
        point.pop("bits"), point.pop("bits_se"), point.pop("nfe_se")
        point |= {"model": name, "length": tokens.shape[1], "nfe": _mean(nfe)}
        point |= _estimates("nats", nats) | {"each": {"nats": nats, "nfe": nfe}}
        if floor:
            excess = [a - b for a, b in zip(nats, floor, strict=True)]
            point |= _estimates("excess", excess)
            point["each"]["excess"] = excess
    return points


def rows_of_one_length(sequences: Sequence[str], count: int) -> list[str]:
    """The first sequences of the commonest length."""
    length, found = Counter(map(len, sequences)).most_common(1)[0]
    if found < count:
        raise UserError(
            f"the commonest length, {length}, has {found} sequences: expected {count} for the "
            "exact laws; lower --rows or give more data"
        )
    return list(islice((s for s in sequences if len(s) == length), count))


def _ids(model: Model, sequences: Sequence[str]) -> Tensor:
    assert model.tokenizer is not None
    return torch.tensor(
        [model.tokenizer.encode(s, add_special_tokens=False).ids for s in sequences]
    )


def _sampled(model: Model, known: Sequence[Point], args: Proteins) -> list[Sampler]:
    """Settings to draw from: plain at the targets' cost, ours of the fewest nats within 15 %."""
    if not args.samples:
        return []
    pretrained, draft, head = layers(model)
    steps = dict.fromkeys(round(target * pretrained / draft) for target in args.targets)
    chosen = plain([*steps])
    laws = {json.dumps(p["settings"]): p for p in known if p["kind"] == "law"}
    ours = [(s, laws.get(json.dumps(describe(s, 0)["settings"]))) for s in grid() if head]
    scored = [(s, p) for s, p in ours if p is not None]
    for target in args.targets:
        near = [(s, p) for s, p in scored if abs(math.log(p["nfe"] / target)) < 0.15]
        if near:
            best = min(near, key=lambda pair: pair[1]["nats"])[0]
            if best not in chosen:
                chosen.append(best)
    return chosen


def _sample(
    model: Model,
    sampler: Sampler,
    sequences: Sequence[str],
    law: RecombinationLaw | None,
    judge: tuple[Any, Any] | None,
    args: Proteins,
) -> Point:
    network = model.network
    lengths = [len(s) for s in sequences[: args.samples]]
    canvas = torch.full((args.samples, max(lengths)), network.mask_id)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
        out = specmask.sample(
            *(model, sampler),
            canvas=canvas,
            lengths=lengths,
            seed=args.seed,
            batch_size=args.batch_size,
        )
    assert out.text is not None
    pretrained, draft, head = layers(model)
    nfe = ((draft * out.trunk_passes + head * out.verify_passes) / pretrained).tolist()
    unique = unique_fraction(out.text)
    far = composition_divergence(out.text, composition(sequences).tolist())
    point: Point = {
        "kind": "samples",
        "num": args.samples,
        "bf16": args.bf16,
        **_estimates("nfe", nfe),
        "seconds_per_sample": out.wall_seconds / args.samples,
        "unique": unique.mean,
        "unique_se": unique.standard_error,
        "composition": far.mean,
        "composition_se": far.standard_error,
        "each": {"nfe": nfe},
        "sequences": out.text,
    }
    if judge is not None:
        encode = residue_encoder()
        rows = [encode(text).tolist() for text in out.text]
        report = generative_perplexity(out.text, rows, *judge, prompt=args.prompt)
        point |= _estimates("judge", report.texts_nll)
        point["each"]["judge"] = list(report.texts_nll)
    if law is not None:
        logs = [law.log_prob(text) for text in out.text]
        possible = [
            -value / len(t) for value, t in zip(logs, out.text, strict=True) if value > -math.inf
        ]
        point |= _estimates("possible", [float(value > -math.inf) for value in logs])
        point |= _estimates("law", possible)
        point |= _estimates("substitutions", [float(law.substitutions(t)) for t in out.text])
    return point


def _judge(args: Proteins) -> tuple[Any, Any] | None:
    if args.judge is None:
        return None
    library = optional_package("transformers", "a judge needs")
    vocabulary = read_vocabulary(
        str(args.judge), args.judge_tokenizer, revision=None, trust_remote_code=False
    )
    return library.AutoModelForCausalLM.from_pretrained(args.judge).eval(), vocabulary.tokenizer


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _estimates(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its standard error under their names; NaN where there is nothing."""
    if not values:
        return {name: math.nan, f"{name}_se": math.nan}
    mean, error = estimate(torch.tensor(values, dtype=torch.float64))
    return {name: mean, f"{name}_se": error}


def _line(point: Point) -> str:
    told = ("nfe", "judge", "substitutions", "unique", "seconds_per_sample")
    return f"{point['model']} {point['sampler']} " + " ".join(
        f"{key} {point[key]:.3f}" for key in told if key in point
    )


def main(args: Proteins) -> None:
    """`python -m specmask.bench.proteins`."""
    if not args.report_only:
        measure(args)
    if args.fold:
        fold(args)
    points = with_structures(read_points(args.out / "results.jsonl"))
    (args.out / "table.md").write_text(report(points), encoding="utf-8")
    protein_figure(args.out / "quality.png", points)
    console.print(f"{args.out}: results.jsonl, table.md, quality.png")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Proteins))))
