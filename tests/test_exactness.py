"""The law that `likelihood` states is the law that the samplers draw from, to the last bit.

Networks of V = 3, D = 5 in float64 have 243 rows and 120 orders: sums are taken over all of them.
Each χ² here fails by chance with odds `FALSE_ALARM` = 1e-6, each comparison of means at four
standard errors with odds 6e-5; seeds are fixed, so a failure is one forever.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import specmask
from oracle import (
    FALSE_ALARM,
    Chain,
    all_orders,
    all_rows,
    chi_square,
    code,
    enumerated,
    masked,
    standard_errors,
    tiny_network,
)
from specmask import (
    Ancestral,
    AnyOrder,
    AnySubset,
    Confidence,
    ConstantWindow,
    CosineWindow,
    Dilated,
    EntropyBound,
    FirstHitting,
    FullWindow,
    HybridTransformer,
    Klass,
    LearnedPolicy,
    LinearWindow,
    Optimal,
    PathPlanning,
    ReMDM,
    RunningConfidence,
    Samples,
    Score,
    Speculative,
    Star,
    Threshold,
    likelihood,
)
from specmask.models.guides import (
    ErrorHead,
    ErrorHeadConfig,
    Guide,
    PolicyConfig,
    UnmaskingPolicy,
)

VOCAB, LENGTH = 3, 5
WINDOWS = {
    "cosine": CosineWindow(0.35),
    "linear": LinearWindow(0.4),
    "constant": ConstantWindow(3),
    "full": FullWindow(),
}
ROUNDS = (1, 2, 3, 8)
FIRST = ("verify", "accept")
TEMPERING = {"untempered": (1.0, 1.0), "tempered": (0.7, 0.9)}
SPECULATIVE = {
    f"{window}-{rounds}-{first}-{tempering}": Speculative(
        WINDOWS[window], rounds, first, "random", *TEMPERING[tempering]
    )
    for window, rounds, first, tempering in product(WINDOWS, ROUNDS, FIRST, TEMPERING)
}
BEYOND = {
    f"{name}-{kind}": replace(sampler, verification=verification, stop=stop)
    for name, sampler in SPECULATIVE.items()
    if sampler.rounds <= 3
    for kind, verification, stop in (
        ("block", "block", 0.0),
        ("stop", "token", 0.6),  # half of the drafts are surer than that
        ("block-stop", "block", 0.6),
    )
}
PLAIN = {
    f"{name}-{tempering}": kind(temperature=temperature, top_p=top_p)
    for tempering, (temperature, top_p) in TEMPERING.items()
    for name, kind in {
        "ancestral-cosine": lambda **kw: Ancestral(2, "fixed", "cosine", **kw),
        "ancestral-linear": lambda **kw: Ancestral(3, "fixed", "linear", **kw),
        "any-order-draft": lambda **kw: AnyOrder("draft", **kw),
        "any-order-target": lambda **kw: AnyOrder("target", **kw),
        "first-hitting": lambda **kw: FirstHitting(**kw),
    }.items()
}
SETTINGS = {**SPECULATIVE, **PLAIN, **BEYOND}
ROWS = all_rows(VOCAB, LENGTH)
ORDERS = {1: all_orders(LENGTH), 2: all_orders(LENGTH)[::5]}
"""By head layers: the orders that are scored. Left to right is the first."""


@cache
def table(head_layers: int, temperature: float, top_p: float) -> likelihood.Conditionals:
    """The conditionals of every order (slow index) and row (fast index)."""
    orders = ORDERS[head_layers]
    return specmask.conditionals(
        specmask.wrap(enumerated(head_layers)),
        ROWS.repeat(len(orders), 1),
        orders.repeat_interleave(len(ROWS), 0),
        temperature=temperature,
        top_p=top_p,
        best=True,
        batch_size=10_000,
    )


@cache
def scores(head_layers: int, sampler: Speculative | Ancestral | AnyOrder | FirstHitting) -> Score:
    """Probability and expected cost of every (order, row), each (orders, 243)."""
    law = sampler.law()
    score = specmask.score(table(head_layers, law.temperature, law.top_p), law)
    return Score(*(x.view(-1, len(ROWS)) for x in vars(score).values()))


def draw(head_layers: int, sampler: object, number: int, seed: int = 0) -> Samples:
    model = specmask.wrap(enumerated(head_layers))
    return specmask.sample(model, sampler, num=number, length=LENGTH, seed=seed, batch_size=50_000)


# ----------------------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_law_sums_to_one_for_every_order(name: str, head_layers: int) -> None:
    """Σ_x p(x|σ) = 1 for all 120 orders (24 with two head layers).

    Guards the recursion's leaves, ends and rounds.
    """
    total = scores(head_layers, SETTINGS[name]).log_prob.exp().sum(1)
    assert (total - 1).abs().max() < 1e-10


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize("name", list(SETTINGS)[::5] + list(PLAIN))
def test_the_network_itself_gives_the_enumerated_law(name: str, head_layers: int) -> None:
    """`log_prob` with the network's own keys and values, in its own band, for one random order."""
    sampler, order = SETTINGS[name], 19
    model = specmask.wrap(tiny_network(head_layers))
    orders = ORDERS[head_layers][order].expand_as(ROWS)
    got = specmask.evaluate(model, ROWS, orders, sampler, batch_size=500)
    assert abs(got.log_prob.exp().sum() - 1) < 1e-10
    expected = scores(head_layers, sampler)
    torch.testing.assert_close(got.log_prob, expected.log_prob[order], rtol=0, atol=1e-9)
    possible = got.log_prob > -math.inf
    for cost, exact in ((got.trunk, expected.trunk), (got.verify, expected.verify)):
        torch.testing.assert_close(cost[possible], exact[order][possible], rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------- literal recursion


class Literal:
    """method.md §6 and §7 as they are written, on plain probabilities, by memoised recursion.

    Tables come from one `features` call per prefix. Costs are carried as Σ over the sampler's
    accidents of probability times passes, and divided by the probability at the end.
    """

    def __init__(
        self, network: HybridTransformer, tokens: Tensor, order: Tensor, sampler: Speculative
    ) -> None:
        self.length, self.sampler = len(tokens), sampler
        rows, orders = (x.expand(self.length, -1) for x in (tokens, order))
        seen = masked(rows, orders, torch.arange(self.length), network.mask_id)
        with torch.inference_mode():
            logits = [network.logits(x).tolist() for x in network.features(seen, rows, orders)]
        draft, target = ([[self._temper(at) for at in row] for row in law] for law in logits)
        symbols = tokens[order].tolist()
        self.q, self.p = (
            [[at[symbol] for at, symbol in zip(row, symbols, strict=True)] for row in law]
            for law in (draft, target)
        )
        self.best = [[max(at) for at in row] for row in draft]
        self.leaf = cache(self._leaf)
        self.inner = cache(self._inner)

    def _temper(self, logits: list[float]) -> list[float]:
        weights = [math.exp(v / self.sampler.temperature) for v in logits]
        probabilities = [w / sum(weights) for w in weights]
        kept, mass = set(), 0.0
        for v in sorted(range(len(weights)), key=lambda v: -probabilities[v]):
            if mass < self.sampler.top_p:
                kept.add(v)
                mass += probabilities[v]
        return [p / mass if v in kept else 0.0 for v, p in enumerate(probabilities)]

    def _end(self, i: int) -> int:
        for e in range(i + 1, self._window_end(i)):
            if self.best[i][e] < self.sampler.stop:
                return e
        return self._window_end(i)

    def _window_end(self, i: int) -> int:
        window, free = self.sampler.window, self.length - i
        if isinstance(window, FullWindow):
            return self.length
        if isinstance(window, ConstantWindow):
            return i + min(free, window.k)
        if isinstance(window, LinearWindow):
            return i + min(free, max(1, math.ceil(self.length * window.step - 1e-9)))
        assert isinstance(window, CosineWindow)
        tau = 2 / math.pi * math.acos(1 - i / self.length)
        level = 1 - math.cos(math.pi / 2 * min(1, tau + window.step))
        return i + min(free, max(1, math.ceil(self.length * level - 1e-9) - i))

    def _leaf(self, i: int) -> tuple[float, float, float]:
        """L(i), with the passes still to come."""
        if i == self.length:
            return 1.0, 0.0, 0.0
        total, trunk, verify = self.inner(i, i, self.sampler.rounds)
        free_of_charge = self.sampler.first == "accept" and self._end(i) == i + 1
        return total, trunk + total, verify + (0 if free_of_charge else total)

    def _inner(self, i: int, d: int, n: int) -> tuple[float, float, float]:
        """G_i(d, n)."""
        end = self._end(i)
        if d == end:
            return self.leaf(end)
        if self.sampler.verification == "block":
            return self._block(i, d, n)
        q, p = self.q[i][d], self._target(i, d)
        accept, reject = min(q, p), max(p - q, 0.0)
        kept, other = self.inner(i, d + 1, n), self._next(i, d + 1, n - 1)
        a, b, c = (accept * x + reject * y for x, y in zip(kept, other, strict=True))
        return a, b, c

    def _block(self, i: int, d: int, n: int) -> tuple[float, float, float]:
        """G_i(d, n) of §7."""
        drafted, c, found = 1.0, 1.0, [0.0, 0.0, 0.0]
        end = self._end(i)
        for e in range(d, end + 1):
            q, p = (self.q[i][e], self._target(i, e)) if e < end else (0.0, 1.0)
            other = self._next(i, min(e + 1, end), n - 1)
            share = drafted * max(c * p - q, 0.0)
            found = [x + share * y for x, y in zip(found, other, strict=True)]
            drafted, c = drafted * q, min(1.0, c * p / q) if q > 0 else 0.0
        return found[0], found[1], found[2]

    def _target(self, i: int, d: int) -> float:
        return (self.q if self.sampler.first == "accept" and d == i else self.p)[i][d]

    def _next(self, i: int, e: int, m: int) -> tuple[float, float, float]:
        """G_i(e, m) after one more verify pass where a round and a rank are left, else L(e)."""
        if m == 0 or e == self._end(i):
            return self.leaf(e)
        total, trunk, verify = self.inner(i, e, m)
        return total, trunk, verify + total


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize("name", [*SPECULATIVE, *BEYOND])
def test_the_recursion_is_the_literal_one(name: str, head_layers: int) -> None:
    """Probability and expected passes of 12 (row, order) pairs against `Literal`."""
    sampler = SETTINGS[name]
    assert isinstance(sampler, Speculative)
    network = tiny_network(head_layers)
    generator = torch.Generator().manual_seed(5)
    rows = ROWS[torch.randint(len(ROWS), (12,), generator=generator)]
    orders = ORDERS[1][torch.randint(len(ORDERS[1]), (12,), generator=generator)]
    got = specmask.evaluate(specmask.wrap(network), rows, orders, sampler)
    for k in range(len(rows)):
        total, trunk, verify = Literal(network, rows[k], orders[k], sampler).leaf(0)
        assert float(got.log_prob[k].exp()) == pytest.approx(total, abs=1e-12, rel=1e-9)
        if total > 0:
            assert float(got.trunk[k]) == pytest.approx(trunk / total, rel=1e-9)
            assert float(got.verify[k]) == pytest.approx(verify / total, rel=1e-9)


# --------------------------------------------------------------------------------------- samples


def assert_costs(out: Samples, score: Score) -> None:
    """Metered passes minus expected ones, paired per sample, within four standard errors of 0."""
    at = enumerated(1).order_index[code(out.order, LENGTH)], code(out.tokens, VOCAB)
    assert standard_errors(out.trunk_passes - score.trunk[at]) < 4
    assert standard_errors(out.verify_passes - score.verify[at]) < 4


@pytest.mark.parametrize("name", [*SPECULATIVE, *list(BEYOND)[::5]])
def test_samples_follow_the_law(name: str) -> None:
    """χ² of samples against the mixture over all 120 orders, for every setting of the grid.

    5e4 samples, half of that where tempered; a million below. False alarm 1e-6, and 6e-5 for each
    mean. Guards against a ratio the wrong way round, a residual drawn from p, a window one off,
    drafts kept after they were judged, a uniform used twice.
    """
    sampler = SETTINGS[name]
    out = draw(1, sampler, 50_000 if sampler.temperature == 1 else 25_000)
    score = scores(1, sampler)
    counts = code(out.tokens, VOCAB).bincount(minlength=len(ROWS))
    mixture = score.log_prob.exp().mean(0)
    assert not bool(counts[mixture == 0].any())
    assert chi_square(counts, mixture) > FALSE_ALARM
    assert_costs(out, score)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_samples_follow_the_law(name: str) -> None:
    """χ² of 5e4 samples of Ancestral (fixed counts) and AnyOrder; false alarm 1e-6.

    Guards against groups cut one off and a source mistaken for the other.
    """
    out, score = draw(1, PLAIN[name], 50_000), scores(1, PLAIN[name])
    counts = code(out.tokens, VOCAB).bincount(minlength=len(ROWS))
    assert chi_square(counts, score.log_prob.exp().mean(0)) > FALSE_ALARM
    assert_costs(out, score)


@pytest.mark.parametrize(
    "name",
    [
        "cosine-2-verify-untempered",
        pytest.param("full-3-accept-untempered", marks=pytest.mark.slow),
        "full-3-verify-untempered-block",
    ],
)
def test_a_million_samples_follow_the_joint_law_of_order_and_row(name: str) -> None:
    """χ² over the 29160 cells (σ, x): 1/120·p(x|σ); false alarm 1e-6, 6e-5 for each mean.

    Guards against an order that is not uniform, an order reported that was not the one used, and
    dependence between the order's uniforms and the tokens'.
    """
    sampler = SETTINGS[name]
    out, score = draw(1, sampler, 1_000_000, seed=1), scores(1, sampler)
    cell = enumerated(1).order_index[code(out.order, LENGTH)] * len(ROWS) + code(out.tokens, VOCAB)
    counts = cell.bincount(minlength=len(ORDERS[1]) * len(ROWS))
    assert chi_square(counts, score.log_prob.exp()) > FALSE_ALARM
    assert_costs(out, score)


@pytest.mark.parametrize(
    ("window", "rounds", "first"), [("full", 1, "verify"), ("cosine", 3, "accept")]
)
def test_left_to_right_samples_follow_the_law_of_that_order(
    window: str, rounds: int, first: str
) -> None:
    """χ² of 1e5 samples of one fixed order over 243 cells; false alarm 1e-6."""
    sampler = Speculative(WINDOWS[window], rounds, first, "left-to-right")  # type: ignore[arg-type]
    out = draw(2, sampler, 100_000)
    assert bool((out.order == torch.arange(LENGTH)).all())
    counts = code(out.tokens, VOCAB).bincount(minlength=len(ROWS))
    score = scores(2, sampler)
    assert chi_square(counts, score.log_prob[0].exp()) > FALSE_ALARM
    assert_costs(out, score)


@pytest.mark.parametrize("head_layers", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "full-8-verify-untempered",
        "cosine-2-accept-tempered",
        "full-3-verify-untempered-block",
        "full-2-accept-tempered-block-stop",
    ],
)
def test_the_network_draws_what_its_enumeration_draws(name: str, head_layers: int) -> None:
    """Row by row the same 4000 samples: the cache of keys and values changes nothing."""
    slow = specmask.sample(
        specmask.wrap(tiny_network(head_layers)), SETTINGS[name], num=4000, batch_size=4000
    )
    fast = draw(head_layers, SETTINGS[name], 4000)
    for field in ("tokens", "order", "trunk_passes", "verify_passes", "accepted", "rejected"):
        assert torch.equal(getattr(slow, field), getattr(fast, field)), field


