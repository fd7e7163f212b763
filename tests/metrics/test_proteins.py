from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmask.errors import UserError
from specmask.metrics import Estimate
from specmask.metrics.proteins import (
    composition,
    composition_divergence,
    novelty,
    sequence_hash,
    unique_fraction,
)

FEW = st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(FEW)
def test_the_error_of_the_unique_fraction_is_the_jackknifes(sequences: list[str]) -> None:
    n = len(sequences)
    estimate = unique_fraction(sequences)
    assert estimate.mean == len(set(sequences)) / n
    left = [len(set(sequences[:k] + sequences[k + 1 :])) / (n - 1) for k in range(n)]
    variance = (n - 1) * statistics.pvariance(left)  # (n − 1)/n · Σ (θₖ − mean)²
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)
    assert estimate.count == n


def test_unique_fraction_at_the_ends() -> None:
    assert unique_fraction(["A", "B"]) == Estimate(1.0, 0.0, 2)
    assert unique_fraction(["A"] * 4) == Estimate(0.25, 0.0, 4)
    one, none = unique_fraction(["A"]), unique_fraction([])
    assert (one.mean, one.count, none.count) == (1.0, 1, 0)
    assert math.isnan(one.standard_error)
    assert math.isnan(none.mean)


def test_the_error_of_the_unique_fraction_is_not_below_the_truth() -> None:
    # 300 draws from 3000 kinds, 600 times over: repeats are rare, so √2 on the large side.
    generator = np.random.default_rng(0)
    runs = [
        unique_fraction([str(k) for k in generator.integers(3000, size=300)]) for _ in range(600)
    ]
    truth = statistics.stdev(run.mean for run in runs)  # good to 3 %
    said = statistics.mean(run.standard_error for run in runs)
    assert 1.25 < said / truth < 1.55


def test_novelty_by_hand() -> None:
    # New are C and C: 2 of 4. Variance of the mean: 4 · 1/4 / 3 / 4.
    samples, training = ["A", "C", "B", "C"], ["A", "B", "D", "A"]
    expected = Estimate(0.5, pytest.approx(math.sqrt(1 / 12)), 4)
    hashes = [sequence_hash(sequence) for sequence in training]
    for known in (
        training,
        set(training),
        iter(training),
        hashes,
        set(hashes),
        np.array(hashes, dtype=np.uint64),
    ):
        assert novelty(samples, known) == expected
    assert novelty(["A"], training).mean == 0.0
    assert math.isnan(novelty([], training).mean)


def test_the_training_data_are_read_once_as_a_stream() -> None:
    pulled = 0

    def stream() -> Iterator[str]:
        nonlocal pulled
        for k in range(1000):
            pulled += 1
            yield f"A{k}"

    training = stream()
    assert novelty(["A0", "A999", "B"], training).mean == pytest.approx(1 / 3)
    assert pulled == 1000
    # Were the spent stream taken for no training data, all would be new.
    with pytest.raises(UserError, match=r"empty: .*read once only"):
        novelty(["A0"], training)


def test_a_hash_is_fixed_for_good() -> None:
    assert sequence_hash("ACDY") == 10654368526244311906


def test_composition_by_hand() -> None:
    assert composition(["AAC", "D"], "ACDE").tolist() == [0.5, 0.25, 0.25, 0.0]
    shares = composition(["ACDEFGHIKLMNPQRSTVWY"] * 3)
    assert shares.shape == (20,)
    assert np.allclose(shares, 1 / 20)


def test_divergence_by_hand() -> None:
    even = [0.5, 0.5]
    assert composition_divergence(["AC", "CA"], even, "AC").mean == 0.0
    # Nothing in common: log 2.
    assert composition_divergence(["AA"], [0, 1], "AC").mean == pytest.approx(math.log(2))
    # p = (1, 0), q = (½, ½), m = (¾, ¼).
    expected = (math.log(4 / 3) + math.log(2 / 3) / 2 + math.log(2) / 2) / 2
    for reference in (even, np.array(even), {"A": 0.5, "C": 0.5}):
        estimate = composition_divergence(["AA", "A"], reference, "AC")
        assert estimate == Estimate(pytest.approx(expected), pytest.approx(0, abs=1e-15), 2)
    assert composition_divergence(["AA"], {"C": 1.0}, "AC").mean == pytest.approx(math.log(2))
    assert math.isnan(composition_divergence(["AA"], even, "AC").standard_error)


def test_divergence_from_a_composition_and_its_seed() -> None:
    samples, others = ["AAC", "ACD", "DDA"], ["ACD", "AAA"]
    reference = composition(others)
    first = composition_divergence(samples, reference, seed=1)
    assert first == composition_divergence(samples, reference, seed=1)
    other = composition_divergence(samples, reference, seed=2)
    assert (other.mean, other.count) == (first.mean, 3)
    assert other.standard_error != first.standard_error


def test_the_bootstrap_error_is_that_of_new_samples() -> None:
    # Each sequence repeats one residue 1 to 20 times, so that positions depend on each other: over
    # positions instead of sequences the error would be some three times too small.
    generator = np.random.default_rng(0)

    def draw() -> list[str]:
        kinds = generator.choice(list("ACD"), p=[0.6, 0.3, 0.1], size=150)
        return [k * int(n) for k, n in zip(kinds, generator.integers(1, 21, size=150), strict=True)]

    reference = [0.2, 0.3, 0.5]
    truth = statistics.stdev(
        composition_divergence(draw(), reference, "ACD", resamples=2).mean for _ in range(400)
    )
    said = statistics.mean(
        composition_divergence(draw(), reference, "ACD").standard_error for _ in range(20)
    )
    assert 0.85 < said / truth < 1.15  # the truth is good to 4 %, what is said to 2 %


def test_bad_input() -> None:
    for call in (unique_fraction, composition, lambda s: novelty(s, ["A"])):
        with pytest.raises(UserError, match="many sequences, got one string"):
            call("ACD")
    with pytest.raises(UserError, match="training: expected many"):
        novelty(["A"], "ACD")
    with pytest.raises(UserError, match="no sequence"):
        composition([])
    with pytest.raises(UserError, match="sequence 1 is empty"):
        composition(["A", ""])
    for strange in "Bä?":
        with pytest.raises(UserError, match=f"sequence 1 has '[{strange}]': expected residues"):
            composition(["A", "C" + strange])
    with pytest.raises(UserError, match="distinct ASCII"):
        composition(["A"], "AA")
    for reference in ([0.5, 0.4], [1.0], [1.5, -0.5], [math.nan, 1.0]):
        with pytest.raises(UserError, match="expected 2 frequencies from 0 that sum to 1"):
            composition_divergence(["A"], reference, "AC")
    with pytest.raises(UserError, match="the reference has 'D'"):
        composition_divergence(["A"], {"A": 0.5, "D": 0.5}, "AC")
    with pytest.raises(UserError, match="resamples=1"):
        composition_divergence(["A"], [1.0], "A", resamples=1)
    with pytest.raises(UserError, match="seed=-1"):
        composition_divergence(["A"], [1.0], "A", seed=-1)
