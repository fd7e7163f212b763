"""Optimal cuts are optimal, by brute force and by the exact law; planner and profile as files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import specmask
from oracle import Chain, all_orders, all_rows, tiny_network
from refusal import Refused, command, refuse
from specmask import Ancestral, Optimal
from specmask.bench.bias import chain_profile
from specmask.data.tokenizers import character_tokenizer
from specmask.likelihood import Conditionals, conditionals, nll_profile
from specmask.likelihood.profile import falling
from specmask.models.protocol import Meter
from specmask.samplers.dilated import dilated_levels
from specmask.samplers.optimal import optimal_cuts, read_profile

# ------------------------------------------------------------------------------------------ cuts


def lost(profile: list[float], cuts: tuple[int, ...]) -> float:
    """Σ_j Σ_{d in group j} [f(t_j) − f(d)], term by term."""
    return sum(profile[t] - profile[d] for t, u in pairwise(cuts) for d in range(t, u))


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_cuts_are_the_best_of_all(length: int) -> None:
    """Against every set of cuts, for three random falling profiles."""
    for seed in range(3):
        torch.manual_seed(seed)
        profile = torch.rand(length, dtype=torch.float64).sort(descending=True).values.tolist()
        for groups in range(1, length + 3):
            cuts = optimal_cuts(profile, groups)
            assert (cuts[0], cuts[-1], len(cuts)) == (0, length, min(groups, length) + 1)
            assert all(t < u for t, u in pairwise(cuts))
            inner = combinations(range(1, length), min(groups, length) - 1)
            least = min(lost(profile, (0, *some, length)) for some in inner)
            assert math.isclose(lost(profile, tuple(cuts)), least, abs_tol=1e-12)


def test_a_flat_profile_loses_nothing_and_a_step_is_cut_where_it_is() -> None:
    assert lost([1.0] * 7, tuple(optimal_cuts([1.0] * 7, 3))) == 0
    assert optimal_cuts([5, 5, 5, 1, 1, 1, 1], 2) == [0, 3, 7]


def exact_bits(chain: Chain, sampler: Ancestral | Optimal) -> float:
    """Expected nats of the chain's rows under a sampler: all rows, all orders."""
    rows, orders = all_rows(chain.vocab_size, chain.length), all_orders(chain.length)
    law = chain.log_prob(rows).exp()
    got = specmask.evaluate(
        specmask.wrap(chain),
        rows.repeat(len(orders), 1),
        orders.repeat_interleave(len(rows), 0),
        sampler,
        batch_size=50_000,
    )
    return -float((law * got.log_prob.view(len(orders), -1).mean(0)).sum())


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_optimal_is_never_worse_than_a_schedule(steps: int) -> None:
    """Exactly, in expected nats over all rows and orders; and these are Σ_j n_j·f(t_j)."""
    chain = Chain(states=3, vocab_size=3, length=5)
    profile = chain_profile(chain)
    ours = exact_bits(chain, Optimal(steps, profile))
    cuts = optimal_cuts(profile, steps)
    assert math.isclose(ours, sum((u - t) * profile[t] for t, u in pairwise(cuts)), abs_tol=1e-9)
    for schedule in ("cosine", "linear"):
        theirs = exact_bits(chain, Ancestral(steps, "fixed", schedule))  # type: ignore[arg-type]
        assert ours <= theirs + 1e-9
    assert ours <= exact_bits(chain, Optimal(steps)) + 1e-9  # the cuts of a model unknown


# --------------------------------------------------------------------------------------- profile


def test_the_profile_is_the_mean_loss_of_what_is_masked() -> None:
    """By hand from the table's own draft probabilities, before it is made to fall."""
    model = specmask.wrap(tiny_network())
    rows = all_rows(3, 5)[::7]
    table = conditionals(model, rows, specmask.random_orders(rows, seed=2))
    raw = []
    for i in range(5):
        terms = [-float(row[i, d]) for row in table.log_q for d in range(i, 5)]
        raw.append(sum(terms) / len(terms))
    weights = torch.tensor([5.0, 4, 3, 2, 1], dtype=torch.float64)
    expected = falling(torch.tensor(raw, dtype=torch.float64), weights)
    torch.testing.assert_close(torch.tensor(nll_profile(table), dtype=torch.float64), expected)


def test_noise_of_the_profile_does_not_place_the_cuts() -> None:
    """A loss known to fall as a parabola, seen on 16 rows with noise of 0.3 nats a token.

    The cuts of the profile lose under 2 % more than the best ones of the truth; those of the means
    made non-increasing, and no more, lose over 10 % more.
    """
    length, groups = 128, 64
    torch.manual_seed(0)
    ranks = torch.arange(length, dtype=torch.float64)
    truth = 3 - 2 * (ranks / length) ** 2
    noise = 0.3 * torch.randn(16, length, length, dtype=torch.float64)
    masked = ranks >= ranks[:, None]
    log_q = (noise - truth[:, None]).where(masked, torch.nan)
    table = Conditionals(log_q, None, torch.full((16,), length), 1.0, 1.0)
    weights = masked.sum(1).double()
    means = falling(-log_q.nan_to_num().sum((0, 2)) / (16 * weights), weights)

    def loss(profile: Sequence[float]) -> float:
        return lost(truth.tolist(), tuple(optimal_cuts(profile, groups)))

    best = loss(truth.tolist())
    assert loss(nll_profile(table)) < 1.02 * best
    assert loss(means.tolist()) > 1.1 * best