@pytest.mark.parametrize("verification", ["token", "block"])
@pytest.mark.parametrize("first", FIRST)
def test_enough_rounds_draw_a_window_from_the_target(first: Any, verification: Any) -> None:
    """N ≥ D and a full window: p(x|σ) = Π_d p_0(d), with p_0(0) := q_0(0) under accept
    (method.md §4)."""
    both = table(1, 1.0, 1.0)
    assert both.log_p is not None
    log_p = both.log_p[:, 0].clone()
    if first == "accept":
        log_p[:, 0] = both.log_q[:, 0, 0]
    expected = log_p.sum(-1).view(-1, len(ROWS))
    sampler = Speculative(FullWindow(), rounds=LENGTH, first=first, verification=verification)
    torch.testing.assert_close(scores(1, sampler).log_prob, expected, rtol=0, atol=1e-10)


def mean_passes(sampler: Speculative) -> tuple[float, float]:
    """E over orders and the sampler's own rows of (trunk, verify) passes."""
    score = scores(1, sampler)
    law = score.log_prob.exp() / len(score.log_prob)
    trunk, verify = ((law * x.nan_to_num()).sum() for x in (score.trunk, score.verify))
    return float(trunk), float(verify)


@pytest.mark.parametrize(
    "name", [name for name in BEYOND if name.endswith(("block", "block-stop"))]
)
def test_block_verification_needs_no_more_passes(name: str) -> None:
    """Of a round's drafts it accepts no fewer on average (arXiv 2403.10444, Theorem 2), and so on
    this network it needs no more passes of either kind; fewer where three drafts are judged."""
    block = BEYOND[name]
    token = mean_passes(replace(block, verification="token"))
    joint = mean_passes(block)
    assert all(new <= old + 1e-12 for new, old in zip(joint, token, strict=True))
    if isinstance(block.window, FullWindow):
        assert joint[1] < token[1] - 1e-3


