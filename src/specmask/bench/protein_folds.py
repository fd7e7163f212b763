"""Structures that IgFold predicts of sampled antibody chains, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from specmask.bench.protein_report import HELD_OUT, KEY, newest
from specmask.bench.run import Point, estimates, json_line, read_points
from specmask.checks import optional_package
from specmask.training.loop import versions


def fold(file: Path, held_out: Sequence[str], count: int, console: Console) -> None:
    """Add to a results file what IgFold says of `count` samples a setting, and of held-out chains.

    What is folded already, of as many samples, is kept.
    """
    points = newest(read_points(file))
    drawn: list[tuple[Point, Sequence[str]]] = [({"model": HELD_OUT, "seed": None}, held_out)]
    for p in points:
        if p["kind"] == "samples":
            drawn.append(({key: p[key] for key in KEY}, p["sequences"][:count]))
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
            out.write(json_line({**point, **estimates("rmsd", each), "each": {"rmsd": each}}))
            out.flush()


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
