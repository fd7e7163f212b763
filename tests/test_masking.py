"""Orders, schedules and windows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specmask
from oracle import FALSE_ALARM, Chain, chi_square
from specmask import Ancestral, ConstantWindow, CosineWindow, FullWindow, LinearWindow, UserError
from specmask.masking import (
    SCHEDULES,
    WINDOWS,
    Window,
    confident_ends,
    fixed_cuts,
    order_by,
    parse_window,
    schedule_levels,
    window_ends,
)
from specmask.samplers.base import Canvas, Uniforms

any_window = st.one_of(
    st.floats(1e-6, 1).map(CosineWindow),
    st.floats(1e-6, 1).map(LinearWindow),
    st.integers(1, 2000).map(ConstantWindow),
    st.just(FullWindow()),
)


def sizes(window: Window, length: int) -> list[int]:
    """W(0), W(1), …, W(length − 1)."""
    return window.size(torch.arange(length), torch.full((length,), length)).tolist()


# ---------------------------------------------------------------------------------------- orders


def test_order_puts_given_first_then_keys_then_padding() -> None:
    keys = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.2, 0.0], [0.1, 0.1, 0.0, 0.1, 9.0, 9.0]])
    given_ = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    got = order_by(keys, given_, torch.tensor([5, 4]))
    assert got.tolist() == [[2, 3, 1, 4, 0, 5], [2, 0, 1, 3, 4, 5]]


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_order_is_a_permutation(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(3, length, generator=generator, dtype=torch.float64) * 1e3
    lengths = torch.randint(1, length + 1, (3,), generator=generator)
    position = torch.arange(length)
    given_ = (torch.rand(3, length, generator=generator) < 0.4) & (position < lengths[:, None])
    order = order_by(keys, given_, lengths)
    assert bool((order.sort(1).values == position).all())
    for b in range(3):
        free = order[b, given_[b].sum() : lengths[b]]
        assert bool(given_[b, order[b, : given_[b].sum()]].all())
        assert bool((keys[b, free].diff() >= 0).all())
        assert bool((order[b, lengths[b] :] >= lengths[b]).all())


def test_random_orders_are_uniform() -> None:
    """χ² of 48000 orders of 4 over all 24; false alarm 1e-6. Guards against a biased sort."""
    order = specmask.random_orders(torch.zeros(48_000, 4), seed=5)
    counts = (order * torch.tensor([64, 16, 4, 1])).sum(1).bincount(minlength=256)
    seen = counts[counts > 0]
    assert len(seen) == 24
    assert chi_square(seen, torch.ones(24)) > FALSE_ALARM


# --------------------------------------------------------------------------------------- windows


def test_windows_by_hand() -> None:
    """D = 10. Cosine ½: from i = 0, 10·(1 − cos π/4) = 2.93 → 3; from i = 5, τ = 2/3, so all."""
    assert sizes(ConstantWindow(3), 10) == [3] * 10
    assert sizes(LinearWindow(0.25), 10) == [3] * 10
    assert sizes(LinearWindow(0.3), 10) == [3] * 10  # 3.0000000000000004 is three
    assert sizes(LinearWindow(0.01), 10) == [1] * 10
    assert sizes(FullWindow(), 10) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    cosine = sizes(CosineWindow(0.5), 10)
    assert cosine[0] == 3
    assert cosine[5:] == [5, 4, 3, 2, 1]
    # i = 1: τ = 2/π·arccos .9 = .28713; 10·(1 − cos(π/2·.78713)) = 6.717 → 7; 7 − 1 = 6.
    assert cosine[1] == 6
    assert sizes(CosineWindow(1.0), 10) == sizes(FullWindow(), 10)


@given(any_window, st.integers(1, 200))
@settings(max_examples=120, deadline=None)
def test_a_window_holds_one_rank_at_least_and_ends_inside_the_row(
    window: Window, length: int
) -> None:
    revealed = torch.arange(length)
    lengths = torch.full_like(revealed, length)
    size, ends = window.size(revealed, lengths), window_ends(window, revealed, lengths)
    assert size.dtype == ends.dtype == torch.int64
    assert bool((size >= 1).all())
    assert bool((ends > revealed).all())
    assert bool((ends <= length).all())
    assert bool((ends == torch.minimum(lengths, revealed + size)).all())


@given(st.floats(1e-6, 1), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_the_cosine_window_is_its_formula(step: float, length: int) -> None:
    """method.md §4 in Python floats, but for counts within 1e-9 of whole."""
    for i, got in enumerate(sizes(CosineWindow(step), length)):
        tau = 2 / math.pi * math.acos(1 - i / length)
        level = length * (1 - math.cos(math.pi / 2 * min(1, tau + step)))
        if abs(level - round(level)) > 1e-8:
            assert got == max(1, math.ceil(level) - i)
        else:
            assert abs(got - max(1, round(level) - i)) <= 1


def test_a_window_ends_before_its_first_unsure_rank_but_never_before_its_first() -> None:
    """Largest probabilities .1 .9 .2 .5 from rank 3 on, then NaN."""
    ranks = torch.arange(3, 8)
    best = torch.tensor([0.1, 0.9, 0.2, 0.5, math.nan], dtype=torch.float64).log()
    for end, stop, expected in (
        (8, 0.05, 8),
        (8, 0.3, 5),
        (8, 0.95, 4),
        (5, 0.3, 5),
        (4, 0.3, 4),
        (8, 0.15, 8),
    ):
        got = confident_ends(torch.tensor(end), torch.tensor(3), ranks, best, stop)
        assert int(got) == expected


def test_windows_broadcast_over_rows_of_different_length() -> None:
    revealed, lengths = torch.tensor([[0, 3], [0, 3]]), torch.tensor([[10], [4]])
    for window in (CosineWindow(0.3), LinearWindow(0.3), ConstantWindow(2), FullWindow()):
        got = window.size(revealed, lengths)
        assert got.shape == (2, 2)
        for b in range(2):
            for k in range(2):
                alone = window.size(revealed[b, k][None], lengths[b])
                assert int(got[b, k]) == int(alone)


def test_parse_window_knows_every_window() -> None:
    assert parse_window("cosine:0.05") == CosineWindow(0.05)
    assert parse_window("linear:1") == LinearWindow(1.0)
    assert parse_window("constant:8") == ConstantWindow(8)
    assert parse_window("full") == FullWindow()
    assert set(WINDOWS) == {"cosine", "linear", "constant", "full"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cosin:0.05", "Did you mean 'cosine'"),
        ("ful", "Did you mean 'full'"),
        ("", "expected one of constant, cosine, full, linear"),
        ("cosine", "e.g. cosine:0.05"),
        ("cosine:a", "e.g. cosine:0.05"),
        ("constant:2.5", "e.g. constant:8"),
        ("constant:0", "whole number, from 1"),
        ("constant:-3", "whole number, from 1"),
        ("cosine:0", "0 < step <= 1"),
        ("cosine:1.01", "0 < step <= 1"),
        ("cosine:nan", "0 < step <= 1"),
        ("linear:inf", "0 < step <= 1"),
        ("linear:-0.1", "0 < step <= 1"),
        ("full:3", "takes no number"),
    ],
)
def test_a_bad_window_is_named_with_the_way_out(text: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_window(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 64, 1000])
def test_levels_rise_from_zero_to_exactly_one(schedule: str, steps: int) -> None:
    levels = schedule_levels(schedule, steps)
    assert levels.shape == (steps + 1,)
    assert levels.dtype == torch.float64
    assert float(levels[0]) == 0
    assert float(levels[-1]) == 1
    assert bool((levels.diff() > 0).all())


def test_schedules_by_hand() -> None:
    torch.testing.assert_close(
        schedule_levels("linear", 4), torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    )
    torch.testing.assert_close(
        schedule_levels("cosine", 3),
        torch.tensor([0, 1 - math.sqrt(3) / 2, 0.5, 1], dtype=torch.float64),
    )
    lengths = torch.tensor([10, 4, 10])
    given_ = torch.tensor([0, 0, 6])
    # Linear, four steps: 10 free keep ⌊7.5⌋, 5, ⌊2.5⌋, 0 masked.
    assert fixed_cuts("linear", 4, given_, lengths).tolist() == [
        [0, 3, 5, 8, 10],
        [0, 1, 2, 3, 4],
        [6, 7, 8, 9, 10],
    ]
    # Cosine, three steps: 10 keep ⌊8.66⌋, 5, 0.
    assert fixed_cuts("cosine", 3, given_, lengths)[0].tolist() == [0, 2, 5, 10]


@given(
    st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.integers(1, 80), st.integers(0, 80)
)
@settings(max_examples=100, deadline=None)
def test_cuts_rise_from_given_to_length(
    schedule: str, steps: int, length: int, given_: int
) -> None:
    given_ = min(given_, length)
    cuts = fixed_cuts(schedule, steps, torch.tensor([given_]), torch.tensor([length]))[0]
    assert cuts.shape == (steps + 1,)
    assert int(cuts[0]) == given_
    assert int(cuts[-1]) == length
    assert bool((cuts.diff() >= 0).all())
    if given_ < length:
        assert int(cuts[1]) > given_  # the first step always reveals one


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_random_counts_are_the_bernoulli_process(schedule: str) -> None:
    """With counts="random" each free position falls into step j with probability α_j − α_{j−1}.

    χ² of 20000 rows' counts known after the first step against Binomial(6, α_1), and after the
    second given the first against Binomial(rest, (α_2 − α_1)/(1 − α_1)); false alarm 1e-6 each.
    Guards against a level one off and against one uniform for a whole row.
    """
    steps, number = 4, 20_000
    chain = Chain()
    free = chain.length
    sampler = Ancestral(steps, "random", schedule)  # type: ignore[arg-type]
    levels = schedule_levels(schedule, steps).tolist()
    tokens = torch.full((number, free), chain.mask_id)
    lengths = torch.full((number,), free)
    cuts = sampler.init(
        Canvas(tokens, lengths, torch.arange(number), chain.mask_id), Uniforms(4)
    ).cuts

    def binomial(n: int, p: float) -> torch.Tensor:
        return torch.tensor([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])

    assert bool((cuts[:, 0] == 0).all())
    assert bool((cuts[:, -1] == free).all())
    first = cuts[:, 1]
    counts = first.bincount(minlength=free + 1)
    assert chi_square(counts, binomial(free, levels[1])) > FALSE_ALARM
    share = (levels[2] - levels[1]) / (1 - levels[1])
    for known in (0, 1):
        second = (cuts[:, 2] - first)[first == known]
        rest = free - known
        assert chi_square(second.bincount(minlength=rest + 1), binomial(rest, share)) > FALSE_ALARM


def test_random_counts_cost_no_empty_pass() -> None:
    """Passes equal the steps that revealed something, never more than the steps asked for."""
    model = specmask.wrap(Chain())
    out = specmask.sample(model, Ancestral(50, "random"), num=300, batch_size=300)
    assert int(out.trunk_passes.max()) <= 6  # one per token at most
    assert int(out.trunk_passes.min()) >= 1
    out = specmask.sample(model, Ancestral(2, "random"), num=300, batch_size=300)
    assert set(out.trunk_passes.tolist()) == {1, 2}