@pytest.mark.parametrize("first", FIRST)
def test_a_stop_of_one_reveals_a_rank_a_pass(first: Any) -> None:
    """No draft is certain here: the window holds its first rank alone, as `ConstantWindow(1)`."""
    stopped = scores(1, Speculative(FullWindow(), 2, first, stop=1.0))
    single = scores(1, Speculative(ConstantWindow(1), 2, first))
    for field in ("log_prob", "trunk", "verify"):
        assert torch.equal(getattr(stopped, field), getattr(single, field))


# ------------------------------------------------------------------- canvases and rows that differ


@pytest.mark.parametrize(
    "name",
    [
        "cosine-2-verify-untempered",
        "full-1-accept-tempered",
        "full-2-verify-untempered-block",
        "full-2-verify-untempered-stop",
    ],
)
def test_a_canvas_is_filled_by_the_law_of_the_rest(name: str) -> None:
    """Two tokens given: 4e4 samples against `log_prob(given=2)`, mixed over the 3! orders of the
    rest; χ² with false alarm 1e-6. Guards windows and prefixes that ignore what was given."""
    sampler, number = SETTINGS[name], 40_000
    network = enumerated(2)
    blank = torch.tensor([network.mask_id, 2, network.mask_id, network.mask_id, 0])
    model = specmask.wrap(network)
    out = specmask.sample(
        model, sampler, canvas=blank.expand(number, -1), batch_size=number, seed=3
    )
    assert bool((out.tokens[:, [1, 4]] == torch.tensor([2, 0])).all())
    assert bool((out.order[:, :2].sort(1).values == torch.tensor([1, 4])).all())

    free = torch.tensor([0, 2, 3])
    fills = all_rows(VOCAB, 3)
    rows = blank.repeat(len(fills), 1)
    rows[:, free] = fills
    law, trunk, verify = [], [], []
    for tail in all_orders(3):
        order = torch.cat((torch.tensor([1, 4]), free[tail])).expand_as(rows)
        score = specmask.evaluate(model, rows, order, sampler, given=2)
        assert abs(float(score.log_prob.exp().sum()) - 1) < 1e-10
        law.append(score.log_prob.exp())
        trunk.append(score.trunk)
        verify.append(score.verify)
    cell = code(out.tokens[:, free], VOCAB)
    assert chi_square(cell.bincount(minlength=27), torch.stack(law).mean(0)) > FALSE_ALARM
    tails = code(all_orders(3), 3)
    rank = torch.full((LENGTH,), -1)
    rank[free] = torch.arange(3)
    which = (code(rank[out.order[:, 2:]], 3)[:, None] == tails).long().argmax(1)
    assert standard_errors(out.trunk_passes - torch.stack(trunk)[which, cell]) < 4
    assert standard_errors(out.verify_passes - torch.stack(verify)[which, cell]) < 4


