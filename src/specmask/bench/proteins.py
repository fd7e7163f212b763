"""Quality against cost on protein models: exact laws of held-out rows, and judged samples.

    python -m specmask.bench.proteins OUT --pretrained FOLDER --models adapted=RUN/model ... \
        --data held-out.fasta

writes results.jsonl, quality.png and table.md. NFE counts passes of the pretrained model: layers
run ÷ its layers, so that models with other numbers of new layers share one axis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
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
from specmask.bench.protein_folds import fold
from specmask.bench.protein_report import (
    HELD_OUT,
    UNTOUCHED,
    key_of,
    newest,
    report,
    with_structures,
)
from specmask.bench.recombination import RecombinationLaw
from specmask.bench.run import (
    Point,
    describe,
    estimates,
    json_line,
    law_points,
    read_points,
    write_points,
)
from specmask.checks import optional_package, whole
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


NEAR = 0.15
"""How far the cost of a setting may be from a target, in its logarithm."""
PLAIN = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96)


def grid() -> list[Sampler]:
    """Self-speculative settings: windows × rounds."""
    steps = (0.005, 0.01, 0.02, 0.04, 0.06, 0.083, 0.12, 0.17, 0.25, 0.4)
    windows: list[Window] = [*(CosineWindow(step) for step in steps), FullWindow()]
    return [Speculative(window=w, rounds=n) for w in windows for n in (1, 2, 3, 4, 8, 16)]


def plain(steps: Sequence[int]) -> list[Sampler]:
    """Plain ancestral sampling at fixed counts, its steadier form, by either schedule."""
    return [Ancestral(n, "fixed", schedule) for n in steps for schedule in ("cosine", "linear")]


# ------------------------------------------------------------------------------------- measuring


def measure(args: Proteins) -> None:
    """Add to results.jsonl what is not there yet, a model at a time."""
    file = args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    known = read_points(file) if file.exists() else []
    sequences = [record.sequence for record in read_fasta(args.data)]
    law = None if args.chain is None else RecombinationLaw(args.chain)
    judge, models = _judge(args), _models(args)
    if args.rows:
        rows_of_one_length(sequences, args.rows)  # refused before the work
    if args.samples > len(sequences):
        raise UserError(
            f"--samples {args.samples}: {args.data} has {len(sequences)} sequences, whose lengths "
            "the samples take; ask for as many at most"
        )
    with file.open("a", encoding="utf-8") as out:

        def add(point: Point) -> None:
            out.write(json_line(point))
            out.flush()
            known.append(point)

        if args.samples and not any(
            p["kind"] == HELD_OUT and p["num"] >= args.samples for p in known
        ):
            some = sequences[: args.samples]
            add({**_held_out(len(some)), **_judged(some, sequences, law, judge, args)})
        for name, model in models:
            mine = [point for point in known if point["model"] == name]
            there = {key_of(p) for p in mine if p["kind"] == "law"}
            asked = {
                key_of({"model": name, **describe(s, args.seed)}): s for s in _scored(model, args)
            }
            missing = [sampler for key, sampler in asked.items() if key not in there]
            if args.rows and missing:
                found = _laws(model, name, missing, sequences, law, args)
                for point in found:
                    add(point)
                mine += found
            if not any(point["kind"] == "loss" for point in mine):
                add(_loss(model, name, sequences, args))
            for sampler in _sampled(model, name, mine, args):
                about = {"model": name, **describe(sampler, args.seed)}
                if any(_drawn(p, about, args) for p in mine):
                    continue
                point = {**about, **_sample(model, sampler, sequences, law, judge, args)}
                add(point)
                console.print(_line(point), soft_wrap=True, highlight=False)


def _held_out(num: int) -> Point:
    about = {"kind": HELD_OUT, "model": HELD_OUT, "seed": None, "versions": versions()}
    return {**about, "num": num, "each": {}}


def _drawn(point: Point, about: Point, args: Proteins) -> bool:
    """Whether the point is of as many samples as are asked for, or more."""
    return (
        point["kind"] == "samples"
        and key_of(about) == key_of(point)
        and point["num"] >= args.samples
    )


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
        **estimates("draft", draft),
        **estimates("target", target),
        **estimates("margin", [a - b for a, b in found]),
    }


def _aimed(model: Model, args: Proteins) -> list[int]:
    """Plain steps that cost the targets."""
    pretrained, draft, _ = layers(model)
    return list(dict.fromkeys(round(target * pretrained / draft) for target in args.targets))


def _scored(model: Model, args: Proteins) -> list[Sampler]:
    """Every setting whose exact law is measured."""
    steps = sorted({*PLAIN, *(_aimed(model, args) if args.samples else ())})
    return [*plain(steps), AnyOrder(), *(grid() if layers(model)[2] else ())]


def _laws(
    model: Model,
    name: str,
    samplers: Sequence[Sampler],
    sequences: Sequence[str],
    law: RecombinationLaw | None,
    args: Proteins,
) -> list[Point]:
    rows = rows_of_one_length(sequences, args.rows)
    tokens = _ids(model, rows)
    pretrained, draft, head = layers(model)
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
        point |= {"model": name, "length": tokens.shape[1], "nfe": math.fsum(nfe) / len(nfe)}
        point |= estimates("nats", nats) | {"each": {"nats": nats, "nfe": nfe}}
        if floor:
            excess = [a - b for a, b in zip(nats, floor, strict=True)]
            point |= estimates("excess", excess)
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


def _sampled(model: Model, name: str, known: Sequence[Point], args: Proteins) -> list[Sampler]:
    """Settings to draw from, of the fewest nats by their exact law: at the targets' cost, plain
    sampling by the better schedule, and self-speculation within 15 %."""
    if not args.samples:
        return []
    nats = {key_of(p): p["nats"] for p in known if p["kind"] == "law"}
    costs = {key_of(p): p["nfe"] for p in known if p["kind"] == "law"}

    def key(sampler: Sampler) -> str:
        return key_of({"model": name, **describe(sampler, args.seed)})

    chosen: list[Sampler] = []
    for steps in _aimed(model, args):
        chosen.append(min(plain([steps]), key=lambda s: nats.get(key(s), math.inf)))
    for target in args.targets:
        near = [
            s for s in grid() if key(s) in nats and abs(math.log(costs[key(s)] / target)) < NEAR
        ]
        if near:
            chosen.append(min(near, key=lambda s: nats[key(s)]))
    return list({key(s): s for s in chosen}.values())


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
    judged = _judged(out.text, sequences, law, judge, args)
    return {
        "kind": "samples",
        "num": args.samples,
        "bf16": args.bf16,
        **estimates("nfe", nfe),
        "seconds_per_sample": out.wall_seconds / args.samples,
        **judged,
        "each": {"nfe": nfe, **judged["each"]},
    }


def _judged(
    texts: Sequence[str],
    sequences: Sequence[str],
    law: RecombinationLaw | None,
    judge: tuple[Any, Any] | None,
    args: Proteins,
) -> Point:
    """What chains are worth, drawn or held out; `sequences` are all that are held out."""
    unique = unique_fraction(texts)
    far = composition_divergence(texts, composition(sequences).tolist())
    point: Point = {
        "unique": unique.mean,
        "unique_se": unique.standard_error,
        "composition": far.mean,
        "composition_se": far.standard_error,
        "each": {},
        "sequences": list(texts),
    }
    if judge is not None:
        encode = residue_encoder()
        rows = [encode(text).tolist() for text in texts]
        report = generative_perplexity(texts, rows, *judge, prompt=args.prompt)
        point |= estimates("judge", report.texts_nll)
        point["each"]["judge"] = list(report.texts_nll)
    if law is not None:
        logs = [law.log_prob(text) for text in texts]
        possible = [
            -value / len(t) for value, t in zip(logs, texts, strict=True) if value > -math.inf
        ]
        point |= estimates("possible", [float(value > -math.inf) for value in logs])
        point |= estimates("law", possible)
        point |= estimates("substitutions", [float(law.substitutions(t)) for t in texts])
    return point


def _judge(args: Proteins) -> tuple[Any, Any] | None:
    if args.judge is None:
        return None
    library = optional_package("transformers", "a judge needs")
    vocabulary = read_vocabulary(
        str(args.judge), args.judge_tokenizer, revision=None, trust_remote_code=False
    )
    return library.AutoModelForCausalLM.from_pretrained(args.judge).eval(), vocabulary.tokenizer


def _line(point: Point) -> str:
    told = ("nfe", "judge", "substitutions", "unique", "seconds_per_sample")
    return f"{point['model']} {point['sampler']} " + " ".join(
        f"{key} {point[key]:.3f}" for key in told if key in point
    )


def main(args: Proteins) -> None:
    """`python -m specmask.bench.proteins`."""
    _check(args)
    file = args.out / "results.jsonl"
    if not args.report_only:
        measure(args)
    if args.fold and file.exists():
        held_out = [record.sequence for record in islice(read_fasta(args.data), args.fold)]
        fold(file, held_out, args.fold, console)
    points = newest(read_points(file)) if file.exists() else []
    if not points:
        raise UserError(f"{file} holds no results: run without --report-only first")
    write_points(file, points)
    points = with_structures(points)
    (args.out / "table.md").write_text(report(points), encoding="utf-8")
    protein_figure(args.out / "quality.png", points)
    console.print(f"{args.out}: results.jsonl, table.md, quality.png")


def _check(args: Proteins) -> None:
    """Refuse settings that nothing can be measured with."""
    for name in ("rows", "samples", "fold"):
        whole(name, getattr(args, name), 0)
    for name in ("loss_rows", "batch_size"):
        whole(name, getattr(args, name), 1)
    for target in args.targets:
        if target < 1:
            raise UserError(f"--targets has {target}: expected NFE of at least 1")


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: main(tyro.cli(Proteins))))
