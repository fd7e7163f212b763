"""What every sampler in `SAMPLERS` promises, whatever it does inside.

A new sampler is picked up from the table with its default settings; add settings that are worth
more to `VARIANTS`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from torch import Tensor

import specmask
from oracle import chi_square, tiny_network
from specmask import (
    SAMPLERS,
    Ancestral,
    AnyOrder,
    AnySubset,
    Confidence,
    ConstantWindow,
    CosineWindow,
    Dilated,
    EntropyBound,
    FirstHitting,
    Frame,
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
    Speculative,
    Star,
    Threshold,
    UserError,
)
from specmask.masking import fixed_cuts, schedule_levels, window_ends
from specmask.models import protocol
from specmask.models.guides import ErrorHead, ErrorHeadConfig, PolicyConfig, UnmaskingPolicy
from specmask.models.protocol import Meter
from specmask.samplers.base import Canvas, Uniforms
from specmask.samplers.first_hitting import FirstHittingState

VOCAB, LENGTH = 11, 32


def network(seed: int = 2) -> HybridTransformer:
    """Float32 weights far from initialisation: a third of the drafts is rejected."""
    return tiny_network(
        1, vocab_size=VOCAB, length=LENGTH, width=16, scale=0.35, seed=seed, dtype=torch.float32
    )


PLANNER = specmask.wrap(network(3))


def learned() -> UnmaskingPolicy:
    """A policy whose decisions depend on what it reads."""
    policy = UnmaskingPolicy(PolicyConfig(width=16, heads=2, mlp_hidden=16)).double()
    generator = torch.Generator().manual_seed(4)
    for value in policy.parameters():
        torch.nn.init.normal_(value, std=0.5, generator=generator)
    return policy.requires_grad_(False)


def suspicious() -> ErrorHead:
    """An error head whose logits depend on what it reads."""
    head = ErrorHead(ErrorHeadConfig(16, heads=2, mlp_hidden=16)).double()
    generator = torch.Generator().manual_seed(5)
    for value in head.parameters():
        torch.nn.init.normal_(value, std=0.5, generator=generator)
    return head.requires_grad_(False)


REQUIRED: dict[str, dict[str, Any]] = {"policy": {"policy": learned()}}
"""Settings without which a sampler cannot run."""
REMASKING = (PathPlanning, ReMDM, RunningConfidence, Star)
"""Samplers that may hide again what they have revealed."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "speculative": {
        "full": {"window": FullWindow()},
        "rounds": {"window": CosineWindow(0.3), "rounds": 3, "first": "verify"},
        "accept": {"window": LinearWindow(0.2), "rounds": 2, "first": "accept"},
        "accept-one": {"window": ConstantWindow(1), "first": "accept"},
        "verify-one": {"window": ConstantWindow(1), "first": "verify"},
        "verify-full": {"window": FullWindow(), "rounds": 2, "first": "verify"},
        "confidence": {"window": ConstantWindow(5), "order": "confidence"},
        "left-to-right": {"window": ConstantWindow(8), "rounds": 2, "order": "left-to-right"},
        "tempered": {"window": FullWindow(), "rounds": 2, "temperature": 0.6, "top_p": 0.8},
        "greedy": {"window": FullWindow(), "temperature": 0.0},
        "block": {
            "window": FullWindow(),
            "rounds": 3,
            "first": "verify",
            "verification": "block",
        },
        "block-accept": {"window": CosineWindow(0.3), "rounds": 2, "verification": "block"},
        "block-greedy": {"window": FullWindow(), "temperature": 0.0, "verification": "block"},
        "stop": {"window": FullWindow(), "rounds": 2, "stop": 0.25},
        "block-stop": {
            "window": FullWindow(),
            "rounds": 2,
            "order": "confidence",
            "top_p": 0.9,
            "verification": "block",
            "stop": 0.25,
        },
    },
    "ancestral": {
        "fixed": {"steps": 6, "counts": "fixed"},
        "linear": {"steps": 6, "counts": "random", "schedule": "linear"},
        "many": {"steps": 500, "counts": "fixed"},
        "one": {"steps": 1, "counts": "fixed", "temperature": 0.7, "top_p": 0.9},
    },
    "confidence": {
        "maskgit": {"steps": 6, "noise": 4.5},
        "llada": {"steps": 40, "schedule": "linear", "temperature": 0.0},
        "margin": {"steps": 5, "score": "margin", "top_p": 0.8},
        "entropy": {"steps": 1, "score": "entropy"},
        "top": {"score": "top", "temperature": 0.6},
    },
    "threshold": {
        "low": {"threshold": 0.3},
        "spaced": {"threshold": 0.2, "spacing": 8.0},
        "greedy": {"threshold": 0.5, "temperature": 0.0},
        "tempered": {"threshold": 0.5, "temperature": 0.7, "top_p": 0.9},
    },
    "entropy_bound": {
        "wide": {"gamma": 4.0},
        "spaced": {"gamma": 4.0, "spacing": 4.0},
        "none": {"gamma": 0.0, "temperature": 0.7, "top_p": 0.9},
    },
    "dilated": {
        "row": {"block": 0, "skip": 0.3},
        "three": {"block": 7, "base": 3, "skip": 0.9},
        "one": {"block": 1, "temperature": 0.0},
    },
    "klass": {
        "easy": {"threshold": 0.3, "epsilon": 0.5, "history": 1},
        "blocks": {"threshold": 0.2, "epsilon": 5.0, "fallback": 3, "block": 8},
        "spaced": {"threshold": 0.1, "epsilon": 9.0, "spacing": 8.0, "temperature": 0.7},
    },
    "star": {
        "random": {"steps": 9, "score": "random"},
        "early": {"steps": 7, "start": 1.0, "scale": 0.1},
        "never": {"steps": 7, "start": 0.0, "schedule": "cosine"},
        "learned": {"steps": 9, "start": 0.6, "score": "learned", "error_head": suspicious()},
        "tempered": {"steps": 5, "temperature": 0.7, "top_p": 0.9},
    },
    "remdm": {
        "much": {"steps": 12, "eta": 0.5},
        "rescale": {"steps": 12, "rule": "rescale", "eta": 0.9, "schedule": "cosine"},
        "confidence": {"steps": 12, "rule": "confidence"},
        "loop": {"steps": 20, "rule": "loop", "eta": 0.3, "top_p": 0.9},
        "one": {"steps": 1, "temperature": 0.6},
    },
    "p2": {
        "never": {"steps": 9, "eta": 0.0},
        "much": {"steps": 9, "eta": 3.0, "schedule": "cosine"},
        "planner": {"steps": 6, "planner": PLANNER},
        "tempered": {"steps": 50, "temperature": 0.7, "top_p": 0.9},
    },
    "rcr": {
        "few": {"steps": 5, "schedule": "cosine"},
        "greedy": {"steps": 9, "temperature": 0.0},
    },
    "optimal": {
        "profile": {"steps": 5, "profile": tuple(2.0 / (1 + i) for i in range(20))},
        "many": {"steps": 99, "temperature": 0.7, "top_p": 0.9},
    },
    "any_subset": {"two": {"k": 2}, "many": {"k": 50, "temperature": 0.8}},
    "policy": {
        "blocks": {"block": 8, "scale": 0.2},
        "tempered": {"temperature": 0.7, "top_p": 0.9, "scale": 5.0},
    },
    "first_hitting": {"tempered": {"temperature": 0.7, "top_p": 0.9}},
    "any_order": {
        "target": {"source": "target"},
        "left-to-right": {"order": "left-to-right", "temperature": 0.5},
    },
}
CASES = {
    f"{name}-{variant}": kind(**{**REQUIRED.get(name, {}), **settings})
    for name, kind in SAMPLERS.items()
    for variant, settings in {"default": {}, **VARIANTS.get(name, {})}.items()
}
every_sampler = pytest.mark.parametrize("case", CASES)