@pytest.mark.parametrize("given", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "cosine-3-verify-untempered",
        "full-2-accept-tempered",
        "full-3-verify-untempered-block",
        "full-2-accept-tempered-block-stop",
        *PLAIN,
    ],
)
def test_ragged_rows_score_as_they_do_alone(name: str, given: int) -> None:
    """Rows of 1..5 tokens in one call against calls of one unpadded row each."""
    sampler = SETTINGS[name]
    model = specmask.wrap(tiny_network(2))
    lengths = torch.tensor([5, 1, 4, 2, 3, 5])
    tokens, order = ROWS[::40][:6].clone(), []
    for k, size in enumerate(lengths.tolist()):
        tokens[k, size:] = (k + torch.arange(LENGTH - size)) % (VOCAB + 1)  # junk, even masks
        head = all_orders(size)[k % math.factorial(size)]
        order.append(torch.cat((head, torch.arange(size, LENGTH))))
    together = specmask.evaluate(
        model, tokens, torch.stack(order), sampler, lengths=lengths, given=given, batch_size=4
    )
    for k, size in enumerate(lengths.tolist()):
        alone = specmask.evaluate(
            model, tokens[k : k + 1, :size], order[k][None, :size], sampler, given=given
        )
        for field in ("log_prob", "trunk", "verify"):
            torch.testing.assert_close(
                getattr(together, field)[k], getattr(alone, field)[0], equal_nan=True
            )


