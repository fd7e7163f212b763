"""Randomness and draws: known answers first, statistics last."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from oracle import FALSE_ALARM, chi_square
from specmask import UserError
from specmask.categorical import (
    Purpose,
    accept_block,
    accept_prefix,
    draw,
    draw_residual,
    log_probabilities,
    philox,
    run_ratio,
    uniform,
)
from specmask.samplers.base import Uniforms

LAST = 1 - 2.0**-53
"""The largest uniform there is."""


def f64(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---------------------------------------------------------------------------------------- philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_published_answers(counter: str, key: str, words: str) -> None:
    """Known answers of Random123's `kat_vectors` for philox4x32-10."""

    def parse(text: str) -> list[int]:
        return [int(word, 16) for word in text.split()]

    first, second = parse(key)
    got = philox(tuple(torch.tensor([w]) for w in parse(counter)), (first, second))  # type: ignore[arg-type]
    assert [int(word) for word in got] == parse(words)


def test_uniform_is_made_of_the_first_two_words() -> None:
    """53 bits: 27 of the first word above 26 of the second; the seed's halves are the key."""
    first, second = 0x6627E8D5, 0xE169C58D
    expected = ((first >> 5) * 2**26 + (second >> 6)) / 2**53
    assert float(uniform(0, torch.tensor(0))) == expected
    key = 0x299F31D0_A4093822
    words = [torch.tensor(w) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    assert float(uniform(key, *words)) == ((0xD16CFE09 >> 5) * 2**26 + (0x94FDCCEB >> 6)) / 2**53


def test_uniform_depends_on_every_word_and_on_nothing_else() -> None:
    rows, positions = torch.arange(4)[:, None], torch.arange(6)
    whole = uniform(7, rows, positions, Purpose.DRAFT, 2)
    assert whole.shape == (4, 6)
    assert whole.dtype == torch.float64
    assert torch.equal(uniform(7, rows[2:], positions[3:], Purpose.DRAFT, 2), whole[2:, 3:])
    for other in (
        uniform(8, rows, positions, Purpose.DRAFT, 2),
        uniform(7 + 2**32, rows, positions, Purpose.DRAFT, 2),
        uniform(7, rows, positions, Purpose.ACCEPT, 2),
        uniform(7, rows, positions, Purpose.DRAFT, 3),
        uniform(7, rows + 4, positions, Purpose.DRAFT, 2),
        uniform(7, rows, positions + 6, Purpose.DRAFT, 2),
    ):
        assert not bool((other == whole).any())


def test_purposes_share_no_number() -> None:
    assert len({int(p) for p in Purpose}) == len(Purpose.__members__)


def test_uniform_refuses_a_seed_out_of_range() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            uniform(seed, torch.tensor(0))


def test_uniforms_are_uniform_and_independent() -> None:
    """χ² over a 32 × 32 grid of neighbours in each word; false alarm 1e-6 each. Guards against a
    word that is not mixed in, e.g. row and position added up."""
    n = torch.arange(100_000)
    base = uniform(3, n, 5, 1, 9)
    for other in (
        uniform(3, n + 1, 5, 1, 9),
        uniform(3, n, 6, 1, 9),
        uniform(3, n, 5, 2, 9),
        uniform(3, n, 5, 1, 10),
        uniform(4, n, 5, 1, 9),
    ):
        cell = (base * 32).long() * 32 + (other * 32).long()
        assert chi_square(cell.bincount(minlength=1024), torch.ones(1024)) > FALSE_ALARM
    assert float(base.min()) >= 0
    assert float(base.max()) < 1


# ------------------------------------------------------------------------------------- tempering


def test_log_probabilities_are_a_float64_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0]])
    got = log_probabilities(logits)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, logits.double().log_softmax(-1))


def test_temperature_divides_the_logits() -> None:
    logits = f64(math.log(0.5), math.log(0.3), math.log(0.2))
    got = log_probabilities(logits, temperature=0.5).exp()
    torch.testing.assert_close(got, f64(0.25, 0.09, 0.04) / 0.38)


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    got = log_probabilities(f64(1, 4, 4, 2), temperature=0).exp()
    assert got.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
