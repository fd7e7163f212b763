"""Frontiers, factors and their intervals, by hand and against data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from specmask.bench.compare import (
    Factor,
    at_cost,
    at_entropy,
    cost_at,
    cost_ratios,
    crossed_factors,
    factors_at_equal,
    frontier,
)
from specmask.bench.run import Point
from specmask.bench.tables import entropy_cells, law_cells
from specmask.errors import UserError


def points(*pairs: tuple[float, float]) -> list[Point]:
    """Points of one row each, so that a bootstrap draws the same again."""
    return [
        {"kind": "law", "nfe": nfe, "q": q, "each": {"nfe": [nfe], "q": [q]}} for nfe, q in pairs
    ]


def pairs(found: list[Point]) -> list[tuple[float, float]]:
    return [(point["nfe"], point["q"]) for point in found]


def factors(plain: list[Point], ours: list[Point], sign: int = 1) -> list[tuple[float, ...]]:
    found = factors_at_equal(plain, ours, "q", sign, replicates=3)
    assert all(one.low == one.factor == one.high for one in found)
    return [(one.nfe, one.quality, one.factor) for one in found]


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
    assert factors(plain, points((8, sign * 0.4)), sign) == [pytest.approx((8, sign * 0.4, 4.0))]


def test_factor_below_one_where_plain_is_cheaper() -> None:
    found = factors(points((4, 0.0), (16, 1.0)), points((16, 0.5)))
    assert found == [pytest.approx((16, 0.5, 0.5))]


def test_factor_at_the_curves_own_points() -> None:
    plain = points((10, 0.1), (20, 0.2), (40, 0.3))
    found = factors(plain, points((5, 0.1), (8, 0.2), (10, 0.3)))
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
    assert factors(plain, ours) == []


def test_factor_ignores_points_off_the_frontiers() -> None:
    plain = points((16, 0.2), (64, 0.6), (32, 0.1))
    ours = points((8, 0.4), (12, 0.3))
    assert factors(plain, ours) == [pytest.approx((8, 0.4, 4.0))]


def test_cost_beyond_the_curve() -> None:
    plain = points((10, 0.1), (20, 0.2))
    assert cost_at(plain, "q", 1, 0.05) == 0
    assert cost_at(plain, "q", 1, 0.3) == math.inf
    assert cost_at([], "q", 1, 0.3) == math.inf
    assert cost_at(plain, "q", 1, 0.1) == 10
    assert cost_at(plain, "q", 1, 0.2) == 20


def test_a_measure_at_a_cost_between_two_points() -> None:
    """16 passes are two thirds of the way from 4 to 32, and the errors are independent."""
    curve = [{**p, "q_se": se} for p, se in zip(points((4, 1.0), (32, 4.0)), (3, 6), strict=True)]
    assert at_cost(curve, "q", 16) == pytest.approx((3.0, math.hypot(1, 4)))
    assert at_cost(curve, "q", 4) == (1.0, 3.0)
    with pytest.raises(UserError, match="nfe=2: expected one from 4 to 32"):
        at_cost(curve, "q", 2)


def test_what_a_restriction_costs_where_it_comes_to_the_same_quality() -> None:
    free = points((2, 0.1), (4, 0.2), (8, 0.3), (16, 0.4))
    some = points((8, 0.2), (16, 0.3))
    assert cost_ratios(some, free, "q", 1) == [2, 2]
    assert cost_ratios(points((9, 0.5)), free, "q", 1) == []


def test_a_factor_with_plain_passes_counted_in_full() -> None:
    one = Factor(8, 0.3, 3.0, 1.5, math.inf)
    assert one.over(0.75) == Factor(8, 0.3, 4.0, 2.0, math.inf)
    assert one.over(0.75).interval == "2.00 to ∞"


def test_a_point_with_nothing_to_measure_is_on_no_frontier() -> None:
    """A results file says null where a mean was not a number."""
    nothing = [{"nfe": 3.0, "q": None}, {"nfe": 4.0, "q": math.nan}, {"nfe": None, "q": 9.0}]
    assert pairs(frontier([*points((5, 0.2)), *nothing], "q", 1)) == [(5, 0.2)]


# ------------------------------------------------------------------------------------- intervals


def law(nfe: float, rows: np.ndarray) -> Point:
    each = {"nfe": [nfe] * len(rows), "bits": rows.tolist()}
    return {"kind": "law", "nfe": nfe, "bits": float(rows.mean()), "each": each}


def one_experiment(generator: np.random.Generator) -> Factor:
    """Bits fall by 0.1 with each doubling of NFE; ours at 8 are as good as plain at 16.

    Rows differ far more than settings do, but by the same for all settings.
    """
    rows = generator.normal(0, 1, 40)

    def noisy(nfe: float, bits: float) -> Point:
        return law(nfe, rows + bits + generator.normal(0, 0.1, len(rows)))

    plain = [noisy(2.0**k, 3 - 0.1 * k) for k in range(1, 8)]
    (found,) = factors_at_equal(plain, [noisy(8, 2.6)], "bits", -1, replicates=200)
    return found


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """The true factor is 2. Of 100 intervals of 95 %, fewer than 85 hold it with odds of 1e-4."""
    generator = np.random.default_rng(0)
    found = [one_experiment(generator) for _ in range(100)]
    assert sum(one.low <= 2 <= one.high for one in found) >= 85
    # Narrow, because the rows are paired: unpaired, their spread would swamp the difference.
    assert np.median([one.high / one.low for one in found]) < 3


def test_intervals_of_spelling_draw_samples_again() -> None:
    generator = np.random.default_rng(1)

    def sampled(nfe: float, share: float) -> Point:
        words = generator.integers(20, 40, 256)
        correct = generator.binomial(words, share)
        each = {"nfe": [nfe] * 256, "correct": correct.tolist(), "words": words.tolist()}
        mean = float(correct.sum() / words.sum())
        return {"kind": "samples", "nfe": nfe, "spelling": mean, "each": each}

    plain = [sampled(n, s) for n, s in ((8, 0.5), (16, 0.6), (32, 0.7), (64, 0.8))]
    (found,) = factors_at_equal(plain, [sampled(16, 0.7)], "spelling", 1)
    assert found.low < 2 < found.high
    assert 0.7 < found.low < found.factor < found.high < 4


def _sample(entropy: list[float], correct: list[int]) -> Point:
    """Rows of ten words each."""
    return {
        "kind": "samples",
        "entropy": sum(entropy) / len(entropy),
        "spelling": sum(correct) / (10 * len(correct)),
        "each": {"entropy": entropy, "correct": correct, "words": [10] * len(correct)},
    }


def test_quality_at_an_entropy_is_on_the_line_between_two_settings() -> None:
    """And nothing is said beyond the ends of the curve, nor in a gap too wide for a line."""
    curve = [_sample([2.50, 2.52], [9, 9]), _sample([2.54, 2.56], [5, 5]), _sample([2.9], [4])]
    assert at_entropy(curve, "spelling", 2.54)[0] == pytest.approx(0.6)
    assert at_entropy(curve, "spelling", 2.55)[0] == pytest.approx(0.5)
    assert at_entropy(curve, "spelling", 2.505) is None
    assert at_entropy(curve, "spelling", 2.7) is None
    assert at_entropy(curve, "spelling", 2.95) is None


def test_the_error_at_an_entropy_is_that_of_samples_drawn_again() -> None:
    """Both ends' rows are drawn 400 times; a row's entropy and quality go together."""
    generator = np.random.default_rng(5)

    def drawn(entropy: float, rate: float) -> Point:
        noise = generator.normal(size=100)
        correct = np.clip(np.round(10 * rate - 1.5 * noise), 0, 10)
        return _sample(list(entropy + 0.02 * noise), [int(value) for value in correct])

    found = [
        at_entropy([drawn(2.66, 0.7), drawn(2.74, 0.5)], "spelling", 2.708, replicates=50)
        for _ in range(400)
    ]
    values, errors = np.array(found).T
    assert values.mean() == pytest.approx(0.58, abs=0.005)
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


def test_settings_are_compared_at_equal_entropy_where_two_curves_come() -> None:
    def point(temperature: float, entropy: float, correct: int, steps: int) -> Point:
        settings = {"steps": steps, "temperature": temperature}
        found = _sample([entropy] * 4, [correct] * 4)
        return {**found, "sampler": "p2", "settings": settings, "nfe": float(steps)}

    points = [
        {"kind": "held-out", "entropy": 2.7, "spelling": 1.0},
        point(1.0, 2.75, 4, 8), point(0.8, 2.65, 8, 8), point(1.0, 2.71, 6, 16),
        point(0.9, 2.67, 8, 16), point(1.0, 2.0, 9, 32),
    ]  # fmt: skip
    header, rows = entropy_cells(points)
    assert header[4:] == ["spelling at 2.700", "spelling at 2.680"]
    assert rows == [
        ["p2", "8 steps", "temperature", "8.0", "0.600 ± 0.000", "0.680 ± 0.000"],
        ["p2", "16 steps", "temperature", "16.0", "0.650 ± 0.000", "0.750 ± 0.000"],
    ]
    assert entropy_cells(points[:3])[1] == []


def test_plain_laws_are_compared_row_by_row_with_the_optimal_cuts() -> None:
    """Rows that differ by a bit each, laws by a hundredth: no error but that of the hundredth."""

    def law(sampler: str, bits: list[float], steps: int = 4, plain: bool = True) -> Point:
        mean = float(np.mean(bits))
        return {
            "kind": "law", "sampler": sampler, "settings": {"steps": steps}, "plain": plain,
            "nfe": float(steps), "bits": mean, "bits_se": 0.5, "each": {"bits": bits},
        }  # fmt: skip

    header, rows = law_cells(
        [
            law("optimal", [1.0, 2.0, 3.0]),
            law("ancestral", [1.02, 2.01, 3.03]),
            law("ancestral", [1.0, 2.0, 3.0], steps=8),
            law("any_order", [1.0, 2.0, 3.0], plain=False),
        ]
    )
    assert header[-1] == "more than optimal"
    error = np.std([0.02, 0.01, 0.03], ddof=1) / math.sqrt(3)
    told = {(row[0], row[1]): row[-1] for row in rows}
    assert told.pop(("ancestral", "4 steps")) == f"+0.0200 ± {error:.4f}"
    assert set(told.values()) == {"–"}


def test_a_law_without_value_is_in_no_row() -> None:
    """As that of a greedy draft, which cannot draw the held-out rows."""
    none = {"kind": "law", "sampler": "ancestral", "settings": {}, "plain": True}
    none |= {"nfe": None, "bits": None, "bits_se": None, "each": {"bits": []}}
    assert law_cells([none])[1] == []


def test_equal_entropies_leave_no_line() -> None:
    """Rows drawn again may have one entropy at both ends: such a replicate is left out; and where
    the settings themselves have one there is no line between them, nor an error."""

    def point(entropies: list[float], values: list[float]) -> Point:
        each = {"entropy": entropies, "q": values}
        return {"entropy": float(np.mean(entropies)), "q": float(np.mean(values)), "each": each}

    low, high = point([1.0, 1.05], [0.2, 0.4]), point([1.05, 1.1], [0.5, 0.7])
    found = at_entropy([low, high], "q", 1.05, replicates=200)
    assert found is not None
    assert found[0] == pytest.approx(0.45)
    assert math.isfinite(found[1])
    flat = [point([0.0, 0.0], [0.2, 0.4]), point([0.0, 0.0], [0.3, 0.5])]
    assert at_entropy(flat, "q", 0.0, replicates=3) is None


def test_crossed_factors_do_not_owe_anything_to_choice() -> None:
    """Of many settings that are all the same but for luck, the best look better than they are;
    chosen on other rows they do not. 400 settings a cost, 64 rows, fixed seed."""
    rng = np.random.default_rng(0)

    def settings(count: int) -> list[Point]:
        found = []
        for nfe in (4.0, 8.0, 16.0, 32.0, 64.0):
            for _ in range(count):
                bits = 6 - math.log2(nfe) + 0.5 * rng.normal(size=64)
                each = {"nfe": [nfe] * 64, "bits": bits.tolist()}
                found.append({"kind": "law", "nfe": nfe, "bits": float(bits.mean()), "each": each})
        return found

    plain, ours = settings(1), settings(400)
    lucky = [cost_at(plain, "bits", -1, p["bits"]) / p["nfe"] for p in frontier(ours, "bits", -1)]
    assert min(lucky) > 1.1
    for each in crossed_factors(plain, ours):
        assert len(each) >= 3
        assert np.median(each) == pytest.approx(1, abs=0.1)