LENGTHS = torch.tensor([32, 5, 32, 1, 17, 32, 9])
PADDING = 3  # what the tests put behind a row's end


NETWORK = network()
MODEL = specmask.wrap(NETWORK)
MASK = NETWORK.mask_id


def ragged_canvas() -> Tensor:
    """Seven rows: blank, mostly given, wholly given, of one token, with a prompt, with holes."""
    generator = torch.Generator().manual_seed(6)
    canvas = torch.full((7, LENGTH), MASK)
    tokens = torch.randint(VOCAB, (7, LENGTH), generator=generator)
    canvas[2] = tokens[2]  # nothing to fill
    canvas[4, :8] = tokens[4, :8]  # a prompt
    canvas[5, ::2] = tokens[5, ::2]  # holes
    canvas[6, 8] = tokens[6, 8]  # its last token
    canvas[1, :4] = tokens[1, :4]  # one to fill
    return canvas.masked_fill(torch.arange(LENGTH) >= LENGTHS[:, None], PADDING)


def draw(case: str, **settings: Any) -> Samples:
    return specmask.sample(MODEL, CASES[case], **{"seed": 11, **settings})


def assert_same_row(one: Samples, a: int, other: Samples, b: int) -> None:
    for field in (
        "tokens",
        "order",
        "trunk_passes",
        "verify_passes",
        "accepted",
        "rejected",
        "nfe",
    ):
        assert torch.equal(getattr(one, field)[a], getattr(other, field)[b]), field


# ------------------------------------------------------------------------------------- settings