def test_a_tiny_temperature_takes_the_largest(temperature: float) -> None:
    """Guards against logits / temperature = inf, whose softmax is NaN."""
    got = log_probabilities(f64(1, 4, -3), temperature).exp()
    assert got.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.3, [0, 1, 0, 0]),
        (0.51, [0, 5 / 8, 3 / 8, 0]),
        (0.79, [0, 5 / 8, 3 / 8, 0]),
        (0.85, [0, 50 / 95, 30 / 95, 15 / 95]),
        (0.96, [0.05, 0.5, 0.3, 0.15]),
        (1.0, [0.05, 0.5, 0.3, 0.15]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, expected: list[float]) -> None:
    """By hand; the symbols are not in order of probability."""
    logits = f64(0.05, 0.5, 0.3, 0.15).log()
    torch.testing.assert_close(log_probabilities(logits, 1.0, top_p).exp(), f64(*expected))


def test_top_p_acts_after_temperature() -> None:
    """Temperature ½ turns (.5, .3, .2) into (.66, .24, .11): .6 then keeps one symbol, not two."""
    logits = f64(0.5, 0.3, 0.2).log()
    assert log_probabilities(logits, 0.5, 0.6).exp().tolist() == [1, 0, 0]


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=8),
    st.floats(0.05, 3),
    st.floats(0.01, 1),
)
@settings(max_examples=60, deadline=None)
def test_tempered_probabilities_are_a_law(
    logits: list[float], temperature: float, top_p: float
) -> None:
    """They sum to one, keep the likeliest, and drop nothing likelier than what they keep."""
    got = log_probabilities(f64(*logits), temperature, top_p).exp()
    plain = log_probabilities(f64(*logits), temperature).exp()
    assert float(got.sum()) == pytest.approx(1, abs=1e-12)
    kept = got > 0
    assert float(plain[kept].sum()) >= top_p - 1e-9
    assert float(plain[kept].min()) >= float(plain.masked_fill(kept, 0).max())
    ratio = got[kept] / plain[kept]
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-9)


# ----------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(
    ("u", "symbol"),
    [
        (0.0, 0),
        (0.25 - 2**-54, 0),
        (0.25, 1),
        (0.5 - 2**-54, 1),
        (0.5, 3),
        (0.75 - 2**-53, 3),
        (0.75, 4),
        (LAST, 4),
    ],
)
def test_draw_cuts_exactly_at_the_cell_borders(u: float, symbol: int) -> None:
    """Symbol s belongs to u in [F(s−1), F(s)); 2 has no probability."""
    assert int(draw(f64(0.25, 0.25, 0, 0.25, 0.25)[None], f64(u))) == symbol


@pytest.mark.parametrize("u", [0.0, 2.0**-53, 0.5, LAST])
@pytest.mark.parametrize(
    "weights",
    [
        [0, 0, 1, 0, 0],
        [0, 0.1, 0, 0.2, 0.7, 0],
        [0, 5e-324, 0],
        [0, 1e-300, 0, 1e-300, 0],
        [0, 1e300, 0, 1e-300],
        [0.1] * 10 + [0],
        [0, 1 / 3, 1 / 3, 1 / 3, 0],
    ],
)
def test_a_symbol_of_probability_zero_is_never_drawn(weights: list[float], u: float) -> None:
    assert weights[int(draw(f64(*weights)[None], f64(u)))] > 0


@given(
    st.lists(st.sampled_from([0.0, 1e-12, 0.1, 1 / 3, 1.0, 7.0]), min_size=1, max_size=9),
    st.integers(0, 2**53 - 1),
)
@settings(max_examples=150, deadline=None)
def test_draw_inverts_the_cumulative_sum(weights: list[float], bits: int) -> None:
    """Never a symbol without weight; never one whose cell is far from u·total."""
    if not sum(weights):
        return
    u = bits * 2.0**-53
    symbol = int(draw(f64(*weights)[None], f64(u)))
    assert weights[symbol] > 0
    below, total = math.fsum(weights[:symbol]), math.fsum(weights)
    assert below - 1e-12 * total <= u * total <= below + weights[symbol] + 1e-12 * total


