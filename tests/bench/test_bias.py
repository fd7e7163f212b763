"""The bias of samplers on a known chain: its estimator, its settings, its committed table."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

import specmask
from specmask.bench.bias import Bias, chain_profile, distance, main, settings, table
from specmask.bench.known_chain import KnownChain, all_rows
from specmask.bench.run import read_points
from specmask.errors import UserError
from specmask.likelihood import conditionals, nll_profile

DOCS = Path(__file__).parents[2] / "docs" / "bias"


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.3])
def test_the_distance_is_found_and_none_where_there_is_none(shift: float) -> None:
    """Of 200 cells and 2 × 50 000 draws, within five standard errors."""
    generator = torch.Generator().manual_seed(3)
    law = torch.rand(200, generator=generator, dtype=torch.float64)
    law /= law.sum()
    other = (1 - shift) * law
    other[:10] += shift / 10
    truth = float((other - law).abs().sum() / 2)
    halves = [
        torch.multinomial(other, 50_000, replacement=True, generator=generator).bincount(
            minlength=200
        )
        for _ in range(2)
    ]
    found, error = distance((halves[0], halves[1]), law)
    assert 0.001 < error < 0.002
    assert truth - 5 * error - 0.3 * shift * (shift < 0.1) < found < truth + 5 * error


def test_the_profile_of_a_chain_is_that_of_all_rows_and_orders() -> None:
    """f(i) from the closed form = from tables of all rows, weighted, along enough orders."""
    chain = KnownChain(states=2, vocab_size=2, length=4)
    rows = all_rows(2, 4)
    law = chain.log_prob(rows).exp()
    found = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        sets = list(combinations(range(4), i))
        for known in sets:
            hidden = [d for d in range(4) if d not in known]
            canvas = rows.clone()
            canvas[:, hidden] = chain.mask_id
            nll = -chain.posterior(canvas).gather(2, rows[..., None])[..., 0]
            found[i] += (law * nll[:, hidden].mean(1)).sum() / len(sets)
    torch.testing.assert_close(torch.tensor(chain_profile(chain), dtype=torch.float64), found)


def test_the_models_own_profile_comes_near_that_of_the_chain() -> None:
    """2000 rows drawn from the chain, one order each."""
    chain = KnownChain()
    model = specmask.wrap(chain)
    rows = specmask.sample(model, specmask.FirstHitting(), num=2000, batch_size=2000).tokens
    orders = specmask.random_orders(rows, seed=4)
    profile = torch.tensor(nll_profile(conditionals(model, rows, orders, batch_size=6000)))
    assert (profile - torch.tensor(chain_profile(chain))).abs().max() < 0.05


def test_every_sampler_that_needs_no_guide_is_measured() -> None:
    kinds = {type(sampler) for sampler in settings(KnownChain())}
    assert kinds == set(specmask.SAMPLERS.values()) - {specmask.LearnedPolicy}


def test_the_committed_table_is_that_of_the_committed_results(tmp_path: Path) -> None:
    points = read_points(DOCS / "results.jsonl")
    assert (DOCS / "table.md").read_text(encoding="utf-8") == table(points)
    assert {point["samples"] for point in points} == {300_000}
    chain = KnownChain()
    names = [(type(sampler), len(vars(sampler))) for sampler in settings(chain)]
    assert [(specmask.SAMPLERS[p["sampler"]], len(p["settings"])) for p in points] == names


def test_exact_samplers_have_no_distance_in_the_committed_results() -> None:
    """At 4.5 standard errors; and each other kind has a setting that is far off."""
    points = read_points(DOCS / "results.jsonl")
    exact = {"first_hitting", "any_order", "any_subset", "speculative"}
    far: dict[str, float] = {}
    for point in points:
        off = abs(point["distance"]) / point["distance_se"]
        if point["sampler"] in exact:
            assert off < 4.5
        else:
            far[point["sampler"]] = max(off, far.get(point["sampler"], 0.0))
    assert min(far.values()) > 10


def test_too_few_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num=10"):
        main(Bias(tmp_path / "out.jsonl", num=10))
