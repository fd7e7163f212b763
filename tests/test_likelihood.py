"""What `test_exactness` does not reach: long rows, the bound over orders, and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import specmask
from oracle import Chain, all_orders, all_rows, enumerated, tiny_network
from specmask import (
    Ancestral,
    AnyOrder,
    ConstantWindow,
    CosineWindow,
    FullWindow,
    Speculative,
    UserError,
)
from specmask.likelihood import Conditionals

VOCAB, LENGTH = 3, 5
SPECULATIVE = Speculative(CosineWindow(0.35), 2)


def model() -> specmask.Model:
    return specmask.wrap(tiny_network())


def rows(count: int = 4) -> tuple[Tensor, Tensor]:
    tokens = all_rows(VOCAB, LENGTH)[torch.arange(count) * 31]
    return tokens, specmask.random_orders(tokens, seed=2)


# ---------------------------------------------------------------------------------------- table


def test_the_table_holds_both_laws_above_the_diagonal_and_nothing_elsewhere() -> None:
    """Each entry against the features of one prefix; NaN below the diagonal and in padding."""
    tokens, order = rows(3)
    lengths = torch.tensor([5, 4, 1])
    order = torch.where(
        torch.arange(LENGTH) < lengths[:, None],
        torch.tensor([[3, 1, 0, 4, 2], [2, 0, 3, 1, 0], [0] * 5]),
        torch.arange(LENGTH),
    )
    made = model()
    got = specmask.conditionals(made, tokens, order, lengths=lengths, best=True, batch_size=3)
    assert got.log_p is not None
    assert got.log_best is not None
    assert got.log_q.dtype == got.log_p.dtype == torch.float64
    network = made.network
    for b, size in enumerate(lengths.tolist()):
        row, sigma = tokens[b : b + 1, :size], order[b : b + 1, :size]
        for i in range(LENGTH):
            for table, law in ((got.log_q, 0), (got.log_p, 1)):
                if i >= size:
                    assert bool(table[b, i].isnan().all())
                    assert bool(got.log_best[b, i].isnan().all())
                    continue
                seen = row.clone()
                seen[0, sigma[0, i:]] = network.mask_id
                with torch.inference_mode():
                    features = network.features(seen, row, sigma)[law]  # type: ignore[attr-defined]
                    log_law = network.logits(features)[0].log_softmax(-1)  # type: ignore[attr-defined]
                expected = log_law[torch.arange(size), row[0, sigma[0]]]
                assert bool(table[b, i, :i].isnan().all())
                assert bool(table[b, i, size:].isnan().all())
                torch.testing.assert_close(table[b, i, i:size], expected[i:], rtol=0, atol=1e-12)
                if law == 0:
                    best = got.log_best[b, i, i:size]
                    torch.testing.assert_close(best, log_law.amax(-1)[i:], rtol=0, atol=1e-12)
                    assert bool(got.log_best[b, i, :i].isnan().all())


def test_batch_size_changes_nothing_and_progress_ends_at_its_total() -> None:
    tokens, order = rows()
    seen: list[tuple[int, int]] = []
    whole = specmask.log_prob(model(), tokens, order, SPECULATIVE)
    parts = specmask.log_prob(
        model(), tokens, order, SPECULATIVE, batch_size=3, progress=lambda *at: seen.append(at)
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == [3, 6, 9, 12, 15, 18, 20]


class Counted:
    """A network that counts the rows of its trunk passes and the ranks it was asked for."""

    def __init__(self) -> None:
        self.inner = tiny_network(length=12)
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(self.inner, name))
        self.prefix = self.inner.prefix
        self.rows, self.widest, self.verified = 0, 0, 0

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self.rows += len(tokens)
        return self.inner.trunk(tokens, lengths)

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        self.widest = max(self.widest, positions.shape[1])
        return self.inner.draft_logits(hidden, positions)

    def verify(self, prefix: object, ranks: Tensor, drafts: Tensor) -> Tensor:
        self.widest = max(self.widest, ranks.shape[1])
        self.verified += len(ranks)
        return self.inner.verify(prefix, ranks, drafts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampler", "trunk_rows", "widest", "verified"),
    [
        (Speculative(ConstantWindow(3), 2), 12, 3, 12),
        (Speculative(FullWindow()), 12, 12, 12),
        (Speculative(ConstantWindow(3), 2, verification="block", stop=0.5), 12, 3, 12),
        (AnyOrder("target"), 12, 1, 12),
        (AnyOrder("draft"), 12, 1, 0),
        (Ancestral(4, "fixed", "linear"), 4, 3, 0),
    ],
)
def test_only_what_the_law_can_reach_is_computed(
    sampler: Speculative, trunk_rows: int, widest: int, verified: int
) -> None:
    network = Counted()
    order = torch.arange(12)[None]
    specmask.log_prob(specmask.wrap(network), torch.zeros_like(order), order, sampler)  # type: ignore[arg-type]
    assert (network.rows, network.widest, network.verified) == (trunk_rows, widest, verified)


def test_the_law_of_given_rows_is_free_of_charge() -> None:
    tokens, order = rows(2)
    for sampler in (SPECULATIVE, AnyOrder(), Ancestral(3, "fixed")):
        got = specmask.evaluate(model(), tokens, order, sampler, given=LENGTH)
        assert got.log_prob.tolist() == got.trunk.tolist() == got.verify.tolist() == [0, 0]


# -------------------------------------------------------------------------------- long recursions


def synthetic(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tables with q and p between .5 and 1, so that 1024 factors stay above 1e-300."""
    generator = torch.Generator().manual_seed(seed)
    shape = (length, length)
    q, p = (0.5 + 0.5 * torch.rand(shape, generator=generator).double() for _ in range(2))
    return q, p


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_thousand_ranks_do_not_underflow(rounds: int) -> None:
    """D = 1024, window 40: method.md §6 in plain floats on tables near 1, then the same tables
    e⁻¹⁰ times smaller. Every path has exactly D factors, so log p falls by 10·D = 10240 nats,
    which a recursion in plain floats cannot hold, and the expected passes stay."""
    length, window = 1024, 40
    q, p = synthetic(length)
    accept, reject = torch.minimum(q, p).tolist(), (p - q).clamp(min=0).tolist()
    leaf = [0.0] * length + [1.0]
    for i in range(length - 1, -1, -1):
        end = min(length, i + window)
        inner = [leaf[end]] * rounds
        for d in range(end - 1, i - 1, -1):
            a, r, last = accept[i][d], reject[i][d], d + 1 == end
            inner = [
                a * inner[n] + r * (leaf[d + 1] if n == 0 or last else inner[n - 1])
                for n in range(rounds)
            ]
        leaf[i] = inner[-1]
    law = Speculative(ConstantWindow(window), rounds, "verify").law()

    def score(shift: float) -> specmask.Score:
        table = Conditionals(
            (q.log() - shift)[None], (p.log() - shift)[None], torch.tensor([length]), 1.0, 1.0
        )
        return specmask.score(table, law)

    near, far = score(0.0), score(10.0)
    assert float(near.log_prob) == pytest.approx(math.log(leaf[0]), abs=1e-8)
    assert float(far.log_prob) == pytest.approx(math.log(leaf[0]) - 10 * length, abs=1e-6)
    torch.testing.assert_close(near.trunk, far.trunk)
    torch.testing.assert_close(near.verify, far.verify)
    assert length / window <= float(near.trunk) <= length
    assert float(near.trunk) <= float(near.verify) <= rounds * float(near.trunk)


