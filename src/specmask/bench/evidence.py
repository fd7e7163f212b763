"""The committed results files that the evidence page is made from, and where its figures go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import specmask
from specmask.bench.card import Equal, equals, plain_factors
from specmask.bench.compare import Factor
from specmask.bench.run import Point, fingerprint, read_points

ZOO = Path("src/specmask/zoo/text8-small")
CARD = "../src/specmask/zoo/text8-small/README.md"
PAGE, FIGURES, README = Path("docs/results.md"), Path("docs/results"), Path("README.md")
CHOOSER = Path("docs/chooser/results.jsonl")
SETTINGS = Path("docs/results/settings.jsonl")
REPEATED = Path("docs/results/repeated.jsonl")
EXPERIMENTS = Path("docs/experiments/results.jsonl")
PROSE = Path("docs/prose")


@dataclass
class Evidence:
    """The results files of a checkout, and where figures go.

    draw: False names the figures and leaves them as they are.
    """

    root: Path
    draw: bool = True
    _read: dict[Path, list[Point]] = field(default_factory=dict)

    @cached_property
    def equals(self) -> list[Equal]:
        """Plain cost over ours on the shipped character model, wherever the curves overlap."""
        return equals(self.points(ZOO / "results.jsonl"))

    @cached_property
    def plain_factors(self) -> dict[str, dict[float, Factor]]:
        """Kind of plain sampling → our NFE → plain cost over ours at equal exact bits."""
        return plain_factors(self.points(CHOOSER))

    def points(self, path: Path) -> list[Point]:
        """The points of a file; none where there is no such file."""
        if path not in self._read:
            there = (self.root / path).is_file()
            self._read[path] = read_points(self.root / path) if there else []
        return self._read[path]

    def figure(self, name: str, about: str, draw: Callable[[Path], None]) -> str:
        """Draw docs/results/`name`.png, and the Markdown that shows it."""
        if self.draw:
            (self.root / FIGURES).mkdir(parents=True, exist_ok=True)
            draw(self.root / FIGURES / f"{name}.png")
        return f"![{about}]({FIGURES.name}/{name}.png)"

    def layers(self) -> tuple[int, int]:
        """Of trunk and head of the shipped character model, from its training log."""
        network = [row["network"] for row in self.points(ZOO / "log.jsonl") if "network" in row][-1]
        return network["trunk_layers"], network["head_layers"]

    def share(self) -> float:
        """What a pass of its trunk counts, in passes of the whole network."""
        trunk, head = self.layers()
        return trunk / (trunk + head)

    def weights(self, run: Point) -> str:
        """On which weights a run was made, and whether those are the shipped model's."""
        shipped = fingerprint(specmask.load(self.root / ZOO).network)
        if run["weights"] == shipped:
            return f"the shipped model (weights {shipped[:8]})"
        return (
            f"an earlier model (weights {run['weights'][:8]}; those that are shipped now are "
            f"{shipped[:8]})"
        )


def machine(run: Point) -> str:
    """In words."""
    found = run["machine"]
    count = found["threads"]
    return f"{found['system']} {found['device']}, {count} thread{'' if count == 1 else 's'}"
