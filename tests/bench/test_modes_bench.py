"""Modes are told beside the plain network, on rows that it drew."""

from __future__ import annotations

from pathlib import Path

import torch

import specmask
from oracle import tiny_network
from specmask.bench.modes import Modes, main, table
from specmask.bench.run import read_points


def test_modes_are_measured(tmp_path: Path) -> None:
    specmask.save(tmp_path / "model", tiny_network(dtype=torch.float32))
    modes = ("float32", "bfloat16", "int8")
    main(Modes(str(tmp_path / "model"), tmp_path, modes, rows=3, batches=(1, 2), rounds=2))
    points = read_points(tmp_path / "modes.jsonl")
    assert [p["mode"] for p in points] == list(modes)
    kinds = ["trunk of 1", "verify of 1", "trunk of 2", "verify of 2"]
    assert [list(p["seconds"]) for p in points] == [kinds] * 3
    bits = [p["bits"]["target"] for p in points]
    assert 0 < bits[0] != bits[1] != bits[2]
    assert max(bits) - min(bits) < 0.2
    assert (tmp_path / "modes.md").read_text(encoding="utf-8") == table(points)


def test_ratios_are_within_a_round() -> None:
    """The machine is twice as slow in the second round, which no ratio shows."""
    plain = {
        "mode": "float32",
        "model": "m",
        "weights": "0123456789",
        "bits": {"draft": 2.0, "target": 1.0},
    }
    other = {"mode": "int8", "bits": {"draft": 2.5, "target": 0.75}}
    plain["seconds"], other["seconds"] = (
        {"trunk of 4": [1.0, 2.0, 1.0]},
        {"trunk of 4": [0.5, 1.0, 0.8]},
    )
    first, *_, last = table([plain, other]).splitlines()
    assert first == "Model: m (weights 01234567)."
    assert last == "| int8 | 2.5000 (+0.5000) | 0.7500 (-0.2500) | 0.50 (0.50–0.80) |"