# ----------------------------------------------------------------------------------------- oracle

CHAIN = Chain()
CHAIN_ROWS = all_rows(CHAIN.vocab_size, CHAIN.length)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("beyond", [{}, {"verification": "block", "stop": 0.5}])
def test_with_true_conditionals_the_law_is_the_chain(
    window: str, rounds: int, first: str, beyond: dict[str, Any]
) -> None:
    """log p(x|σ) = log p(x) for 200 rows, each along its own order, to 1e-9.

    Guards the recursion with a law that was computed without it.
    """
    generator = torch.Generator().manual_seed(rounds)
    rows = CHAIN_ROWS[torch.randint(len(CHAIN_ROWS), (200,), generator=generator)]
    order = specmask.random_orders(rows, seed=rounds)
    sampler = Speculative(WINDOWS[window], rounds, first, **beyond)  # type: ignore[arg-type]
    got = specmask.log_prob(specmask.wrap(CHAIN), rows, order, sampler, batch_size=1200)
    torch.testing.assert_close(got, CHAIN.log_prob(rows), rtol=0, atol=1e-9)


def test_the_chain_knows_its_own_marginals() -> None:
    """The oracle itself: chain rule along a random order equals the forward algorithm."""
    order = specmask.random_orders(CHAIN_ROWS, seed=9)
    for source in ("draft", "target"):
        got = specmask.log_prob(
            specmask.wrap(CHAIN), CHAIN_ROWS[:500], order[:500], AnyOrder(source), batch_size=3000
        )
        torch.testing.assert_close(got, CHAIN.log_prob(CHAIN_ROWS[:500]), rtol=0, atol=1e-9)
    assert abs(float(CHAIN.log_prob(CHAIN_ROWS).exp().sum()) - 1) < 1e-12