def test_a_rising_part_is_pooled_by_weight() -> None:
    def fall(values: list[float], weights: list[float]) -> list[float]:
        return falling(
            torch.tensor(values, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
        ).tolist()

    assert fall([4.0, 3.0, 3.0, 1.0], [1, 1, 1, 1]) == [4, 3, 3, 1]
    assert fall([3.0, 1.0, 4.0], [1, 1, 2]) == [3, 3, 3]
    assert fall([9.0, 1.0, 4.0], [1, 1, 2]) == [9, 3, 3]
    assert fall([1.0, 2.0, 3.0], [1, 1, 1]) == [2, 2, 2]


def test_rows_of_several_lengths_have_no_profile() -> None:
    model = specmask.wrap(tiny_network())
    rows = all_rows(3, 5)[:2]
    table = conditionals(
        model, rows, specmask.random_orders(rows, lengths=[5, 3]), lengths=torch.tensor([5, 3])
    )
    refuse(lambda: nll_profile(table), "rows of one length")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("[1, 2", "JSON list"),
        ('{"f": 1}', "JSON list"),
        ('["a"]', "JSON list"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    refuse(lambda: read_profile(str(path)), "profile.json", expected)
    refuse(lambda: Optimal(profile=(1.0, math.nan)), "finite")
    refuse(lambda: Optimal(profile=("a",)), "profile")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- levels, meters


@pytest.mark.parametrize("base", [2, 3])
@pytest.mark.parametrize("block", [1, 2, 5, 8, 9, 27, 32, 100, 128])
def test_a_dilated_block_takes_the_logarithm_of_its_size(block: int, base: int) -> None:
    """⌈log_a B⌉ levels, at most; positions of an early one lie its stride apart."""
    levels = dilated_levels(block, base)
    count = max(levels) + 1
    most = max(1, next(n for n in range(10) if base**n >= block))
    assert len(levels) == block
    assert set(levels) == set(range(count))
    assert count <= most
    if block == base ** (most if block > 1 else 0):
        assert count == most
    for level in range(count - 1):
        at = [k for k, mine in enumerate(levels) if mine == level]
        stride = block // base ** (level + 1)
        assert all(v - u >= stride for u, v in pairwise(at))


def test_a_meter_charges_other_networks_and_parts_of_the_batch() -> None:
    network = tiny_network()  # 2 + 1 layers
    meter = Meter(network, 3)
    tokens = torch.full((3, 5), network.mask_id)
    meter.trunk(tokens, torch.full((3,), 5))
    meter.charge(1.5)
    part = meter.take(torch.tensor([False, True, True]))
    part.trunk(tokens[1:], torch.full((2,), 5))
    part.charge(torch.tensor([3.0, 0.0], dtype=torch.float64))
    passes = meter.passes
    assert passes.trunk.tolist() == [1, 2, 2]
    assert passes.extra.tolist() == [1.5, 4.5, 1.5]
    assert [round(3 * x, 9) for x in passes.nfe.tolist()] == [3.5, 8.5, 5.5]
    assert passes.take(torch.tensor([2])).nfe.tolist() == passes.nfe[2:].tolist()


# ---------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, a planner with the same tokens, and one with others."""
    home = tmp_path_factory.mktemp("models")
    for name, alphabet, seed in (
        ("model", "abc", 0), ("planner", "abc", 1), ("other", "abcd", 0),
    ):  # fmt: skip
        network = tiny_network(vocab_size=len(alphabet), seed=seed, dtype=torch.float32)
        specmask.save(home / name, network, tokenizer=character_tokenizer(alphabet))
    return home / "model", home / "planner", home / "other"


def drawn(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines() if "text" in line]


def test_a_planner_is_a_folder_on_the_command_line(
    folders: tuple[Path, Path, Path], tmp_path: Path, refused: Refused
) -> None:
    model, planner, other = folders
    out = tmp_path / "out.jsonl"
    words = ("sample", model, "--sampler", "p2", "--steps", 4, "--num", 6, "--out", out)
    assert command(*words, "--planner", planner) == 0
    loaded = specmask.load(model)
    sampler = specmask.PathPlanning(4, planner=specmask.load(planner))
    assert drawn(out) == specmask.sample(loaded, sampler, num=6).text
    assert "vocab_size" in refused(*words, "--planner", other, "--overwrite")
    assert "nowhere" in refused(*words, "--planner", tmp_path / "nowhere", "--overwrite")


def test_a_profile_is_a_file_on_the_command_line(
    folders: tuple[Path, Path, Path], tmp_path: Path, refused: Refused
) -> None:
    profile = (3.0, 2.9, 1.0, 0.5, 0.4)
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    out = tmp_path / "out.jsonl"
    words = ("sample", folders[0], "--sampler", "optimal", "--steps", 2, "--num", 6)
    assert command(*words, "--profile", tmp_path / "profile.json", "--out", out) == 0
    mine: Tensor = specmask.sample(specmask.load(folders[0]), Optimal(2, profile), num=6).tokens
    theirs = ["".join("abc"[t] for t in row) for row in mine.tolist()]
    assert drawn(out) == theirs
    (tmp_path / "bad.json").write_text("{}")
    assert "JSON list" in refused(*words, "--profile", tmp_path / "bad.json")