def test_a_thousand_ranks_in_blocks_do_not_underflow() -> None:
    """The same for method.md §7 at two rounds and window 8: the ratios c do not change with the
    scale of the tables, so each path still has D factors."""
    length, window = 1024, 8
    draft, target = synthetic(length)
    q, p = draft.tolist(), target.tolist()
    leaf = [0.0] * length + [1.0]
    for i in range(length - 1, -1, -1):
        end = min(length, i + window)
        following = leaf
        for _ in range(2):
            found = leaf.copy()
            for d in range(end - 1, i - 1, -1):
                drafted, c, found[d] = 1.0, 1.0, 0.0
                for e in range(d, end):
                    found[d] += drafted * max(c * p[i][e] - q[i][e], 0.0) * following[e + 1]
                    drafted, c = drafted * q[i][e], min(1.0, c * p[i][e] / q[i][e])
                found[d] += drafted * c * leaf[end]
            following = found
        leaf[i] = following[i]
    law = Speculative(ConstantWindow(window), 2, "verify", verification="block").law()
    lengths = torch.tensor([length])
    near, far = (
        specmask.score(
            Conditionals((draft.log() - x)[None], (target.log() - x)[None], lengths, 1.0, 1.0), law
        )
        for x in (0.0, 10.0)
    )
    assert float(near.log_prob) == pytest.approx(math.log(leaf[0]), abs=1e-8)
    assert float(far.log_prob) == pytest.approx(math.log(leaf[0]) - 10 * length, abs=1e-6)
    torch.testing.assert_close(near.trunk, far.trunk)
    torch.testing.assert_close(near.verify, far.verify)


