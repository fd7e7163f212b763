"""Ship the head of an adapted protein model, without the pretrained model it stands on.

    python -m specmask.bench.ship_head RUN
    python -m specmask.bench.proteins docs/antibody --models adapted=antibody ...
    python -m specmask.bench.ship_head RUN --results docs/antibody

The first writes the weights, in bfloat16; the second measures them; the third writes their card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

import specmask
from specmask.bench.plot import loss_figure
from specmask.bench.protein_report import report, with_structures
from specmask.bench.run import Point, read_points, write_points
from specmask.errors import exit_code
from specmask.models.checkpoint import CARD, WEIGHTS, save
from specmask.models.hybrid import DraftNetwork
from specmask.models.zoo import ZOO, zoo_folder

NAME = "antibody"


@dataclass(frozen=True)
class ShipHead:
    """Put the model of an adapting run into the package, and write its card."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    results: Path | None = None
    """What the protein benchmark wrote about the shipped weights: then write the card alone."""


CARD_TEXT = """# antibody

Heavy chains of human antibodies: a self-speculative head for the pretrained AntiBERTy. One new
bidirectional block before its prediction head adapts the draft, one causal block verifies;
{millions:.1f} M parameters, bfloat16 ({megabytes:.1f} MB). AntiBERTy itself (8 layers, 25.8 M
parameters) stays frozen and is not part of this package.

```python
import specmask

model = specmask.load("antibody", trunk="antiberty/trained_models/AntiBERTy_md_smooth")
sampler = specmask.Speculative(window=specmask.CosineWindow(0.06), rounds=4)
print(specmask.sample(model, sampler, num=4, length=122, seed=0).text)
```

The folder is in the wheel of the package antiberty, version 0.1.3 (later ones do not hold it):
`pip download --no-deps antiberty==0.1.3`, then unpack it.

## What it is for

To show and test self-speculation on a real pretrained protein model, against a law that is known.
The chains it was adapted to are recombined germlines without hypermutation: it says nothing about
binding, and designs from it are no therapeutics.

## Data

120,000 chains of productive V(D)J recombination of human heavy chains, by the models of OLGA
1.3.0, written out to the whole variable domain: `python -m specmask.bench.recombination --num
120000 --seed 7 --out heavy.fasta`. Held out: `--num 2000 --seed 11`.

## Training

`specmask adapt AntiBERTy_md_smooth --tokenizer vocab.txt --data heavy.fasta --out DIR`, recipe
`antibody`: {steps} steps of {batch} rows, {tokens:.2f} M residues, {minutes:.0f} minutes on two CPU
cores that had other work to do. Settings and losses: log.jsonl. The thin lines are of training,
whose masks reveal few residues more often; validation is with uniform masks.

![losses](losses.png)

## Measured

NFE counts passes of the pretrained model, layers run ÷ {layers}; {samples} samples a setting; ± is
one standard error{precision}. Plain sampling is by the better of two schedules. *untouched* is
AntiBERTy as it is, *baseline* the plain baseline on the same rows (two new bidirectional blocks, no
head), *adapted* this model. Judge: IgLM, an autoregressive
antibody model. Substitutions: residues outside the CDR3 that differ from the nearest germlines;
*possible*: share of the samples that the data's law can make at all; *law*: its nats per residue
for those. Composition: Jensen-Shannon divergence from the held-out chains. Full results:
docs/antibody in the repository.

{report}
## Licence

These weights: Apache-2.0. AntiBERTy: MIT. OLGA, which made the data: GPL-3. IgLM, which judged:
academic, non-commercial. None of the three is part of this package.
"""


def ship_head(args: ShipHead) -> None:
    """The weights, or the card."""
    folder = zoo_folder(NAME)
    if args.results is None:
        model = specmask.load(args.run / "model")
        network = model.network
        assert isinstance(network, DraftNetwork)
        network.config = replace(network.config, source=ZOO[NAME].trunk)
        save(folder, network, model.tokenizer, dtype=torch.bfloat16, overwrite=True)
        log = read_points(args.run / "log.jsonl")
        log[0]["network"]["source"] = ZOO[NAME].trunk  # wherever it lay
        write_points(folder / "log.jsonl", log)
    else:
        log = read_points(folder / "log.jsonl")
        points = read_points(args.results / "results.jsonl")
        loss_figure(folder / "losses.png", log)
        (folder / CARD).write_text(card(folder, log, points), encoding="utf-8")
    Console(stderr=True).print(f"{folder} is the model of {args.run}")


def card(folder: Path, log: Sequence[Point], points: Sequence[Point]) -> str:
    """The model card, every figure from the results and the log."""
    header, last = log[0], log[-1]
    return CARD_TEXT.format(
        millions=header["trained_parameters"] / 1e6,
        megabytes=(folder / WEIGHTS).stat().st_size / 1e6,
        steps=header["config"]["steps"],
        batch=header["config"]["batch_size"],
        tokens=last["tokens"] / 1e6,
        minutes=last["seconds"] / 60,
        layers=header["network"]["pretrained_layers"],
        precision="; drawn with bfloat16 products" if _any_bf16(points) else "",
        samples=next(p["num"] for p in points if p["kind"] == "samples"),
        report=report(with_structures(points)),
    )


def _any_bf16(points: Sequence[Point]) -> bool:
    return any(p.get("bf16", False) for p in points)


if __name__ == "__main__":
    raise SystemExit(exit_code(lambda: ship_head(tyro.cli(ShipHead))))
