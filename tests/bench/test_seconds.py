"""Settings are timed in turn and told as ratios within a round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import specmask
from oracle import tiny_network
from specmask import Ancestral, Speculative, Star
from specmask.bench.run import describe, read_points, write_points
from specmask.bench.seconds import Seconds, alike, main, table
from specmask.data.tokenizers import character_tokenizer
from specmask.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    points = [
        {"kind": "samples", **describe(sampler, 0), "nfe": nfe}
        for sampler, nfe in (
            (Star(6), 6.5),
            (Ancestral(6), 6.0),
            (Ancestral(12), 12.0),
            (Speculative(), 5.0),
        )
    ]
    write_points(tmp_path / "results.jsonl", points)
    network = tiny_network(vocab_size=4, length=8, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer("ab c"))
    return tmp_path


def test_settings_of_about_one_cost_are_timed(folder: Path) -> None:
    main(Seconds(str(folder / "model"), folder, nfe=6.0, num=2, rounds=3))
    points = read_points(folder / "seconds.jsonl")
    assert [p["sampler"] for p in points] == ["speculative", "ancestral", "star"]
    assert all(len(p["seconds"]) == 3 and min(p["seconds"]) > 0 for p in points)
    assert points[1]["nfe"] <= 6
    assert (folder / "seconds.md").read_text(encoding="utf-8") == table(points)


def test_ratios_are_within_a_round() -> None:
    """The machine is twice as slow in the second round, which no ratio shows."""
    plain = {"kind": "seconds", **describe(Ancestral(8), 0), "nfe": 8.0, "seconds": [1.0, 2.0, 1.0]}
    other = {"kind": "seconds", **describe(Star(8), 0), "nfe": 4.0, "seconds": [1.5, 3.0, 1.2]}
    last = table([json.loads(json.dumps(p)) for p in (plain, other)]).splitlines()[-1]
    assert last == "| star | 8 steps | 4.0 | 1.50 | 1.20–1.50 | 3.00 |"


def test_a_cost_without_a_plain_setting_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nfe=100: .*\[6, 12\]"):
        alike(read_points(folder / "results.jsonl"), 100.0)
