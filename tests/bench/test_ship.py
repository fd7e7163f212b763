"""Shipping a model: whose weights they are. What it measures and says is tested where that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import specmask
from oracle import tiny_network
from refusal import refuse
from specmask.bench.run import Domain, fingerprint, write_points
from specmask.bench.ship import Ship, _check_same, _weights, ship, taken
from specmask.models.hybrid import build


def test_a_run_without_checkpoints_ships_its_model(tmp_path: Path) -> None:
    network = tiny_network(dtype=torch.float32)
    specmask.save(tmp_path / "run" / "model", network)
    _weights(tmp_path / "run", tmp_path / "zoo")
    shipped = specmask.load(tmp_path / "zoo").network
    assert isinstance(shipped, specmask.HybridTransformer)
    for name, weight in network.state_dict().items():
        assert torch.equal(shipped.state_dict()[name], weight.bfloat16().float())


def test_a_network_without_a_head_is_refused(tmp_path: Path) -> None:
    plain = build(replace(tiny_network().config, head_layers=0))
    specmask.save(tmp_path / "run" / "model", plain)
    with pytest.raises(specmask.UserError, match="PlainTransformer: expected a hybrid network"):
        _weights(tmp_path / "run", tmp_path / "zoo")


def test_a_run_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(specmask.UserError, match="no checkpoint"):
        _weights(tmp_path / "run", tmp_path / "zoo")


def test_wrong_settings_are_refused_before_work(tmp_path: Path) -> None:
    args = Ship(tmp_path / "run", data=tmp_path / "no.txt", folder=tmp_path / "model")
    refuse(lambda: ship(replace(args, targets=(8, 0))), "--targets has 0", "at least 1")
    refuse(lambda: ship(replace(args, rows=0)), "rows=0", "at least 1")
    refuse(lambda: ship(replace(args, run=None)), "no RUN", "--card-only")
    refuse(lambda: ship(replace(args, card_only=True)), "results.jsonl", "measured")
    empty = tmp_path / "empty.jsonl"
    write_points(empty, [])
    for file in (empty, tmp_path / "none.jsonl"):
        refuse(lambda file=file: ship(replace(args, samples_from=file)), "no samples of plain")


def test_samples_of_another_benchmark_are_those_of_both_families(tmp_path: Path) -> None:
    """Untempered, random orders, token by token; of the same weights and words alone."""

    def drawn(sampler: str, **settings: object) -> dict[str, object]:
        return {"kind": "samples", "sampler": sampler, "settings": settings}

    kept = [
        drawn("ancestral", steps=4, schedule="cosine", temperature=1.0),
        drawn("ancestral", steps=4, schedule="linear", temperature=1.0),
        drawn("speculative", window="full", order="random", verification="token"),
    ]
    others = [
        drawn("ancestral", steps=4, temperature=0.8),
        drawn("speculative", window="full", order="random", verification="block"),
        drawn("speculative", window="full", order="confidence", verification="token"),
        drawn("star", steps=4),
        {**kept[0], "kind": "law"},
    ]
    assert taken([*kept, *others]) == kept
    model = specmask.wrap(tiny_network(dtype=torch.float32))
    words = frozenset({"a", "b"})
    run = {"kind": "run", "weights": fingerprint(model.network)}
    file = tmp_path / "results.jsonl"
    write_points(file, [{**run, "judged_by": Domain(words=words).digest}])
    _check_same(file, model, words)
    refuse(lambda: _check_same(file, model, frozenset({"c"})), "judged_by", "this model has")
    write_points(file, [{**run, "weights": "0123456789abcdef"}])
    refuse(lambda: _check_same(file, model, words), "weights 01234567", "this model has")