@every_sampler
def test_settings_are_a_frozen_dataclass_that_explains_itself(case: str) -> None:
    sampler = CASES[case]
    assert dataclasses.is_dataclass(sampler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.temperature = 2.0  # type: ignore[misc, union-attr]
    assert inspect.getdoc(type(sampler))
    assert isinstance(sampler.verifies, bool)
    assert dataclasses.replace(sampler) == sampler  # type: ignore[type-var]
    hash(sampler)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": None}, "temperature None"),
        ({"temperature": "x"}, "temperature 'x'"),
        ({"temperature": True}, "temperature True"),
        ({"top_p": "0.9"}, "top_p '0.9'"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_tempering_is_checked(name: str, settings: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        SAMPLERS[name](**settings)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Speculative(rounds=0), "rounds=0"),
        (lambda: Speculative(rounds=2.5), "rounds=2.5"),  # type: ignore[arg-type]
        (lambda: Ancestral(steps=8.0), "steps=8.0"),  # type: ignore[arg-type]
        (lambda: ConstantWindow(1.5), "constant window=1.5"),  # type: ignore[arg-type]
        (lambda: Speculative(first="verfy"), "Did you mean 'verify'"),  # type: ignore[arg-type]
        (lambda: Speculative(verification="blok"), "Did you mean 'block'"),  # type: ignore[arg-type]
        (lambda: Speculative(stop=1.5), "stop=1.5: expected a finite number from 0 to 1"),
        (lambda: Speculative(stop=-0.1), "stop=-0.1"),
        (lambda: Speculative(stop=float("nan")), "stop=nan"),
        (lambda: Speculative(order="randm"), "Did you mean 'random'"),  # type: ignore[arg-type]
        (lambda: AnyOrder(order="confidence"), "expected one of left-to-right, random"),  # type: ignore[arg-type]
        (lambda: AnyOrder(source="targt"), "Did you mean 'target'"),  # type: ignore[arg-type]
        (lambda: Ancestral(steps=0), "steps=0"),
        (lambda: Confidence(steps=0), "steps=0"),
        (lambda: Confidence(score="marginn"), "Did you mean 'margin'"),  # type: ignore[arg-type]
        (lambda: Confidence(schedule="cosin"), "Did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: Confidence(noise=-1), "noise=-1: expected a finite number at least 0"),
        (lambda: Confidence(noise=float("nan")), "noise=nan"),
        (lambda: Threshold(1.5), "threshold=1.5: expected a finite number from 0 to 1"),
        (lambda: Threshold(float("nan")), "threshold=nan"),
        (lambda: EntropyBound(-0.1), "gamma=-0.1"),
        (lambda: EntropyBound(float("inf")), "gamma=inf"),
        (lambda: Dilated(block=-1), "block=-1"),
        (lambda: Dilated(base=1), "base=1"),
        (lambda: Dilated(skip=1.1), "skip=1.1"),
        (lambda: Klass(threshold=2), "threshold=2"),
        (lambda: Klass(epsilon=-1), "epsilon=-1"),
        (lambda: Klass(epsilon=0), "epsilon=0: expected a finite number above 0"),
        (lambda: Klass(epsilon=True), "epsilon=True"),
        (lambda: Threshold(threshold=None), "threshold=None: expected a finite number from 0"),  # type: ignore[arg-type]
        (lambda: Star(start="x"), "start='x'"),  # type: ignore[arg-type]
        (lambda: ReMDM(eta=[0.5]), "eta=[0.5]"),  # type: ignore[arg-type]
        (lambda: CosineWindow("x"), "cosine window step 'x': expected 0 < step <= 1"),  # type: ignore[arg-type]
        (lambda: LinearWindow(None), "linear window step None"),  # type: ignore[arg-type]
        (lambda: Optimal(profile=None), "profile: expected a tuple of numbers"),  # type: ignore[arg-type]
        (lambda: Optimal(profile=[1.0, None]), "profile: expected a tuple of numbers"),  # type: ignore[arg-type, list-item]
        (lambda: Klass(history=0), "history=0"),
        (lambda: Klass(fallback=0), "fallback=0"),
        (lambda: Threshold(spacing=-1), "spacing=-1"),
        (lambda: EntropyBound(spacing=float("nan")), "spacing=nan"),
        (lambda: Star(steps=0), "steps=0"),
        (lambda: Star(start=1.5), "start=1.5"),
        (lambda: Star(scale=0), "scale=0"),
        (lambda: Star(score="confidnce"), "Did you mean 'confidence'"),  # type: ignore[arg-type]
        (lambda: ReMDM(rule="lop"), "Did you mean 'loop'"),  # type: ignore[arg-type]
        (lambda: ReMDM(eta=1.5), "eta=1.5"),
        (lambda: ReMDM(rule="loop", schedule="cosine"), "its schedule is linear"),
        (lambda: ReMDM(t_on=0.05, t_off=0.5), "0 < t_off < t_on < 1"),
        (lambda: ReMDM(alpha_on=1.0), "alpha_on=1.0"),
        (lambda: ReMDM(t_on="x"), "t_on='x': expected a finite number from 0 to 1"),  # type: ignore[arg-type]
        (lambda: PathPlanning(eta=-0.5), "eta=-0.5"),
        (lambda: PathPlanning(steps=0), "steps=0"),
        (lambda: PathPlanning(planner="m"), "planner='m': expected None or a model"),  # type: ignore[arg-type]
        (lambda: Star(score="learned", error_head=2), "error_head=2: expected None or an"),  # type: ignore[arg-type]
        (lambda: LearnedPolicy(policy="f"), "policy='f': expected an UnmaskingPolicy"),  # type: ignore[arg-type]
        (lambda: RunningConfidence(schedule="cosin"), "Did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: Optimal(steps=0), "steps=0"),
        (lambda: Optimal(profile=(1.0, float("nan"))), "profile: expected a tuple of finite"),
        (lambda: Optimal(profile=("a",)), "profile: expected a tuple of numbers"),  # type: ignore[arg-type]
        (lambda: AnySubset(k=1), "k=1"),
        (lambda: Ancestral(counts="fix"), "Did you mean 'fixed'"),  # type: ignore[arg-type]
        (lambda: Ancestral(schedule="cosin"), "Did you mean 'cosine'"),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked(make: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listed", [list, torch.tensor, np.array])
def test_a_profile_may_be_any_list_of_numbers(listed: Any) -> None:
    """It becomes a tuple, so that the settings can be hashed and compared."""
    values = (3.0, 2.0, 1.0, 0.5)
    sampler = Optimal(3, listed(values))
    assert sampler == Optimal(3, values)
    assert hash(sampler) == hash(Optimal(3, values))
    assert specmask.sample(MODEL, sampler, num=1).trunk_passes.tolist() == [3]


# ------------------------------------------------------------------------------------------ rows


@every_sampler
def test_a_row_does_not_depend_on_its_batch(case: str) -> None:
    """Row k alone, in a batch of 7, and in batches of 3: the same row.

    Guards against uniforms taken from a stream, and against indices of rows that have left.
    """
    whole = draw(case, num=7)
    parts = draw(case, num=7, batch_size=3)
    for k in range(7):
        assert_same_row(whole, k, parts, k)
    for k in (0, 6):
        assert_same_row(whole, k, draw(case, rows=[k]), 0)
    shuffled = draw(case, rows=[5, 2, 900])
    assert_same_row(whole, 5, shuffled, 0)
    assert_same_row(whole, 2, shuffled, 1)
    if CASES[case].temperature != 0:  # type: ignore[union-attr]
        assert not torch.equal(shuffled.tokens[2], shuffled.tokens[1])


@every_sampler
def test_a_row_does_not_depend_on_rows_that_finish_early(case: str) -> None:
    """Rows of a ragged, partly given canvas, together and each alone without its padding."""
    canvas = ragged_canvas()
    whole = draw(case, canvas=canvas, lengths=LENGTHS)
    for k, size in enumerate(LENGTHS.tolist()):
        alone = draw(case, canvas=canvas[k : k + 1, :size], rows=[k])
        assert torch.equal(alone.tokens[0], whole.tokens[k, :size])
        assert torch.equal(alone.order[0], whole.order[k, :size])
        for field in ("trunk_passes", "verify_passes", "accepted", "rejected"):
            assert int(getattr(alone, field)) == int(getattr(whole, field)[k]), field


@every_sampler
def test_a_row_does_not_depend_on_the_memory_there_is(case: str) -> None:
    """Where no more than two rows fit, the same rows and the same passes, told once.

    Guards against a step that is not pure, and against passes counted of attempts that failed.
    """
    told: list[int] = []
    enough, scarce = (
        specmask.sample(
            specmask.wrap(Scarce(NETWORK, rows)),  # type: ignore[arg-type]
            CASES[case],
            canvas=ragged_canvas(),
            lengths=LENGTHS,
            seed=11,
            on_smaller=told.append,
        )
        for rows in (7, 2)
    )
    for k in range(7):
        assert_same_row(enough, k, scarce, k)
    assert told == [2]  # of 7 rows one has nothing to fill: 6, then 3, then 2


@every_sampler
def test_padding_may_be_the_mask(case: str) -> None:
    """Blank rows of many lengths, as `num` and `lengths` make them, are filled; and a canvas comes
    out the same whatever stands behind its rows.

    Guards against probabilities that are looked up at a rank outside the row.
    """
    inside = torch.arange(LENGTH) < LENGTHS[:, None]
    blank = draw(case, num=7, lengths=LENGTHS)
    assert bool((blank.tokens[inside] < VOCAB).all())
    assert bool((blank.tokens[~inside] == MASK).all())
    canvas = ragged_canvas()
    usual = draw(case, canvas=canvas, lengths=LENGTHS)
    other = draw(case, canvas=canvas.masked_fill(~inside, MASK), lengths=LENGTHS)
    assert torch.equal(other.tokens[inside], usual.tokens[inside])
    assert torch.equal(other.nfe, usual.nfe)


@every_sampler
def test_the_seed_names_the_result(case: str) -> None:
    first = draw(case, num=6, seed=2**64 - 1)
    again = draw(case, num=6, seed=2**64 - 1)
    for k in range(6):
        assert_same_row(first, k, again, k)
    sampler = CASES[case]
    if sampler.temperature == 0:  # type: ignore[union-attr]
        return
    other = draw(case, num=6, seed=12)
    assert not torch.equal(first.tokens, other.tokens)
    assert len({tuple(row) for row in first.tokens.tolist()}) == 6


# ---------------------------------------------------------------------------------------- canvas


@every_sampler
def test_what_is_given_stays_and_all_else_is_filled(case: str) -> None:
    canvas = ragged_canvas()
    before = canvas.clone()
    out = draw(case, canvas=canvas, lengths=LENGTHS)
    assert torch.equal(canvas, before)  # the caller's tensor
    assert torch.equal(out.lengths, LENGTHS)
    inside = torch.arange(LENGTH) < LENGTHS[:, None]
    given = inside & (canvas != MASK)
    assert torch.equal(out.tokens[given], canvas[given])
    assert bool((out.tokens[~inside] == PADDING).all())
    assert bool((out.tokens[inside] < VOCAB).all())
    assert bool((out.tokens >= 0).all())


@every_sampler
def test_the_order_is_a_permutation_with_given_first_and_padding_last(case: str) -> None:
    canvas = ragged_canvas()
    out = draw(case, canvas=canvas, lengths=LENGTHS)
    assert bool((out.order.sort(1).values == torch.arange(LENGTH)).all())
    for k, size in enumerate(LENGTHS.tolist()):
        given = set((canvas[k, :size] != MASK).nonzero()[:, 0].tolist())
        assert set(out.order[k, : len(given)].tolist()) == given
        assert set(out.order[k, size:].tolist()) == set(range(size, LENGTH))
        if getattr(CASES[case], "order", "random") == "left-to-right":
            free = out.order[k, len(given) : size].tolist()
            assert free == sorted(free)


@every_sampler
def test_a_finished_canvas_costs_nothing(case: str) -> None:
    canvas = torch.arange(LENGTH).remainder(VOCAB).expand(2, -1)
    out = draw(case, canvas=canvas)
    assert torch.equal(out.tokens, canvas)
    for field in ("trunk_passes", "verify_passes", "nfe", "accepted", "rejected"):
        assert getattr(out, field).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------ cost


@every_sampler
def test_passes_stay_within_their_bounds(case: str) -> None:
    sampler, canvas = CASES[case], ragged_canvas()
    out = draw(case, canvas=canvas, lengths=LENGTHS)
    inside = torch.arange(LENGTH) < LENGTHS[:, None]
    free = (inside & (canvas == MASK)).sum(1)
    trunk, verify = out.trunk_passes, out.verify_passes
    share = NETWORK.trunk_layers, NETWORK.head_layers
    extra = share[0] * trunk.double() if getattr(sampler, "planner", None) else 0.0 * trunk
    if isinstance(sampler, LearnedPolicy):  # parameters over parameters, embeddings aside
        size = sum(p.numel() for n, p in NETWORK.named_parameters() if "embed." not in n)
        own = sum(p.numel() for p in sampler.policy.parameters()) if sampler.policy else 0
        extra = own / size * sum(share) * trunk
    if getattr(sampler, "error_head", None):  # see test_error_head.py
        extra = out.nfe * sum(share) - share[0] * trunk
    expected = (share[0] * trunk + share[1] * verify + extra).double() / sum(share)
    torch.testing.assert_close(out.nfe, expected)
    assert out.nfe.dtype == torch.float64
    assert torch.equal(trunk == 0, free == 0)
    assert bool((out.rejected >= 0).all())
    if isinstance(sampler, REMASKING):
        scores = 2 if getattr(sampler, "error_head", None) else 1
        assert bool((trunk <= scores * sampler.steps).all())
        assert bool((out.accepted >= free).all())
    else:
        assert bool((trunk <= free).all())
        assert torch.equal(out.accepted + out.rejected, free)
    if isinstance(sampler, Speculative):
        assert bool((verify <= sampler.rounds * trunk).all())
        if sampler.first == "verify":
            assert bool((verify >= trunk).all())
        assert bool((out.rejected <= verify).all())
    if isinstance(sampler, FirstHitting):
        assert torch.equal(trunk, free)
    if isinstance(sampler, Confidence | RunningConfidence):
        cuts = fixed_cuts(sampler.schedule, sampler.steps, LENGTHS - free, LENGTHS)
        assert torch.equal(trunk, (cuts.diff(dim=1) > 0).sum(1))
    if isinstance(sampler, AnyOrder):
        assert torch.equal(trunk, free)
        assert torch.equal(verify, free if sampler.source == "target" else 0 * free)
    if isinstance(sampler, Ancestral):
        assert bool((trunk <= sampler.steps).all())
        assert verify.tolist() == [0] * 7
        if sampler.counts == "fixed":
            cuts = fixed_cuts(sampler.schedule, sampler.steps, LENGTHS - free, LENGTHS)
            assert torch.equal(trunk, (cuts.diff(dim=1) > 0).sum(1))
    if isinstance(sampler, Optimal):
        assert torch.equal(trunk, free.clamp(max=sampler.steps))
    if isinstance(sampler, AnySubset):
        assert bool((trunk + verify <= free).all())
    if isinstance(sampler, Dilated):
        sizes = [min(sampler.block or n, n - k) for n, k in blocks_of(sampler, LENGTHS.tolist())]
        most = sum(max(1, math.ceil(math.log(size, sampler.base) - 1e-9)) for size in sizes)
        assert int(trunk.sum()) <= most
    if isinstance(sampler, PathPlanning):
        shares = schedule_levels(sampler.schedule, sampler.steps)
        waiting = [(free * (1 - share) + 1e-9).floor() > 0 for share in shares[:-1]]
        assert torch.equal(trunk, torch.stack(waiting).sum(0))
    if isinstance(sampler, Star):
        levels = schedule_levels(sampler.schedule, sampler.steps)
        left = (free[:, None] * (1 - levels) - 1e-9).ceil()
        late = 1 - torch.arange(sampler.steps) / sampler.steps <= sampler.start + 1e-9
        passing = ((left.diff(dim=1) < 0) | (late & (free > 0)[:, None])).sum(1)
        scored = (late & (left[:, 1:] > 0)).sum(1) if sampler.error_head is not None else 0
        assert torch.equal(trunk, passing + scored)
    if not sampler.verifies:
        assert verify.tolist() == [0] * 7


def blocks_of(sampler: Dilated, lengths: list[int]) -> list[tuple[int, int]]:
    """Length of the row and start of the block, for every block of every row."""
    return [(n, k) for n in lengths for k in range(0, n, sampler.block or n)]


HEURISTICS = [
    Confidence(),
    Threshold(),
    EntropyBound(),
    Dilated(),
    Klass(),
    Star(),
    ReMDM(),
    PathPlanning(),
    RunningConfidence(),
    LearnedPolicy(),
]


@pytest.mark.parametrize("sampler", HEURISTICS)
def test_a_heuristic_has_no_law_and_says_so(sampler: Any) -> None:
    with pytest.raises(UserError, match=f"{type(sampler).__name__} has no tractable law"):
        sampler.law()


def test_first_hitting_times_are_those_of_the_continuous_process() -> None:
    """Under the linear schedule each of D = 32 tokens is masked at time t with probability t: how
    many still are at t = 1/2 is binomial. χ² at 1e-6, 6000 rows, wide bins."""
    canvas = Canvas(
        torch.full((6000, LENGTH), MASK), torch.full((6000,), LENGTH), torch.arange(6000), MASK
    )
    sampler, uniforms = FirstHitting(), Uniforms(3)
    state = sampler.init(canvas, uniforms)
    masked = torch.full((6000,), LENGTH)
    meter = Meter(NETWORK, 6000, torch.device("cpu"))
    last = state.time
    for n in range(LENGTH, 0, -1):
        state, _ = sampler.step(meter, state, uniforms)
        assert isinstance(state, FirstHittingState)
        assert bool((state.time < last).all())
        last = state.time
        masked = torch.where(state.time > 0.5, n - 1, masked)
    law = torch.tensor(scipy.stats.binom(LENGTH, 0.5).pmf(range(LENGTH + 1)))
    assert chi_square(torch.bincount(masked, minlength=LENGTH + 1), law) > 1e-6


def test_first_accept_reveals_two_ranks_a_pass_at_least() -> None:
    sampler = Speculative(ConstantWindow(6), first="accept")
    frames = list(specmask.stream(MODEL, sampler, num=8, seed=3))
    for frame in frames[1:]:
        short = frame.revealed < frame.lengths
        assert bool((frame.info.revealed[short] >= 2).all())
    out = specmask.sample(MODEL, sampler, num=8, seed=3)
    assert int(out.rejected.sum()) > 0
    assert int(out.trunk_passes.max()) <= LENGTH // 2
    single = specmask.sample(MODEL, Speculative(ConstantWindow(1), first="accept"), num=4)
    assert single.verify_passes.tolist() == [0] * 4
    assert single.trunk_passes.tolist() == [LENGTH] * 4


def test_a_stop_reveals_less_a_pass_and_always_a_rank() -> None:
    """More trunk passes than without it; at 1, one for each rank."""
    free = draw("speculative-full", num=16)
    stopped = specmask.sample(MODEL, Speculative(FullWindow(), stop=0.25), num=16, seed=11)
    assert int(stopped.trunk_passes.sum()) > int(free.trunk_passes.sum())
    never = specmask.sample(MODEL, Speculative(FullWindow(), stop=1.0), num=4)
    assert never.trunk_passes.tolist() == [LENGTH] * 4


@every_sampler
@pytest.mark.parametrize("ranks", [1, 3])
def test_blocks_of_ranks_change_nothing(
    case: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits formed for one or three ranks at a time, where they are looked at: the same samples,
    also where a scan goes on from block to block or ends before the last."""
    whole = draw(case, num=4)
    monkeypatch.setitem(protocol._BLOCK, "cpu", 4 * VOCAB * ranks)
    parts = draw(case, num=4)
    for k in range(4):
        assert_same_row(whole, k, parts, k)


def test_the_drafts_of_this_network_are_rejected_often_enough_to_test_anything() -> None:
    out = draw("speculative-full", num=16)
    share = float(out.rejected.sum()) / (16 * LENGTH)
    assert 0.05 < share < 0.6


# ------------------------------------------------------------------------------------------- spy


class Spy:
    """A network that writes down what it was asked."""

    def __init__(self, inner: HybridTransformer) -> None:
        self.inner = inner
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(inner, name))
        self.calls: list[tuple[str, Tensor]] = []

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        # A learned error score reads rows that are filled for the moment.
        kind = "trunk" if bool((tokens == self.mask_id).any()) else "filled"
        self.calls.append((kind, tokens.clone()))
        return self.inner.trunk(tokens, lengths)

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        self.calls.append(("draft", positions.clone()))
        return self.inner.draft_logits(hidden, positions)

    def prefix(self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor) -> Any:
        self.calls.append(("prefix", revealed.clone()))
        return self.inner.prefix(hidden, tokens, order, revealed)

    def verify(self, prefix: Any, ranks: Tensor, drafts: Tensor) -> Tensor:
        self.calls.append(("verify", ranks.clone()))
        return self.inner.verify(prefix, ranks, drafts)


class Scarce(Spy):
    """A network whose memory holds what follows the trunk for so many rows only."""

    def __init__(self, inner: HybridTransformer, rows: int) -> None:
        super().__init__(inner)
        self.rows = rows

    def _try(self, hidden: Tensor) -> None:
        if len(hidden) > self.rows:  # the trunk's pass is counted by now
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        self._try(hidden)
        return super().draft_logits(hidden, positions)

    def prefix(self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor) -> Any:
        self._try(hidden)
        return super().prefix(hidden, tokens, order, revealed)


def spied(case: str) -> tuple[Spy, list[Frame], Samples]:
    """A ragged canvas filled in one batch, with each frame and each call."""
    spy, frames = Spy(NETWORK), []
    model = specmask.wrap(spy)  # type: ignore[arg-type]

    def look(frame: Frame) -> None:
        if not frames:  # what a sampler asks while it is checked is no part of the run
            spy.calls.clear()
        frames.append(frame)

    out = specmask.sample(
        model, CASES[case], canvas=ragged_canvas(), lengths=LENGTHS, seed=11, on_frame=look
    )
    return spy, frames, out


@every_sampler
def test_the_vocabulary_is_met_inside_the_window_alone(case: str) -> None:
    """Logits are asked for at the ranks a step may reveal, never for the whole row.

    A confidence order is exempt: it looks at every masked position by definition.
    """
    sampler = CASES[case]
    spy, frames, _ = spied(case)
    steps = iter(frames)
    limit, width = 0, 0
    for kind, value in spy.calls:
        if kind == "trunk":
            frame = next(steps)
            alive = ~frame.finished
            revealed, lengths = frame.revealed[alive], frame.lengths[alive]
            assert len(value) == int(alive.sum())  # finished rows have left the batch
            if isinstance(sampler, PathPlanning):  # known positions are proposed anew
                limit = LENGTH
            elif isinstance(sampler, Speculative):
                ends = window_ends(sampler.window, revealed, lengths)
                limit = int((ends - revealed).max())
            else:
                limit = int((lengths - revealed).max())
            start, width = int(revealed.min()), limit
        elif kind == "draft":
            if getattr(sampler, "order", "") != "confidence":
                assert value.shape[1] <= limit
        elif kind == "verify":
            assert value.shape[1] <= width
            assert int(value.min()) >= start
            width = value.shape[1]  # later rounds never look at more
    if isinstance(sampler, AnyOrder):
        assert all(x.shape[1] == 1 for kind, x in spy.calls if kind in ("draft", "verify"))
    if isinstance(sampler, Ancestral):
        revealed = [int(frame.info.revealed.max()) for frame in frames[1:]]
        assert [x.shape[1] for kind, x in spy.calls if kind == "draft"] == revealed


@every_sampler
def test_the_trunk_sees_what_is_revealed_and_nothing_else(case: str) -> None:
    """Each trunk pass reads exactly the canvas and the tokens revealed so far."""
    spy, frames, _ = spied(case)
    seen = [value for kind, value in spy.calls if kind == "trunk"]
    for tokens, frame in zip(seen, frames, strict=False):
        alive = ~frame.finished
        assert torch.equal(tokens, frame.tokens[alive])
        inside = torch.arange(LENGTH) < frame.lengths[:, None]
        masks = (inside & (frame.tokens == MASK)).sum(1)
        assert torch.equal(masks, frame.lengths - frame.revealed)


@every_sampler
def test_metered_passes_are_the_calls_made(case: str) -> None:
    spy, _, out = spied(case)
    kinds = ("trunk", "filled", "verify")
    rows = {kind: sum(len(x) for k, x in spy.calls if k == kind) for kind in kinds}
    assert rows["trunk"] + rows["filled"] == int(out.trunk_passes.sum())
    assert (rows["filled"] > 0) == (case == "star-learned")
    assert rows["verify"] == int(out.verify_passes.sum())
    calls = [kind for kind, _ in spy.calls]
    assert calls.count("prefix") <= calls.count("trunk")


# ---------------------------------------------------------------------------------------- frames


@every_sampler
def test_frames_tell_the_same_story_as_the_samples(case: str) -> None:
    canvas = ragged_canvas()
    names = [40, 41, 42, 43, 44, 45, 46]
    settings: dict[str, Any] = {
        "canvas": canvas, "lengths": LENGTHS, "rows": names, "seed": 5, "batch_size": 4,
    }  # fmt: skip
    out = specmask.sample(MODEL, CASES[case], **settings)
    frames = list(specmask.stream(MODEL, CASES[case], **settings))
    starts = [frame for frame in frames if frame.step == 0]
    assert [frame.rows.tolist() for frame in starts] == [[40, 42, 45, 44], [46, 41, 43]]  # longest
    last: dict[int, tuple[Frame, int]] = {}
    done: set[int] = set()
    accepted = dict.fromkeys(names, 0)
    for frame in frames:
        assert torch.equal(frame.finished, frame.revealed == frame.lengths)
        assert frame.seconds >= 0
        for k, name in enumerate(frame.rows.tolist()):
            row = name - 40
            assert name not in done
            if frame.step == 0:
                assert torch.equal(frame.tokens[k], canvas[row])
                for field in ("revealed", "accepted", "rejected", "rounds"):
                    assert int(getattr(frame.info, field)[k]) == 0
                assert int(frame.passes.nfe[k]) == 0
            else:
                before, b = last[name]
                assert frame.step == before.step + 1
                given = int((canvas[row, : LENGTHS[row]] != MASK).sum())
                if isinstance(CASES[case], REMASKING):
                    second = case == "star-learned"
                    assert_rewrite(before, b, frame, k, given, second)
                else:
                    assert_step(before, b, frame, k)
            accepted[name] += int(frame.info.accepted[k])
            last[name] = frame, k
            if bool(frame.finished[k]):
                done.add(name)
                assert torch.equal(frame.tokens[k], out.tokens[row])
                assert torch.equal(frame.order[k], out.order[row])
                assert int(frame.passes.trunk[k]) == int(out.trunk_passes[row])
                assert int(frame.passes.verify[k]) == int(out.verify_passes[row])
                assert float(frame.passes.nfe[k]) == float(out.nfe[row])
                assert accepted[name] == int(out.accepted[row])
    assert done == set(names)


def assert_step(before: Frame, b: int, after: Frame, k: int) -> None:
    """One row's step from `before` to `after`."""
    info, old, new = after.info, int(before.revealed[b]), int(after.revealed[k])
    assert int(info.revealed[k]) == new - old >= 1
    assert int(info.accepted[k]) + int(info.rejected[k]) == new - old
    assert int(after.passes.trunk[k]) == int(before.passes.trunk[b]) + 1
    assert int(after.passes.verify[k]) == int(before.passes.verify[b]) + int(info.rounds[k])
    assert torch.equal(after.order[k, :old], before.order[b, :old])
    known = after.order[k, :old]
    assert torch.equal(after.tokens[k, known], before.tokens[b, known])
    hidden = after.order[k, new : int(after.lengths[k])]
    assert bool((after.tokens[k, hidden] == MASK).all())
    rejected = info.rejected_drafts[k]
    places = (rejected >= 0).nonzero()[:, 0]
    assert len(places) == int(info.rejected[k])
    assert set(places.tolist()) <= set(after.order[k, old:new].tolist())
    # (p − q)₊ is zero at a draft that was rejected.
    assert not bool((rejected[places] == after.tokens[k, places]).any())


def assert_rewrite(
    before: Frame, b: int, after: Frame, k: int, given: int, second: bool = False
) -> None:
    """One row's step from `before` to `after`, of a sampler that may hide again.

    `second`: it looks at the filled row where it hides some, which is a pass more.
    """
    info, old, new = after.info, int(before.revealed[b]), int(after.revealed[k])
    first = before.order[b, :old].tolist()
    now = after.order[k, :new].tolist()
    kept = [d for d in first if d in set(now)]
    assert now[: len(kept)] == kept  # what stays comes first, in its old order
    assert kept[:given] == first[:given]
    assert int(info.revealed[k]) == int(info.accepted[k]) == new - len(kept)
    assert int(info.remasked[k]) == old - len(kept)
    assert int(info.rejected[k]) == 0
    assert torch.equal(after.tokens[k, kept], before.tokens[b, kept])
    passes = int(after.passes.trunk[k]) - int(before.passes.trunk[b])
    again = second and int(info.remasked[k]) > 0
    assert passes in ({2} if again else {1, 2} if second else {1})
    hidden = after.order[k, new : int(after.lengths[k])]
    assert bool((after.tokens[k, hidden] == MASK).all())
    assert bool((after.tokens[k, now] != MASK).all())


def test_text_is_decoded_without_padding() -> None:
    tokenizer = Tokenizer(WordLevel({c: i for i, c in enumerate("abcdefghijk")}, unk_token="a"))
    tokenizer.decoder = Fuse()
    out = specmask.sample(
        specmask.wrap(NETWORK, tokenizer),
        Speculative(),
        canvas=ragged_canvas(),
        lengths=LENGTHS.tolist(),
    )
    assert out.text is not None
    expected = [
        "".join("abcdefghijk"[t] for t in row[:n])
        for row, n in zip(out.tokens.tolist(), LENGTHS.tolist(), strict=True)
    ]
    assert out.text == expected
    assert len(out) == 7


# ------------------------------------------------------------------------------------- bad calls


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "pass num"),
        ({"num": 0}, "num=0"),
        ({"num": 2, "length": 33}, "length=33"),
        ({"num": 2, "length": 0}, "length=0"),
        ({"num": 2, "canvas": torch.full((2, 4), MASK)}, "together with canvas"),
        ({"canvas": torch.full((4,), MASK)}, "canvas of shape"),
        ({"canvas": torch.zeros(2, 4)}, "canvas of shape"),
        ({"canvas": torch.zeros(0, 4, dtype=torch.int64)}, "canvas of shape"),
        ({"canvas": torch.full((2, 33), MASK)}, "at most 32"),
        ({"canvas": torch.full((2, 4), MASK + 1)}, "holds token 12"),
        ({"canvas": torch.full((2, 4), -1)}, "holds token -1"),
        ({"num": 2, "lengths": [3]}, "2 whole numbers from 1 to 32"),
        ({"num": 2, "lengths": [3.7, 4.0]}, "lengths=[3.7"),
        ({"num": 2, "lengths": ["a", "b"]}, "2 whole numbers from 1 to 32"),
        ({"num": 2.5}, "num=2.5"),
        ({"num": 2, "seed": 1.5}, "seed=1.5"),
        ({"num": 2, "batch_size": 1.5}, "batch_size=1.5"),
        ({"canvas": [[1, 2]]}, "canvas is a list"),
        ({"num": 2, "lengths": [0, 3]}, "from 1 to 32"),
        ({"num": 2, "lengths": [3, 33]}, "from 1 to 32"),
        ({"num": 2, "rows": [1]}, "2 whole numbers from 0"),
        ({"num": 2, "rows": [1, 1]}, "occurs twice"),
        ({"num": 2, "rows": [-1, 1]}, "2 whole numbers from 0"),
        ({"num": 1, "rows": [2**32]}, "rows"),
        ({"num": 2, "seed": -1}, "seed=-1"),
        ({"num": 2, "seed": 2**64}, "seed="),
        ({"num": 2, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_calls_are_refused_before_any_pass(settings: dict[str, Any], expected: str) -> None:
    spy = Spy(NETWORK)
    with pytest.raises(UserError) as caught:
        specmask.sample(specmask.wrap(spy), Speculative(), **settings)  # type: ignore[arg-type]
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert spy.calls == []


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = network()
    with torch.no_grad():
        broken.head.start[0] = torch.nan
    with pytest.raises(UserError, match=r"head\.start"):
        specmask.sample(specmask.wrap(broken), Speculative(), num=1)
