"""What a training step costs: the counts are exact, the ways agree, the page is its results'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from specmask.bench import train_speed
from specmask.bench.run import read_points
from specmask.bench.train_speed import (
    BUILD,
    NETWORKS,
    ROWS,
    WAYS,
    TrainSpeed,
    batch_of,
    flops_point,
    main,
    set_way,
    table,
)
from specmask.errors import UserError
from specmask.models.hybrid import HybridConfig
from specmask.recipes import RECIPES
from specmask.training.loss import loss_terms

DOCS = Path(__file__).parents[2] / "docs" / "performance"
TINY = HybridConfig(5, length=8, width=16, heads=2, trunk_layers=2)


def test_the_networks_are_the_recipes() -> None:
    """But for dropout; and what is counted is a micro-batch of theirs."""
    for name, kind in (
        ("text8", "text8"),
        ("gpt2-scale", "openwebtext"),
    ):
        plan = RECIPES[kind]()
        assert vars(NETWORKS[name]) == {**vars(plan.network), "dropout": 0.0}
        assert ROWS[name][0] == plan.train.batch_size // plan.train.accumulation


def test_every_way_has_the_same_loss() -> None:
    network, part = BUILD["hybrid"](TINY), batch_of(TINY, 3, 0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    losses = []
    for way, settings in WAYS.items():
        if way.startswith("hybrid"):
            set_way(network, **settings)
            losses.append(loss_terms(network, *part).target_nll)
    assert len(losses) == 3
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_flops_by_hand() -> None:
    """What plain and hybrid differ by, at every rank: two maps and the target's logits.

    Of `combine` a third goes over the six symbols instead of the 24 tokens; the start symbol's
    product is one more token of two thirds.
    """
    rows, width = 3, 16
    point = flops_point("tiny", TINY, rows, 0)
    tokens, scored = rows * 8, batch_of(TINY, rows, 0).scored.shape[1]
    logits = 6 * scored * width * 5
    assert point["target logits"] == logits
    maps = 6 * width**2
    extra = maps * (tokens + 2 * tokens) + maps * 6  # out, combine on hidden states, on symbols
    start = 2 * maps
    assert point["hybrid, every rank"] - point["plain"] == logits + extra + start
    # At known ranks: attention_out, the gated MLP, out.
    late = width**2 + 3 * width * TINY.hidden + width**2
    saved = 6 * late * (tokens - scored)
    assert point["hybrid, every rank"] - point["hybrid"] == saved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_results_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setitem(train_speed.NETWORKS, "tiny", TINY)
    monkeypatch.setitem(train_speed.ROWS, "tiny", (4, 2))
    out = tmp_path / "deep" / "train.jsonl"
    main(TrainSpeed(out, ("tiny",), ("tiny",), rounds=5, compiled=(), precision=precision))
    run, flops, step = read_points(out)
    assert run["precision"] == precision
    assert run["clock"] == "processor"
    assert set(run["versions"]) == {"specmask", "torch", "python"}
    assert run["machine"]["threads"] == torch.get_num_threads()
    assert flops["rows"] == 4
    assert step["rows"] == 2
    assert set(step["seconds"]) == set(WAYS)
    assert all(len(taken) == 5 and min(taken) > 0 for taken in step["seconds"].values())
    assert step["saved_bytes"]["hybrid, recomputing"] < step["saved_bytes"]["hybrid"] / 2
    assert out.with_suffix(".md").read_text(encoding="utf-8") == table([run, flops, step])
    assert "| tiny | 2 × 8 |" in table([run, flops, step])


def test_ratios_are_within_a_round() -> None:
    """The machine is twice as slow in the second round, which no ratio shows."""
    seconds = {"hybrid": [1.0, 2.2, 1.2], "plain": [1.0, 2.0, 1.0]}
    assert train_speed.ratios({"seconds": seconds}, "hybrid", "plain") == [1.0, 1.1, 1.2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"networks": ("text9",)}, "network 'text9'"),
        ({"timed": ("text9",)}, "network 'text9'"),
        ({"compiled": ("text9",)}, "network 'text9'"),
        ({"width": 20}, "divisible by"),
        ({"rounds": 0}, "rounds=0"),
        ({"rows": 0}, "rows=0"),
        ({"seed": -1}, "seed=-1"),
        ({"precision": "fp8"}, "precision"),
        ({"device": "cuda:77"}, "device cuda:77"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        main(TrainSpeed(tmp_path / "out" / "train.jsonl", **changes))
    assert not (tmp_path / "out").exists()


def test_the_page_is_that_of_the_results() -> None:
    text = table(read_points(DOCS / "train.jsonl"))
    assert (DOCS / "train.md").read_text(encoding="utf-8") == text


def test_the_counts_of_the_page_are_those_of_the_networks() -> None:
    """So that a change that makes the head dearer is seen."""
    lines = (DOCS / "train.jsonl").read_text(encoding="utf-8").splitlines()
    found = {p["network"]: p for p in map(json.loads, lines) if p["kind"] == "flops"}
    assert found.keys() == NETWORKS.keys()
    for name, config in NETWORKS.items():
        assert flops_point(name, config, ROWS[name][0], 0) == found[name]
    for name in ("small", "text8"):
        assert found[name]["hybrid"] < 1.03 * found[name]["plain"]
        assert found[name]["hybrid, every rank"] < 1.03 * found[name]["plain"]
