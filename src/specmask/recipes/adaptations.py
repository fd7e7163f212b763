"""Recipes for `specmask adapt`: what is put on a pretrained model, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specmask.errors import unknown
from specmask.training.config import TrainConfig


@dataclass(frozen=True)
class Adaptation:
    """New layers and their training.

    draft_layers: bidirectional blocks before the prediction head; 0 leaves the draft as it is.
    head_layers: causal blocks.
    """

    name: str
    train: TrainConfig
    draft_layers: int
    head_layers: int


def antibody() -> Adaptation:
    """One new block for the draft and one for the target, 7.7 M parameters on AntiBERTy; also what
    any model gets that no recipe is named for.

    Command: specmask adapt AntiBERTy_md_smooth --tokenizer vocab.txt --data heavy.fasta --out DIR,
    with heavy.fasta from python -m specmask.bench.recombination --num 120000 --seed 7 --out
    heavy.fasta.
    Time: under half an hour on two CPU cores, for 22,400 rows of about 122 residues.
    Reaches: docs/proteins.md. With `--revealed uniform` the same run leaves the target where the
    draft is: one row in fourteen reveals eight residues or fewer, and there lies what a head has
    to learn.
    """
    return Adaptation(
        "antibody",
        TrainConfig(
            steps=1400,
            batch_size=16,
            optimizer="muon",
            lr=2e-3,
            muon_lr=0.02,
            weight_decay=0.01,
            warmup=50,
            final_lr=0.05,
            ema=0.99,
            precision="bf16",
            revealed="log",
            frozen_trunk=True,
            eval_every=200,
            eval_rows=128,
            save_every=0,
            save_every_seconds=120,
        ),
        draft_layers=1,
        head_layers=1,
    )


def uniref50() -> Adaptation:
    """The paper's protein model: a frozen 30-layer ESM2 of 150 M parameters and one causal block.

    Command: specmask adapt facebook/esm2_t30_150M_UR50D --recipe uniref50 --data uniref50.fasta.gz
    --unknown drop --crop --out DIR
    Then: pLDDT against NFE of 512 samples, by specmask.metrics.fold_confidence.
    Time: not run here; meant for one large GPU. The network is the paper's; the optimiser's
    settings are ours.
    """
    return Adaptation(
        "uniref50",
        TrainConfig(
            steps=100_000,
            batch_size=256,
            accumulation=4,
            lr=3e-4,
            warmup=2000,
            final_lr=0.1,
            weight_decay=0.01,
            ema=0.9999,
            precision="bf16",
            frozen_trunk=True,
        ),
        draft_layers=0,
        head_layers=1,
    )


ADAPTATIONS: dict[str, Callable[[], Adaptation]] = {"antibody": antibody, "uniref50": uniref50}


def adaptation(name: str) -> Adaptation:
    """A recipe by name. Raises UserError, with the nearest name, for one that is not there."""
    if name not in ADAPTATIONS:
        raise unknown("recipe", name, ADAPTATIONS)
    return ADAPTATIONS[name]()
