"""Measured points: frontiers and factors by hand, laws against the library, files and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from specmask.bench import run
from specmask.bench.run import Point, factor_at_equal, frontier, law_points, sample_point
from specmask.data.tokenizers import character_tokenizer
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.spelling import spelling_accuracy
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.samplers import Sampler
from specmask.training.loop import versions

LENGTH = 16


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [{"nfe": nfe, "q": quality} for nfe, quality in pairs]


def pairs(found: list[Point]) -> list[tuple[float, float]]:
    return [(point["nfe"], point["q"]) for point in found]


@pytest.fixture
def model() -> specmask.Model:
    """Symbols a, b and space; weights so large that draft and target differ."""
    network = HybridTransformer(HybridConfig(3, LENGTH, 16, 2, trunk_layers=2, head_layers=1))
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return specmask.wrap(network, character_tokenizer("ab "))


# -------------------------------------------------------------------------------------- frontier


def test_frontier_keeps_what_no_cheaper_point_reaches() -> None:
    every = points((8, 0.5), (2, 0.1), (4, 0.4), (6, 0.3), (5, 0.4), (9, 0.5))
    assert pairs(frontier(every, "q", 1)) == [(2, 0.1), (4, 0.4), (8, 0.5)]


def test_frontier_of_bits_falls() -> None:
    every = points((8, 2.0), (2, 3.0), (4, 2.5), (6, 2.6))
    assert pairs(frontier(every, "q", -1)) == [(2, 3.0), (4, 2.5), (8, 2.0)]


def test_frontier_of_nothing() -> None:
    assert frontier([], "q", 1) == []


def test_frontier_takes_the_better_of_two_that_cost_the_same() -> None:
    """Whatever order they come in: both cost 4, so the worse one is on no frontier."""
    for every in (points((4, 0.2), (4, 0.6)), points((4, 0.6), (4, 0.2))):
        assert pairs(frontier(every, "q", 1)) == [(4, 0.6)]


# ------------------------------------------------------------------------------- factor_at_equal


@pytest.mark.parametrize("sign", [1, -1])
def test_factor_by_hand(sign: int) -> None:
    """Half way in quality between 16 and 64 passes is 32 of them; ours took 8."""
    plain = points((16, sign * 0.2), (64, sign * 0.6))
    found = factor_at_equal(plain, points((8, sign * 0.4)), "q", sign)
    assert [tuple(one) for one in found] == [pytest.approx((8, sign * 0.4, 4.0))]


def test_factor_below_one_where_plain_is_cheaper() -> None:
    found = factor_at_equal(points((4, 0.0), (16, 1.0)), points((16, 0.5)), "q", 1)
    assert found == [pytest.approx((16, 0.5, 0.5))]


def test_factor_at_the_curves_own_points() -> None:
    plain = points((10, 0.1), (20, 0.2), (40, 0.3))
    found = factor_at_equal(plain, points((5, 0.1), (8, 0.2), (10, 0.3)), "q", 1)
    assert [factor for _, _, factor in found] == pytest.approx([2.0, 2.5, 4.0])


@pytest.mark.parametrize(
    ("plain", "ours"),
    [
        (points((10, 0.5), (20, 0.6)), points((10, 0.1), (20, 0.4))),  # ours are worse
        (points((10, 0.1), (20, 0.2)), points((10, 0.5))),  # ours are better
        (points((10, 0.5)), points((10, 0.5))),  # one point makes no curve
        ([], points((10, 0.5))),
        (points((10, 0.5), (20, 0.6)), []),
    ],
)
def test_no_factor_without_overlap(plain: list[Point], ours: list[Point]) -> None:
    assert factor_at_equal(plain, ours, "q", 1) == []


def test_factor_ignores_points_off_the_frontiers() -> None:
    plain = points((16, 0.2), (64, 0.6), (32, 0.1))
    ours = points((8, 0.4), (12, 0.3))
    assert factor_at_equal(plain, ours, "q", 1) == [pytest.approx((8, 0.4, 4.0))]


# ------------------------------------------------------------------------------------ law_points

SAMPLERS: list[Sampler] = [
    specmask.Speculative(window=specmask.CosineWindow(0.3), rounds=2),
    specmask.Speculative(window=specmask.FullWindow(), rounds=1, first="accept"),
    specmask.Ancestral(steps=3, counts="fixed"),
    specmask.AnyOrder(),
    specmask.AnyOrder(source="target"),
]


def test_law_points_are_the_librarys_laws(model: specmask.Model) -> None:
    tokens = torch.randint(3, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    rows: list[int] = []

    def track(every: range) -> Any:
        for row in every:
            rows.append(row)
            yield row

    found = law_points(model, tokens, SAMPLERS, seed=7, batch_size=5, track=track)
    assert rows == [0, 1, 2, 3]
    order = specmask.random_orders(tokens, 7)
    for point, sampler in zip(found, SAMPLERS, strict=True):
        bits = -specmask.log_prob(model, tokens, order, sampler) / math.log(2) / LENGTH
        trunk, verify = specmask.expected_passes(model, tokens, order, sampler)
        nfe = (2 * trunk + verify) / 3
        assert point["bits"] == pytest.approx(float(bits.mean()), rel=1e-5)
        assert point["bits_se"] == pytest.approx(float(bits.std()) / 2, rel=1e-3)
        assert point["nfe"] == pytest.approx(float(nfe.mean()), rel=1e-5)
        assert point["nfe_se"] == pytest.approx(float(nfe.std()) / 2, rel=1e-3, abs=1e-6)
        assert (point["kind"], point["seed"], point["rows"]) == ("law", 7, 4)
        assert point["versions"] == versions()
    assert [point["plain"] for point in found] == [False, False, True, True, False]
    names = ["speculative", "speculative", "ancestral", "any_order", "any_order"]
    assert [point["sampler"] for point in found] == names


def test_law_points_temper_as_the_samplers_do(model: specmask.Model) -> None:
    tokens = torch.randint(3, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    sampler = specmask.Speculative(window=specmask.FullWindow(), rounds=3, temperature=0.7)
    (point,) = law_points(model, tokens, [sampler])
    order = specmask.random_orders(tokens, 0)
    bits = -specmask.log_prob(model, tokens, order, sampler) / math.log(2) / LENGTH
    assert point["bits"] == pytest.approx(float(bits.mean()), rel=1e-5)


def test_law_points_refuse_another_tempering(model: specmask.Model) -> None:
    """One table cannot serve two temperatures."""
    tokens = torch.zeros(1, LENGTH, dtype=torch.int64)
    mixed = [specmask.AnyOrder(), specmask.AnyOrder(temperature=0.5)]
    with pytest.raises(specmask.UserError, match="temper"):
        law_points(model, tokens, mixed)


# ---------------------------------------------------------------------------------- sample_point


def test_sample_point_is_what_the_samples_say(model: specmask.Model) -> None:
    sampler = specmask.Speculative(window=specmask.CosineWindow(0.2), rounds=2)
    words = frozenset({"a", "ab", "b"})
    point = sample_point(model, sampler, words, num=6, seed=3, batch_size=4)
    out = specmask.sample(model, sampler, num=6, seed=3)
    spelling = spelling_accuracy(out.text or [], words)
    entropy = unigram_entropy(out.tokens)
    assert point == {
        "kind": "samples",
        "sampler": "speculative",
        "settings": {
            "window": "cosine:0.2",
            "rounds": 2,
            "first": "verify",
            "order": "random",
            "temperature": 1.0,
            "top_p": 1.0,
        },
        "seed": 3,
        "versions": versions(),
        "num": 6,
        "bf16": False,
        "nfe": pytest.approx(float(out.nfe.mean())),
        "nfe_se": pytest.approx(float(out.nfe.std()) / 6**0.5),
        "trunk_passes": pytest.approx(float(out.trunk_passes.double().mean())),
        "verify_passes": pytest.approx(float(out.verify_passes.double().mean())),
        "accepted": pytest.approx(float(out.accepted.double().mean())),
        "rejected": pytest.approx(float(out.rejected.double().mean())),
        "spelling": pytest.approx(spelling.mean),
        "spelling_se": pytest.approx(spelling.standard_error),
        "entropy": pytest.approx(entropy.mean),
        "entropy_se": pytest.approx(entropy.standard_error),
        "seconds_per_sample": point["seconds_per_sample"],
    }
    assert point["seconds_per_sample"] > 0
    assert 0 < point["spelling"] < 1


def test_sample_point_in_bfloat16_says_so(model: specmask.Model) -> None:
    point = sample_point(model, specmask.Speculative(), frozenset({"a"}), num=2, bf16=True)
    assert point["bf16"] is True
    assert point["accepted"] + point["rejected"] == LENGTH


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("window", "word"),
    [
        (specmask.CosineWindow(0.05), "cosine:0.05"),
        (specmask.CosineWindow(0.083), "cosine:0.083"),
        (specmask.LinearWindow(0.1), "linear:0.1"),
        (specmask.ConstantWindow(8), "constant:8"),
        (specmask.FullWindow(), "full"),
        (specmask.CosineWindow(0.12345678), "cosine:0.12345678"),
    ],
)
def test_settings_show_a_window_as_one_types_it(window: Any, word: str) -> None:
    from specmask.masking import parse_window

    assert run.settings_of(specmask.Speculative(window=window))["window"] == word
    assert parse_window(run.show(window)) == window


def test_a_file_gives_back_what_was_written(tmp_path: Path, model: specmask.Model) -> None:
    tokens = torch.randint(3, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    written = law_points(model, tokens, SAMPLERS)
    written.append(sample_point(model, SAMPLERS[0], frozenset({"a"}), num=3))
    run.write_points(tmp_path / "results.jsonl", written)
    assert run.read_points(tmp_path / "results.jsonl") == written
    assert (tmp_path / "results.jsonl").read_text().count("\n") == len(written)


def test_a_file_holds_json_alone(tmp_path: Path, model: specmask.Model) -> None:
    """One sample has no standard error."""
    point = sample_point(model, specmask.Speculative(), frozenset({"a"}), num=1)
    run.write_points(tmp_path / "results.jsonl", [point])

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / "results.jsonl").read_text(), parse_constant=refuse)


def test_the_name_of_every_sampler() -> None:
    for name, kind in specmask.SAMPLERS.items():
        assert run.sampler_name(kind()) == name