def test_a_target_that_ignores_the_prefix_is_drawn_whatever_the_draft() -> None:
    """p_i(d) = p(d): the law is Π p(d) for any q, window and number of rounds; D = 1024."""
    length = 1024
    generator = torch.Generator().manual_seed(1)
    log_p = -5 * torch.rand(length, generator=generator).double()
    log_q = -5 * torch.rand(1, length, length, generator=generator).double()
    table = Conditionals(log_q, log_p.expand(1, length, length), torch.tensor([length]), 1.0, 1.0)
    for sampler in (
        Speculative(FullWindow(), first="verify"),
        Speculative(CosineWindow(0.02), 4, "verify"),
        Speculative(FullWindow(), first="verify", verification="block"),
        Speculative(CosineWindow(0.02), 4, "verify", verification="block"),
    ):
        got = specmask.score(table, sampler.law()).log_prob
        torch.testing.assert_close(got, log_p.sum()[None], rtol=0, atol=1e-8)


@pytest.mark.parametrize("verification", ["token", "block"])
def test_costs_of_possible_rows_are_finite_under_top_p(verification: Any) -> None:
    """A nucleus makes some paths impossible; a row that another path reaches still has a cost."""
    tokens = all_rows(VOCAB, LENGTH).repeat(5, 1)
    order = all_orders(LENGTH)[::24].repeat_interleave(3**LENGTH, 0)
    sampler = Speculative(FullWindow(), 3, temperature=0.7, top_p=0.8, verification=verification)
    got = specmask.evaluate(specmask.wrap(enumerated(1)), tokens, order, sampler, batch_size=10_000)
    possible = got.log_prob > -math.inf
    assert 0 < int(possible.sum()) < len(possible)
    for cost in (got.trunk, got.verify):
        assert bool(cost[possible].isfinite().all())
        assert bool(cost[~possible].isnan().all())


def test_rows_scored_in_parts_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Speculative(FullWindow(), 2, verification="block")
    whole = specmask.evaluate(model(), *rows(), sampler)
    monkeypatch.setattr("specmask.likelihood.recursions._BLOCK", 3 * LENGTH**2)
    parts = specmask.evaluate(model(), *rows(), sampler)
    for field in ("log_prob", "trunk", "verify"):
        torch.testing.assert_close(getattr(whole, field), getattr(parts, field))


# ------------------------------------------------------------------------------------------- elbo