def _chain_p_value(sampler: object, number: int = 300_000, seed: int = 0) -> float:
    out = specmask.sample(specmask.wrap(CHAIN), sampler, num=number, batch_size=50_000, seed=seed)
    counts = code(out.tokens, CHAIN.vocab_size).bincount(minlength=len(CHAIN_ROWS))
    return chi_square(counts, CHAIN.log_prob(CHAIN_ROWS).exp())


CHAIN_SAMPLERS = {
    "first-hitting": FirstHitting(),
    "any-order-draft": AnyOrder("draft"),
    "any-order-target": AnyOrder("target", "left-to-right"),
    "any-subset-2": AnySubset(k=2),
    "any-subset-5": AnySubset(k=5),
    "random": Speculative(FullWindow(), 1, "verify"),
    "rounds": Speculative(CosineWindow(0.3), 2, "verify"),
    "left-to-right": Speculative(ConstantWindow(4), 3, "verify", "left-to-right"),
    "confidence": Speculative(FullWindow(), 2, "verify", "confidence"),
    "confidence-accept": Speculative(ConstantWindow(3), 1, "accept", "confidence"),
    "accept": Speculative(LinearWindow(0.5), 1, "accept"),
    "block": Speculative(FullWindow(), 2, "verify", verification="block"),
    "block-confidence": Speculative(FullWindow(), 2, "accept", "confidence", verification="block"),
    "stop": Speculative(FullWindow(), 2, "verify", stop=0.6),
    "stop-confidence": Speculative(FullWindow(), 2, "accept", "confidence", stop=0.5),
    "block-stop": Speculative(CosineWindow(0.5), 3, "verify", verification="block", stop=0.5),
}


