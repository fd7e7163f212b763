"""Measured points: laws against the library, files and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from specmask.bench import run
from specmask.bench.run import law_points, sample_point
from specmask.data.tokenizers import character_tokenizer
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.spelling import spelling_accuracy
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.samplers import Sampler
from specmask.training.loop import versions

LENGTH = 16


@pytest.fixture
def model() -> specmask.Model:
    """Symbols a, b and space; weights so large that draft and target differ."""
    network = HybridTransformer(HybridConfig(3, LENGTH, 16, 2, trunk_layers=2, head_layers=1))
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return specmask.wrap(network, character_tokenizer("ab "))


# ------------------------------------------------------------------------------------ law_points

SAMPLERS: list[Sampler] = [
    specmask.Speculative(window=specmask.CosineWindow(0.3), rounds=2),
    specmask.Speculative(window=specmask.FullWindow(), rounds=1, first="accept"),
    specmask.Ancestral(steps=3, counts="fixed"),
    specmask.AnyOrder(),
    specmask.AnyOrder(source="target"),
    specmask.Speculative(window=specmask.ConstantWindow(5), order="left-to-right"),
    specmask.Speculative(window=specmask.FullWindow(), verification="block", stop=0.5),
]


def test_law_points_are_the_librarys_laws(model: specmask.Model) -> None:
    tokens = torch.randint(3, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, int]] = []
    found = law_points(
        *(model, tokens, SAMPLERS), seed=7, batch_size=5, progress=lambda *x: seen.append(x)
    )
    assert seen == [(min(n, 128), 128) for n in (*range(5, 65, 5), 64, *range(69, 129, 5), 128)]
    random = specmask.random_orders(tokens, 7)
    for point, sampler in zip(found, SAMPLERS, strict=True):
        left = getattr(sampler, "order", "") == "left-to-right"
        order = torch.arange(LENGTH).expand_as(tokens) if left else random
        bits = -specmask.log_prob(model, tokens, order, sampler) / math.log(2) / LENGTH
        trunk, verify = specmask.expected_passes(model, tokens, order, sampler)
        nfe = (2 * trunk + verify) / 3
        assert point["bits"] == pytest.approx(float(bits.mean()), rel=1e-5)
        assert point["bits_se"] == pytest.approx(float(bits.std()) / 2, rel=1e-3)
        assert point["nfe"] == pytest.approx(float(nfe.mean()), rel=1e-5)
        assert point["nfe_se"] == pytest.approx(float(nfe.std()) / 2, rel=1e-3, abs=1e-6)
        assert (point["kind"], point["seed"], point["rows"]) == ("law", 7, 4)
        assert point["each"]["bits"] == pytest.approx(bits.tolist(), abs=1e-5)
        assert point["each"]["nfe"] == pytest.approx(nfe.tolist(), abs=1e-5)
        assert point["versions"] == versions()
    assert [point["plain"] for point in found] == [False, False, True, True, False, False, False]
    names = ["speculative", "speculative", "ancestral", "any_order", "any_order"]
    names += ["speculative", "speculative"]
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
            "first": "accept",
            "order": "random",
            "temperature": 1.0,
            "top_p": 1.0,
            "verification": "token",
            "stop": 0.0,
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
        "each": point["each"],
    }
    assert point["each"]["nfe"] == pytest.approx(out.nfe.tolist(), abs=1e-5)
    each = point["each"]
    assert sum(each["correct"]) / sum(each["words"]) == pytest.approx(spelling.mean)
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


def test_settings_that_came_later_are_read_as_their_defaults(tmp_path: Path) -> None:
    """A file of before `verification` and `stop` names the sampler that a file of today names."""
    point = run.describe(specmask.Speculative(rounds=3), seed=0)
    older = {k: v for k, v in point["settings"].items() if k not in ("verification", "stop")}
    run.write_points(tmp_path / "results.jsonl", [{**point, "settings": older}])
    (read,) = run.read_points(tmp_path / "results.jsonl")
    assert json.dumps(read) == json.dumps(point)


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