def test_draws_follow_the_weights() -> None:
    """χ² of 2e5 draws; false alarm 1e-6. Guards against unnormalised weights and float32."""
    weights = f64(3, 0, 1, 0.01, 5, 0.5)
    u = uniform(11, torch.arange(200_000))
    counts = draw(weights.expand(len(u), -1), u).bincount(minlength=6)
    assert chi_square(counts, weights) > FALSE_ALARM


def test_rare_symbols_have_cells_of_their_own() -> None:
    """50257 symbols, 50256 of them sharing 1e-4: the middle of each cell, 2e-9 wide, draws its
    symbol. Guards against float32, which merges such cells and so thins the tail."""
    weights = torch.full((50_257,), 1e-4 / 50_256, dtype=torch.float64)
    weights[17] = 1 - 1e-4
    symbols = torch.tensor([0, 16, 17, 18, 19, 1000, 25_000, 50_255, 50_256])
    middle = weights.cumsum(0)[symbols] - weights[symbols] / 2
    assert torch.equal(draw(weights.expand(len(symbols), -1), middle), symbols)


# ---------------------------------------------------------------------- accept, reject, residual


def test_accept_prefix_by_hand() -> None:
    """Ratios 2, ½, ½ | u .9 accepts 2 only; the scan ends at the first rejection or outside."""
    log_q = f64(0.2, 0.4, 0.4).log().expand(5, 3)
    log_p = f64(0.4, 0.2, 0.2).log().expand(5, 3)
    u = torch.stack(
        (
            f64(0.9, 0.9, 0.1),  # rejects the second; the third no longer counts
            f64(0.9, 0.49, 0.51),
            f64(LAST, 0.49, 0.49),
            f64(0, 0, 0),  # its window holds two
            f64(0, 0, 0),  # its window is empty
        )
    )
    inside = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert accept_prefix(log_q, log_p, u, inside).tolist() == [1, 2, 3, 2, 0]


def test_run_ratio_by_hand() -> None:
    """Ratios 2, ½, ½, 4, 2 | held at 1; a draft that the target excludes ends the run for good."""
    log_q = f64(0.2, 0.4, 0.4, 0.1, 0.2).log()
    log_p = f64(0.4, 0.2, 0.2, 0.4, 0.4).log()
    torch.testing.assert_close(run_ratio(log_q, log_p).exp(), f64(1, 1, 0.5, 0.25, 1, 1))
    excluded = run_ratio(log_q, f64(0.4, 0, 0.2, 0.4, 0.4).log())
    assert excluded.exp().tolist() == [1, 1, 0, 0, 0, 0]
    impossible = run_ratio(f64(0, 0.5, 0).log(), f64(0, 0.25, 0.5).log())
    torch.testing.assert_close(impossible.exp(), f64(1, 1, 0.5, 0.5))


def test_accept_block_by_hand() -> None:
    """c = 1, 1, ½, ¼ and s_2 = .1: h = 1, .1/.6, ¼; the longest that passes is accepted."""
    log_c = f64(1, 1, 0.5, 0.25).log().expand(6, 4)
    excess = f64(0.3, 0.3, 0.1).expand(6, 3)
    u = torch.stack(
        (
            f64(LAST, 0.17, 0.24),  # the whole window, though two do not pass
            f64(LAST, 0.16, 0.26),
            f64(LAST, 0.17, 0.26),  # c = 1 always passes
            f64(LAST, 0.49, 0),  # its window holds two: h = c = ½ there
            f64(LAST, 0.51, 0),
            f64(0, 0, 0),  # its window is empty
        )
    )
    inside = torch.ones(6, 3, dtype=torch.bool)
    inside[3:5, 2], inside[5] = False, False
    assert accept_block(log_c, excess, u, inside).tolist() == [3, 2, 1, 2, 1, 0]