@pytest.mark.parametrize("sampler", [SPECULATIVE, Speculative(FullWindow(), 1, "accept")])
def test_elbo_is_unbiased(sampler: Speculative) -> None:
    """Mean over 40 rows of estimate − exact mean over all 120 orders, 64 orders each.

    Its standard error is known exactly; four of them are exceeded with odds 6e-5, six by any of
    the 40 rows with odds 1e-7. Guards against orders that are not uniform or not independent
    between rows, and against log of a mean where the mean of logs is meant.
    """
    made, count, drawn = specmask.wrap(enumerated(1)), 40, 64
    tokens = all_rows(VOCAB, LENGTH)[:: 243 // count][:count]
    orders = all_orders(LENGTH)
    log_probs = specmask.log_prob(
        made,
        tokens.repeat_interleave(len(orders), 0),
        orders.repeat(count, 1),
        sampler,
        batch_size=5000,
    ).view(count, -1)
    exact, spread = log_probs.mean(1), log_probs.std(1, correction=0) / drawn**0.5
    got = specmask.elbo(made, tokens, sampler, orders=drawn, seed=1, batch_size=500)
    assert got.log_probs.shape == (count, drawn)
    torch.testing.assert_close(got.mean, got.log_probs.mean(1))
    torch.testing.assert_close(got.standard_error, got.log_probs.std(1) / drawn**0.5)
    error = got.mean - exact
    assert abs(float(error.sum())) < 4 * float(spread.square().sum().sqrt())
    assert float((error / spread).abs().max()) < 6
    ratio = got.standard_error / spread
    assert 0.9 < float(ratio.mean()) < 1.1


def test_elbo_of_the_chain_is_exact_for_every_order() -> None:
    chain = Chain()
    tokens = all_rows(chain.vocab_size, chain.length)[::500]
    got = specmask.elbo(specmask.wrap(chain), tokens, Speculative(CosineWindow(0.3)), orders=3)
    torch.testing.assert_close(got.mean, chain.log_prob(tokens), rtol=0, atol=1e-9)
    assert float(got.standard_error.max()) < 1e-9


def test_elbo_left_to_right_is_one_exact_number() -> None:
    tokens, _ = rows()
    sampler = Speculative(FullWindow(), order="left-to-right")
    got = specmask.elbo(model(), tokens, sampler, orders=8)
    exact = specmask.log_prob(model(), tokens, torch.arange(LENGTH).expand_as(tokens), sampler)
    assert torch.equal(got.mean, exact)
    assert got.standard_error.tolist() == [0] * 4


def test_elbo_of_one_order_has_no_error_and_repeats_with_its_seed() -> None:
    tokens, _ = rows()
    first = specmask.elbo(model(), tokens, SPECULATIVE, orders=1, seed=3)
    assert bool(first.standard_error.isnan().all())
    assert torch.equal(
        first.mean, specmask.elbo(model(), tokens, SPECULATIVE, orders=1, seed=3).mean
    )
    assert not torch.equal(
        first.mean, specmask.elbo(model(), tokens, SPECULATIVE, orders=1, seed=4).mean
    )


def test_elbo_takes_ragged_rows() -> None:
    tokens, _ = rows(3)
    got = specmask.elbo(model(), tokens, SPECULATIVE, orders=2, lengths=[5, 2, 1])
    assert bool(got.mean.isfinite().all())
    alone = specmask.elbo(model(), tokens[2:, :1], SPECULATIVE, orders=2)
    torch.testing.assert_close(got.mean[2:], alone.mean)  # one token has one order


def test_elbo_does_not_reuse_the_orders_its_rows_were_drawn_in() -> None:
    """Rows drawn with a seed and scored with the same seed (both default to 0) must meet new
    orders: log p(x|σ) along the order that made x is no fair draw of σ."""
    network = enumerated(1)
    sampler = Speculative(FullWindow())
    out = specmask.sample(specmask.wrap(network), sampler, num=200, seed=0)
    again = torch.stack([specmask.random_orders(out.tokens, seed=0, number=k) for k in range(4)])
    same = (again == out.order).all(-1).double().mean(1)
    assert float(same.max()) < 0.1  # by chance 1/120


# -------------------------------------------------------------------------------------- bad input


def test_samplers_without_a_law_are_refused_by_name() -> None:
    tokens, order = rows()
    for sampler, name in (
        (Ancestral(counts="random"), "Ancestral(counts='random')"),
        (Speculative(order="confidence"), "Speculative(order='confidence')"),
    ):
        for call in (specmask.log_prob, specmask.expected_passes):
            with pytest.raises(UserError) as caught:
                call(model(), tokens, order, sampler)
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)