@pytest.mark.parametrize("name", CHAIN_SAMPLERS)
def test_with_true_conditionals_samples_follow_the_chain(name: str) -> None:
    """χ² of 3e5 samples over 4096 rows; false alarm 1e-6.

    The only exact check of order="confidence", whose law no recursion states: guards against a
    re-sorting that moves revealed ranks or lets a draft decide its own place.
    """
    assert _chain_p_value(CHAIN_SAMPLERS[name]) > FALSE_ALARM


G = TypeVar("G", bound=Guide)


def untrained(guide: G) -> G:
    """A tiny guide whose answers depend on what it reads."""
    generator = torch.Generator().manual_seed(7)
    for value in guide.double().parameters():
        torch.nn.init.normal_(value, std=0.5, generator=generator)
    return guide.requires_grad_(False)


HEURISTICS = {
    "ancestral-fixed": Ancestral(steps=3, counts="fixed"),
    "ancestral-random": Ancestral(steps=3, counts="random"),
    "optimal": Optimal(steps=3, profile=(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)),
    "confidence": Confidence(steps=6),
    "threshold": Threshold(threshold=0.5),
    "entropy-bound": EntropyBound(gamma=2.0),
    "dilated": Dilated(block=0),
    "klass": Klass(threshold=0.5, epsilon=0.5, history=1),
    "star-random": Star(steps=4, start=1.0, score="random"),
    "star-confidence": Star(steps=4, start=1.0),
    "remdm-cap": ReMDM(steps=6, eta=0.5),
    "remdm-loop": ReMDM(steps=12, rule="loop"),
    "p2": PathPlanning(steps=6),
    "rcr": RunningConfidence(steps=6),
    "policy": LearnedPolicy(untrained(UnmaskingPolicy(PolicyConfig(8, 2, 8)))),
    "star-learned": Star(
        steps=4,
        start=1.0,
        score="learned",
        error_head=untrained(ErrorHead(ErrorHeadConfig(CHAIN.vocab_size, 1, 8))),
    ),
}


@pytest.mark.parametrize("name", HEURISTICS)
def test_with_true_conditionals_heuristics_miss_the_chain(name: str) -> None:
    """Positive control: a tenth of the samples is enough to see it at the same odds."""
    assert _chain_p_value(HEURISTICS[name], 30_000) < FALSE_ALARM


def test_the_chi_square_finds_a_wrong_temperature() -> None:
    """Positive control: a law that is 10 % off in temperature."""
    assert _chain_p_value(Speculative(FullWindow(), 1, temperature=1.1), 40_000) < FALSE_ALARM
