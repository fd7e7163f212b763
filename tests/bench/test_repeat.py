"""A sweep drawn again with another seed agrees within the errors that both state."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from specmask.bench import repeat as bench
from specmask.bench.repeat import Repeat, deviation, pairs, repeat, table, tally
from specmask.bench.run import Point, read_points
from specmask.errors import UserError


def point(steps: int, nfe: float, spelling: float, error: float) -> Point:
    return {
        **{"kind": "samples", "sampler": "ancestral", "settings": {"steps": steps}},
        **{"nfe": nfe, "nfe_se": 0.0, "spelling": spelling, "spelling_se": error},
        **{"entropy": 2.8, "entropy_se": 0.01},
    }


def test_deviations_by_hand() -> None:
    first = [point(8, 7.0, 0.5, 0.003), point(4, 3.5, 0.4, 0.0)]
    again = [point(4, 3.5, 0.4, 0.0), point(8, 7.0, 0.51, 0.004), point(16, 14.0, 0.6, 0.1)]
    both = pairs(first, again)
    assert [one["nfe"] for one, _ in both] == [3.5, 7.0]  # by cost, and only what both have
    assert deviation(*both[1], "spelling") == pytest.approx(2.0)
    total, count, odds = tally(both, "spelling")  # the setting without an error is not counted
    assert (total, count) == (pytest.approx(4.0), 1)
    assert odds == pytest.approx(0.0455, abs=1e-4)  # of two standard errors, both sides
    assert tally(both, "nfe")[1] == 0
    rounded = {**first[0], "nfe": 7.0 + 1e-15, "nfe_se": 1e-16}  # a sum in another order
    assert deviation(first[0], rounded, "nfe") == 0
    assert deviation(first[0], {**rounded, "nfe": 8.0}, "nfe") == math.inf
    assert "| 0.5000, 0.5100 | +2.0 |" in table(both, lambda p: str(p["settings"]))


def test_the_sweep_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the shipped model's cheapest setting, one sample."""
    args = Repeat(out=tmp_path / "again.jsonl", most=8.24)
    own = read_points(bench.zoo_folder("text8-small") / "results.jsonl")
    few = [{**p, "num": 1, "bf16": False} for p in own if p["kind"] == "samples"]
    monkeypatch.setattr(bench, "read_points", lambda _: few)
    repeat(args)
    done = args.out.read_bytes()
    both = pairs(few, read_points(args.out))
    assert 0 < len(both) == sum(p["nfe"] <= 8.24 for p in few)
    assert all(other["seed"] == 1 and other["num"] == 1 for _, other in both)

    monkeypatch.setattr(bench, "sample_point", lambda *_: pytest.fail("sampled again"))
    repeat(args)
    assert args.out.read_bytes() == done
    with pytest.raises(UserError, match="measured with seed 1"):
        repeat(replace(args, seed=2))


def test_bad_input_is_refused_before_work(tmp_path: Path) -> None:
    args = Repeat(out=tmp_path / "again.jsonl")
    with pytest.raises(UserError, match="seed 0 is that of the first run"):
        repeat(replace(args, seed=0))
    with pytest.raises(UserError, match=r"unknown shipped model 'text8-smal'.*Did you mean"):
        repeat(replace(args, model="text8-smal"))
    with pytest.raises(UserError, match="antibody has no results"):
        repeat(replace(args, model="antibody"))
    with pytest.raises(UserError, match="raise --most"):
        repeat(replace(args, most=1.0))
    assert not args.out.exists()