def test_a_block_of_equal_laws_is_accepted_whole() -> None:
    """s = 0 and c = 1 at every rank: h is 0/0 but at the end."""
    sure = torch.zeros(1, 4, dtype=torch.float64)
    inside = torch.ones(1, 3, dtype=torch.bool)
    assert accept_block(sure, sure[:, 1:], f64(LAST, LAST, LAST)[None], inside).tolist() == [3]


def test_what_the_target_excludes_is_rejected_and_equal_laws_never_are() -> None:
    inside = torch.ones(1, 1, dtype=torch.bool)
    log_half, never = f64(0.5).log()[None], f64(0.0).log()[None]
    for u in (0.0, 0.5, LAST):
        assert accept_prefix(log_half, never, f64(u)[None], inside).tolist() == [0]
        assert accept_prefix(log_half, log_half, f64(u)[None], inside).tolist() == [1]


def test_the_residual_is_what_the_draft_lacks() -> None:
    """(p − q)₊ by hand: (0, .1, .3); its border is at a quarter."""
    q, p = f64(0.6, 0.3, 0.1)[None], f64(0.2, 0.4, 0.4)[None]
    for u, symbol in ((0.0, 1), (0.2499, 1), (0.2501, 2), (LAST, 2)):
        assert draw_residual(q, p, f64(u)).tolist() == [symbol]


def test_a_vanished_residual_draws_from_the_target() -> None:
    q = f64(0.2, 0.3, 0.5)[None]
    for p in (q, q + f64(1e-16, -1e-16, 0), q + f64(-1e-14, 0, 1e-14)):
        assert [int(draw_residual(q, p, f64(u))) for u in (0.1, 0.4, 0.9)] == [0, 1, 2]


def test_draft_verdict_and_residual_together_draw_the_target() -> None:
    """χ² of 2e5 one-rank rounds against p; false alarm 1e-6. Guards against a ratio the wrong
    way round, and a residual from p."""
    q, p = f64(0.5, 0.3, 0.15, 0.05), f64(0.1, 0.35, 0.05, 0.5)
    n = torch.arange(200_000)
    draft = draw(q.expand(len(n), -1), uniform(2, n, 0, Purpose.DRAFT))
    accepted = accept_prefix(
        q.log()[draft][:, None],
        p.log()[draft][:, None],
        uniform(2, n, 0, Purpose.ACCEPT)[:, None],
        torch.ones(len(n), 1, dtype=torch.bool),
    )
    other = draw_residual(
        q.expand(len(n), -1), p.expand(len(n), -1), uniform(2, n, 0, Purpose.RESIDUAL)
    )
    counts = torch.where(accepted == 1, draft, other).bincount(minlength=4)
    assert chi_square(counts, p) > FALSE_ALARM


def test_uniforms_launch_few_operations() -> None:
    """A GPU is told of each, and of operations this small that is what takes the time."""

    class Count(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            views = {"select", "unbind", "expand", "unsqueeze", "view", "alias"}
            self.made += func._schema.name.removeprefix("aten::") not in views
            return func(*args, **(kwargs or {}))

    rows, positions = torch.arange(3)[:, None], torch.arange(5)
    uniform(7, rows, positions, Purpose.DRAFT, 2)  # the key's words are kept from here on
    with Count() as count:
        uniform(7, rows, positions, Purpose.DRAFT, 2)
    assert count.made <= 75


def test_several_purposes_at_once_are_those_one_by_one() -> None:
    draw, rows, positions = Uniforms(7), torch.tensor([4, 9]), torch.tensor([[0, 3], [2, 1]])
    both = draw(rows, positions, torch.tensor([2, 3])[:, None, None], torch.tensor([5, 6]))
    for one, purpose in zip(both, (Purpose.ACCEPT, Purpose.RESIDUAL), strict=True):
        assert torch.equal(one, draw(rows, positions, purpose, torch.tensor([5, 6])))


@pytest.mark.parametrize("word", [-1, 2**32])
def test_a_counter_that_is_no_word_is_refused(word: int) -> None:
    """It would share the random numbers of another."""
    with pytest.raises(UserError, match="expected 0 to 2³²−1"):
        uniform(7, torch.arange(3), 0, Purpose.DRAFT, word)