BAD = {
    "one row": (lambda t, o: (t[0], o), {}, "tokens of shape"),
    "fractions": (lambda t, o: (t.float(), o), {}, "tokens of shape"),
    "no rows": (lambda t, o: (t[:0], o[:0]), {}, "tokens of shape"),
    "a mask": (lambda t, o: (t.index_fill(1, torch.tensor([2]), VOCAB), o), {}, "masked row"),
    "a negative token": (lambda t, o: (t - 1, o), {}, "expected complete rows"),
    "too long": (lambda t, o: (t.repeat(1, 2), o.repeat(1, 2)), {}, "model takes at most 5"),
    "no permutation": (lambda t, o: (t, o * 0), {}, "permutation"),
    "short order": (lambda t, o: (t, o[:, :3]), {}, "order is (4, 3)"),
    "order of other rows": (lambda t, o: (t, o[:2]), {}, "order is (2, 5)"),
    "padding inside": (
        lambda t, o: (t, torch.arange(LENGTH).flip(0).expand_as(o)),
        {"lengths": [4, 5, 5, 5]},
        "last",
    ),
    "lengths of zero": (lambda t, o: (t, o), {"lengths": [0, 5, 5, 5]}, "from 1 to 5"),
    "lengths of six": (lambda t, o: (t, o), {"lengths": [6, 5, 5, 5]}, "from 1 to 5"),
    "too few lengths": (lambda t, o: (t, o), {"lengths": [5, 5]}, "4 whole numbers"),
    "given too many": (lambda t, o: (t, o), {"given": 6}, "4 whole numbers from 0 to"),
    "given negative": (lambda t, o: (t, o), {"given": [-1, 0, 0, 0]}, "4 whole numbers from 0 to"),
    "given of two": (lambda t, o: (t, o), {"given": [1, 1]}, "4 whole numbers from 0 to"),
    "batch of none": (lambda t, o: (t, o), {"batch_size": 0}, "batch_size=0"),
    "batch of less": (lambda t, o: (t, o), {"batch_size": -5}, "batch_size=-5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    change, settings, expected = BAD[name]
    tokens, order = change(*rows())
    with pytest.raises(UserError) as caught:
        specmask.log_prob(model(), tokens, order, SPECULATIVE, **settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["one row", "fractions", "a mask", "too long", "too few lengths"])
def test_elbo_refuses_the_same(name: str) -> None:
    change, settings, expected = BAD[name]
    tokens, _ = change(*rows())
    with pytest.raises(UserError) as caught:
        specmask.elbo(model(), tokens, SPECULATIVE, **settings)
    assert expected in str(caught.value)


def test_elbo_refuses_no_orders() -> None:
    with pytest.raises(UserError, match="orders=0"):
        specmask.elbo(model(), rows()[0], SPECULATIVE, orders=0)


def test_a_law_that_needs_a_head_refuses_a_network_without() -> None:
    class Draft:
        """A denoiser alone."""

        def __init__(self) -> None:
            inner = enumerated(1)
            for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
                setattr(self, name, getattr(inner, name))
            self.trunk, self.draft_logits = inner.trunk, inner.draft_logits

    tokens, order = rows()
    bare = specmask.wrap(Draft())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Draft has no causal head"):
        specmask.log_prob(bare, tokens, order, SPECULATIVE)
    with pytest.raises(UserError, match="causal head"):
        specmask.sample(bare, SPECULATIVE, num=1)
    for sampler in (AnyOrder(), Ancestral(2, "fixed")):
        assert specmask.log_prob(bare, tokens, order, sampler).shape == (4,)


def test_a_table_of_another_tempering_is_refused() -> None:
    tokens, order = rows()
    table = specmask.conditionals(model(), tokens, order, temperature=0.5)
    with pytest.raises(UserError, match=r"temperature 0\.5"):
        specmask.score(table, SPECULATIVE.law())
    table = specmask.conditionals(model(), tokens, order, target=False)
    with pytest.raises(UserError, match="no target"):
        specmask.score(table, SPECULATIVE.law())
    table = specmask.conditionals(model(), tokens, order)
    with pytest.raises(UserError, match="best=True"):
        specmask.score(table, Speculative(stop=0.3).law())


def test_a_seed_of_orders_is_checked() -> None:
    with pytest.raises(UserError, match="seed=-1"):
        specmask.random_orders(torch.zeros(2, 3, dtype=torch.int64), seed=-1)


def test_progress_runs_once_over_all_groups_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specmask.likelihood._row_groups", lambda _: [slice(0, 1), slice(1, 4)])
    seen: list[tuple[int, int]] = []
    tokens, order = rows()
    alone = specmask.log_prob(model(), tokens, order, SPECULATIVE, batch_size=3)
    monkeypatch.undo()
    together = specmask.log_prob(
        model(), tokens, order, SPECULATIVE, batch_size=3, progress=lambda *x: seen.append(x)
    )
    torch.testing.assert_close(alone, together)
    monkeypatch.setattr("specmask.likelihood._row_groups", lambda _: [slice(0, 1), slice(1, 4)])
    grouped: list[tuple[int, int]] = []
    specmask.log_prob(
        model(), tokens, order, SPECULATIVE, batch_size=3, progress=lambda *x: grouped.append(x)
    )
    assert {total for _, total in seen + grouped} == {tokens.numel()}
    for done in ([n for n, _ in seen], [n for n, _ in grouped]):
        assert done == sorted(done)
        assert done[-1] == tokens.numel()


@pytest.mark.slow
def test_a_row_of_1024_tokens() -> None:
    """As many trunk passes, on a CPU; what is in the table is what `features` says, and progress
    ends at its total."""
    length = 1024
    network = tiny_network(length=length, vocab_size=20, dtype=torch.float32)
    tokens = torch.randint(20, (1, length), generator=torch.Generator().manual_seed(0))
    order = specmask.random_orders(tokens, seed=3)
    seen: list[tuple[int, int]] = []
    table = specmask.conditionals(
        specmask.wrap(network), tokens, order, progress=lambda *counts: seen.append(counts)
    )
    assert seen[-1] == (length, length)
    assert table.log_p is not None
    for i in (0, 1, 511, 1023):
        known = order[:, :i]
        masked = torch.full_like(tokens, network.mask_id)
        masked = masked.scatter(1, known, tokens.gather(1, known))
        with torch.no_grad():
            found = [network.logits(x) for x in network.features(masked, tokens, order)]
        for logits, law in zip(found, (table.log_q, table.log_p), strict=True):
            log_p = logits.double().log_softmax(-1)
            want = log_p.gather(-1, tokens.gather(1, order)[..., None])[0, i:, 0]
            torch.testing.assert_close(law[0, i, i:], want, atol=1e-4, rtol=0)
    total = specmask.score(table, Speculative(CosineWindow(0.01), 3).law()).log_prob
    assert bool(total.isfinite().all())
    assert float(total) < -length
