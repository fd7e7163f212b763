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
from specmask.metrics.ngrams import distinct_ngrams
from specmask.metrics.proteins import composition
from specmask.metrics.spelling import spelling_accuracy
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.samplers import Sampler, make_sampler
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
    assert {key: point[key] for key in ("kind", "seed", "num", "bf16", "sampler")} == {
        "kind": "samples",
        "seed": 3,
        "num": 6,
        "bf16": False,
        "sampler": "speculative",
    }
    assert point["versions"] == versions()
    assert point["settings"] == {
        "window": "cosine:0.2",
        "rounds": 2,
        "first": "accept",
        "order": "random",
        "temperature": 1.0,
        "top_p": 1.0,
        "verification": "token",
        "stop": 0.0,
    }
    for name in ("nfe", "trunk_passes", "verify_passes", "accepted", "rejected"):
        values = getattr(out, name).double()
        assert point[name] == pytest.approx(float(values.mean()))
        assert point[f"{name}_se"] == pytest.approx(float(values.std()) / 6**0.5)
    assert point["nfe_spread"] == pytest.approx(point["nfe_se"] * 6**0.5)
    quads = distinct_ngrams(out.tokens, 4)
    for name, found in (("spelling", spelling), ("entropy", entropy), ("distinct_4", quads)):
        assert point[name] == pytest.approx(found.mean)
        assert point[f"{name}_se"] == pytest.approx(found.standard_error)
    assert point["unique"] == len(set(out.text or [])) / 6
    assert point["texts"] == (out.text or [])[:2]
    assert point["seconds_per_token"] == pytest.approx(point["seconds_per_sample"] / LENGTH)
    assert point["each"]["nfe"] == pytest.approx(out.nfe.tolist(), abs=1e-5)
    each = point["each"]
    assert sum(each["correct"]) / sum(each["words"]) == pytest.approx(spelling.mean)
    assert point["seconds_per_sample"] > 0
    assert 0 < point["spelling"] < 1


def test_acceptance_is_counted_by_progress_and_by_pass(model: specmask.Model) -> None:
    """Every draft of every pass once, at the tenth of the row that was known before the pass."""
    sampler = specmask.Speculative(window=specmask.FullWindow(), rounds=2)
    point = sample_point(model, sampler, run.Domain(), num=5, seed=4, batch_size=2)
    counted = point["progress"]
    assert sum(counted["accepted"]) == pytest.approx(5 * point["accepted"])
    assert sum(counted["rejected"]) == pytest.approx(5 * point["rejected"])
    assert sum(point["runs"]) == pytest.approx(5 * point["trunk_passes"])
    assert sum(n * k for n, k in enumerate(point["runs"])) == sum(counted["accepted"])
    first = torch.zeros(10, dtype=torch.int64)  # again by hand, a row at a time
    for row in range(5):
        known = 0.0
        for frame in specmask.stream(model, sampler, num=1, seed=4, rows=[row]):
            if frame.step:
                first[min(int(known * 10), 9)] += int(frame.info.accepted)
            known = int(frame.revealed) / LENGTH
    assert counted["accepted"] == first.tolist()
    assert "spelling" not in point
    assert "progress" not in sample_point(model, specmask.Ancestral(2), run.Domain(), num=1)


def test_sequences_are_judged_by_composition_and_take_their_lengths_in_turn(
    model: specmask.Model,
) -> None:
    lengths = torch.tensor([4, 9])
    residues = specmask.wrap(model.network, character_tokenizer("ACD"))
    domain = run.Domain(residues=composition(["AACD", "CCDAADDC"]))
    assert domain.metric == ("composition", -1)
    point = sample_point(residues, specmask.AnyOrder(), domain, num=3, lengths=lengths)
    assert [len(text) for text in point["texts"]] == [4, 9]
    assert point["trunk_passes"] == pytest.approx((4 + 9 + 4) / 3)
    assert 0 <= point["composition"] < math.log(2)


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


@pytest.mark.parametrize("name", [name for name in specmask.SAMPLERS if name != "policy"])
def test_settings_in_a_file_make_the_sampler_again(name: str, tmp_path: Path) -> None:
    """`policy` is nothing without its guide, of which a file has the name alone."""
    kind = specmask.SAMPLERS[name]
    sampler = kind(4, (3.0, 2.0, 1.0, 0.5)) if kind is specmask.Optimal else kind()
    run.write_points(tmp_path / "file", [run.describe(sampler, 0)])
    (point,) = run.read_points(tmp_path / "file")
    assert make_sampler(point["sampler"], point["settings"]) == sampler
