"""Each heuristic against a literal transcription of its published rule, one row, pass by pass.

The transcriptions work on plain lists of probabilities and share nothing with the samplers but the
uniforms, which the contract names by (seed, row, position, purpose, pass).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

import specmask
from oracle import tiny_network
from specmask import (
    Confidence,
    Dilated,
    EntropyBound,
    HybridTransformer,
    Klass,
    PathPlanning,
    ReMDM,
    RunningConfidence,
    Star,
    Threshold,
)
from specmask.categorical import Purpose, uniform
from specmask.samplers import Sampler
from specmask.samplers.remdm import largest_sigma

VOCAB, LENGTH, SEED = 7, 20, 5
NETWORK = tiny_network(
    1, vocab_size=VOCAB, length=LENGTH, width=16, scale=0.5, seed=4, dtype=torch.float32
)
MASK = NETWORK.mask_id
PLANNER = tiny_network(
    1, vocab_size=VOCAB, length=LENGTH, width=16, scale=0.5, seed=6, dtype=torch.float32
)


@dataclass
class Pass:
    """What one pass of one row has to choose from."""

    row: int
    number: int  # passes made before
    p: dict[int, list[float]]  # masked position → probabilities
    drawn: dict[int, int]  # masked position → token drawn
    free: int  # positions that were masked at first
    memory: dict[str, Any]  # of the rule, for this row
    share: float = 0.0  # of the steps that are over after this pass

    def gumbel(self, d: int) -> float:
        return -math.log(-math.log(1 - u(self.row, d, Purpose.SELECT, self.number)))


Rule = Callable[[Pass], set[int]]


def conditionals(tokens: list[int], network: HybridTransformer = NETWORK) -> list[list[float]]:
    """A network's probabilities at every position of one row."""
    hidden = network.trunk(torch.tensor([tokens]), torch.tensor([len(tokens)]))
    logits = network.draft_logits(hidden, torch.arange(len(tokens))[None])[0].double()
    return logits.softmax(-1).tolist()


def u(row: int, d: int, purpose: Purpose, number: int) -> float:
    return float(uniform(SEED, torch.tensor(row), d, purpose, number))


def drawn_from(p: list[float], row: int, d: int, number: int) -> int:
    threshold = u(row, d, Purpose.DRAFT, number)
    return next(v for v in range(VOCAB) if sum(p[: v + 1]) > threshold)


def literal(rule: Rule, row: int, canvas: list[int]) -> list[dict[int, int]]:
    """What each pass reveals, position → token."""
    tokens, passes = list(canvas), []
    free, memory = tokens.count(MASK), {}
    while MASK in tokens:
        every = conditionals(tokens)
        p = {d: every[d] for d, t in enumerate(tokens) if t == MASK}
        drawn = {d: drawn_from(law, row, d, len(passes)) for d, law in p.items()}
        chosen = rule(Pass(row, len(passes), p, drawn, free, memory))
        passes.append({d: drawn[d] for d in chosen})
        for d in chosen:
            tokens[d] = drawn[d]
    return passes


def entropy(p: list[float]) -> float:
    return -sum(x * math.log2(x) for x in p if x > 0)


def margin(p: list[float]) -> float:
    return sorted(p)[-1] - sorted(p)[-2]


def counted(
    steps: int, schedule: Callable[[float], float], score: Callable[[Pass, int], float]
) -> Rule:
    """MaskGIT: ⌊free·γ((j + 1)/S)⌋ stay masked, the surest leave."""

    def rule(now: Pass) -> set[int]:
        step = next(
            j
            for j in range(1, steps + 1)
            if math.floor(now.free * schedule(j / steps) + 1e-9) < len(now.p)
        )
        now.share = step / steps
        keep = math.floor(now.free * schedule(now.share) + 1e-9)
        surest = sorted(now.p, key=lambda d: -score(now, d))
        return set(surest[: len(now.p) - keep])

    return rule


def noisy(now: Pass, d: int) -> float:
    return math.log(now.p[d][now.drawn[d]]) + 4.5 * (1 - now.share) * now.gumbel(d)


def certain(now: Pass) -> set[int]:
    """Fast-dLLM: all above the threshold, and the best in any case."""
    surest = max(now.p, key=lambda d: max(now.p[d]))
    return {d for d in now.p if max(now.p[d]) >= 0.6} | {surest}


def bounded(now: Pass) -> set[int]:
    """EB: the longest ascending run whose entropies less the largest stay within γ."""
    ascending = sorted(now.p, key=lambda d: entropy(now.p[d]))
    count = 1
    while count < len(ascending):
        group = [entropy(now.p[d]) for d in ascending[: count + 1]]
        if sum(group) - max(group) > 1.5:
            break
        count += 1
    return set(ascending[:count])


def apart(now: Pass, chosen: list[int], block: int) -> set[int]:
    """The spacing filter with g0 = 8: best first, far enough from all that were taken."""
    distance = max(2, math.floor(len(now.p) * 8 / block))
    taken: set[int] = set()
    for d in chosen:
        if all(abs(d - other) >= distance for other in taken):
            taken.add(d)
    return taken


def certain_apart(now: Pass) -> set[int]:
    chosen = sorted(certain(now), key=lambda d: -max(now.p[d]))
    return apart(now, chosen, LENGTH)


def bounded_apart(now: Pass) -> set[int]:
    chosen = sorted(bounded(now), key=lambda d: entropy(now.p[d]))
    return apart(now, chosen, LENGTH)


def dilated(now: Pass) -> set[int]:
    """DUS with B = 8, a = 2 on 20 positions; a position below .45 waits, but not in its block's
    last level. A level that takes nothing leaves the pass to the next one."""
    if not now.memory:
        levels = [({0, 4}, False), ({2, 6}, False), ({1, 3, 5, 7}, True)]
        short = [({0, 2}, False), ({1, 3}, True)]
        now.memory["levels"] = [
            ({8 * block + k for k in level}, last)
            for block, group in enumerate([levels, levels, short])
            for level, last in group
        ]
        now.memory["waiting"] = set()
    while True:
        level, last = now.memory["levels"].pop(0)
        now.memory["waiting"] |= level & set(now.p)
        take = {d for d in now.memory["waiting"] if last or max(now.p[d]) >= 0.45}
        now.memory["waiting"] -= take
        if take:
            return take


def klass(now: Pass) -> set[int]:
    """KLASS with τ = .3, ε = .4, n = 2, u = 2 and blocks of 8."""
    past = now.memory.setdefault("past", [])
    block = min(now.p) // 8
    here = [d for d in now.p if d // 8 == block]
    history = [*past[-2:], now.p]
    moves = [
        {d: sum(x * math.log(x / y) for x, y in zip(new[d], old[d], strict=True)) for d in new}
        for old, new in itertools.pairwise(history)
    ]
    past.append(dict(now.p))
    steady = [
        d
        for d in here
        if len(moves) == 2 and all(m[d] < 0.4 for m in moves) and max(now.p[d]) > 0.3
    ]
    return set(steady or sorted(here, key=lambda d: -max(now.p[d]))[:2])


def cosine(share: float) -> float:
    return math.cos(math.pi / 2 * share)


CASES: dict[str, tuple[Sampler, Rule]] = {
    "maskgit": (Confidence(steps=6, noise=4.5), counted(6, cosine, noisy)),
    "llada": (
        Confidence(steps=7, schedule="linear"),
        counted(7, lambda x: 1 - x, lambda now, d: now.p[d][now.drawn[d]]),
    ),
    "top": (
        Confidence(steps=5, score="top"),
        counted(5, cosine, lambda now, d: max(now.p[d])),
    ),
    "margin": (
        Confidence(steps=6, score="margin"),
        counted(6, cosine, lambda now, d: margin(now.p[d])),
    ),
    "entropy": (
        Confidence(steps=8, score="entropy"),
        counted(8, cosine, lambda now, d: -entropy(now.p[d])),
    ),
    "threshold": (Threshold(0.6), certain),
    "entropy-bound": (EntropyBound(1.5), bounded),
    "threshold-apart": (Threshold(0.6, spacing=8), certain_apart),
    "entropy-bound-apart": (EntropyBound(1.5, spacing=8), bounded_apart),
    "dilated": (Dilated(skip=0.45), dilated),
    "klass": (Klass(0.3, 0.4, fallback=2, block=8), klass),
}


def blanks(holes: bool) -> torch.Tensor:
    """Eight rows; at least one token is given: with none, positions that are known relatively are
    all alike."""
    canvas = torch.full((8, LENGTH), MASK)
    canvas[:, :: 3 if holes else LENGTH] = torch.arange(8)[:, None] % VOCAB
    return canvas


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_choices_are_those_of_the_published_rule(name: str, holes: bool) -> None:
    """Same positions and same tokens in every pass, for eight rows sampled in one batch."""
    sampler, rule = CASES[name]
    canvas = blanks(holes)
    found: list[list[dict[int, int]]] = [[] for _ in range(8)]
    before = canvas.clone()
    for frame in specmask.stream(specmask.wrap(NETWORK), sampler, canvas=canvas, seed=SEED):
        for row, tokens in zip(frame.rows.tolist(), frame.tokens, strict=True):
            new = (tokens != before[row]).nonzero()[:, 0].tolist()
            if frame.step:
                found[row].append({d: int(tokens[d]) for d in new})
            before[row] = tokens
    sizes = set()
    for row in range(8):
        with torch.no_grad():
            expected = literal(rule, row, canvas[row].tolist())
        assert found[row] == expected
        sizes |= {len(group) for group in expected}
    assert len(sizes) > 1  # the rule does choose


# --------------------------------------------------------------- samplers that hide again

Rows = list[list[int]]


def star(
    steps: int, start: float, suspicion: Callable[[float], float], row: int, canvas: list[int]
) -> Rows:
    """G-Star: ancestral with fixed counts, then fill all and hide the most suspicious."""
    tokens, passes, drawn_at = list(canvas), [], {}
    own = [d for d, t in enumerate(canvas) if t == MASK]
    order = sorted(own, key=lambda d: u(row, d, Purpose.ORDER, 0))
    for j in range(1, steps + 1):
        left = math.ceil(len(own) * (1 - j / steps) - 1e-9)
        masked = [d for d in order if tokens[d] == MASK]
        refining = 1 - (j - 1) / steps <= start + 1e-9
        if not refining and len(masked) <= left:
            continue
        p, n = conditionals(tokens), len(passes)
        for d in masked if refining else masked[: len(masked) - left]:
            tokens[d] = drawn_from(p[d], row, d, n)
            drawn_at[d] = p[d][tokens[d]]
        if refining:
            noise = {d: -math.log(-math.log(1 - u(row, d, Purpose.SELECT, n))) for d in own}
            worst = sorted(own, key=lambda d: -(suspicion(drawn_at[d]) + noise[d]))
            for d in worst[:left]:
                tokens[d] = MASK
        passes.append(list(tokens))
    return passes


def remdm(
    levels: list[float],
    sigma: Callable[[int, float, dict[int, float]], Callable[[int], float]],
    row: int,
    canvas: list[int],
) -> Rows:
    """ReMDM's posterior, position by position; a step that reveals nothing joins the one before."""
    tokens, passes, drawn_at = list(canvas), [], {}
    own = [d for d, t in enumerate(canvas) if t == MASK]
    for j, (now, then) in enumerate(itertools.pairwise(levels)):
        most = min(1.0, (1 - then) / now) if now > 0 else 1.0
        at = sigma(j, most, {d: drawn_at[d] for d in own if tokens[d] != MASK})
        chance = {d: u(row, d, Purpose.REVEAL, j) for d in own}
        show = [
            d
            for d in own
            if tokens[d] == MASK and chance[d] < (then - (1 - at(d)) * now) / (1 - now)
        ]
        hide = [d for d in own if tokens[d] != MASK and chance[d] < at(d)]
        p = conditionals(tokens) if show else []
        for d in show:
            tokens[d] = drawn_from(p[d], row, d, len(passes))
            drawn_at[d] = p[d][tokens[d]]
        for d in hide:
            tokens[d] = MASK
        if show:
            passes.append([])
        if passes:
            passes[-1] = list(tokens)
    return passes


def by_confidence(j: int, most: float, known: dict[int, float]) -> Callable[[int], float]:
    total = sum(math.exp(-x) for x in known.values())
    return lambda d: most * math.exp(-known[d]) / total if d in known else 0.0


def p2(
    steps: int, eta: float, planner: HybridTransformer | None, row: int, canvas: list[int]
) -> Rows:
    """P2: propose everywhere, hide the lowest scores; known tokens may be a planner's to score."""
    tokens, passes = list(canvas), []
    own = [d for d, t in enumerate(canvas) if t == MASK]
    for i in range(1, steps + 1):
        if MASK not in tokens:
            break
        p, n = conditionals(tokens), len(passes)
        proposal = {d: drawn_from(p[d], row, d, n) for d in own}
        score = {d: math.log(p[d][proposal[d]]) for d in own}
        if planner is not None:
            filled = [proposal[d] if t == MASK else t for d, t in enumerate(tokens)]
            planned = conditionals(filled, planner)
            score |= {d: math.log(planned[d][filled[d]]) for d in own if tokens[d] != MASK}
        score = {d: s * (1 if tokens[d] == MASK else eta) for d, s in score.items()}
        hide = sorted(own, key=lambda d: score[d])[: math.floor((1 - i / steps) * len(own) + 1e-9)]
        for d in own:
            if tokens[d] == MASK and d not in hide:
                tokens[d] = proposal[d]
        for d in hide:
            tokens[d] = MASK
        passes.append(list(tokens))
    return passes


def rcr(steps: int, row: int, canvas: list[int]) -> Rows:
    """RCR: fill everything, hide what was drawn with the least confidence."""
    tokens, passes, drawn_at = list(canvas), [], {}
    own = [d for d, t in enumerate(canvas) if t == MASK]
    for i in range(1, steps + 1):
        left = math.floor((1 - i / steps) * len(own) + 1e-9)
        if tokens.count(MASK) <= left:
            continue
        p = conditionals(tokens)
        for d in own:
            if tokens[d] == MASK:
                tokens[d] = drawn_from(p[d], row, d, len(passes))
                drawn_at[d] = p[d][tokens[d]]
        for d in sorted(own, key=lambda d: drawn_at[d])[:left]:
            tokens[d] = MASK
        passes.append(list(tokens))
    return passes


LINEAR_12 = [j / 12 for j in range(13)]
LOOP_20 = [
    0.9 * (1 - t) / 0.45 if t > 0.55 else max(0.9, 1 - 0.1 * t / 0.05)
    for t in (1 - j / 20 for j in range(21))
]
REWRITES: dict[str, tuple[Sampler, Callable[[int, list[int]], Rows]]] = {
    "star-confidence": (
        Star(steps=10, start=0.6, scale=0.1),
        partial(star, 10, 0.6, lambda p: -p / 0.1),
    ),
    "star-random": (Star(steps=10, score="random"), partial(star, 10, 0.3, lambda p: 0.0)),
    "remdm-cap": (
        ReMDM(steps=12, eta=0.3),
        partial(remdm, LINEAR_12, lambda j, most, known: lambda d: min(0.3, most)),
    ),
    "remdm-rescale": (
        ReMDM(steps=12, rule="rescale", eta=0.7),
        partial(remdm, LINEAR_12, lambda j, most, known: lambda d: 0.7 * most),
    ),
    "remdm-confidence": (
        ReMDM(steps=12, rule="confidence"),
        partial(remdm, LINEAR_12, by_confidence),
    ),
    "remdm-loop": (
        ReMDM(steps=20, rule="loop", eta=0.1),
        partial(
            remdm,
            LOOP_20,
            lambda j, most, known: lambda d: min(0.1, most) if 9 <= j < 19 else 0.0,
        ),
    ),
    "p2": (PathPlanning(steps=9), partial(p2, 9, 1.0, None)),
    "p2-eager": (PathPlanning(steps=9, eta=3.0), partial(p2, 9, 3.0, None)),
    "p2-planner": (
        PathPlanning(steps=9, planner=specmask.wrap(PLANNER)),
        partial(p2, 9, 1.0, PLANNER),
    ),
    "rcr": (RunningConfidence(steps=8), partial(rcr, 8)),
}


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", REWRITES)
def test_rewrites_are_those_of_the_published_rule(name: str, holes: bool) -> None:
    """The same row after every pass, for eight rows sampled in one batch; and tokens are hidden."""
    sampler, rule = REWRITES[name]
    canvas = blanks(holes)
    found: list[Rows] = [[] for _ in range(8)]
    hidden = 0
    for frame in specmask.stream(specmask.wrap(NETWORK), sampler, canvas=canvas, seed=SEED):
        hidden += int(frame.info.remasked.sum())
        for row, tokens in zip(frame.rows.tolist(), frame.tokens.tolist(), strict=True):
            if frame.step:
                found[row].append(tokens)
    for row in range(8):
        with torch.no_grad():
            assert found[row] == rule(row, canvas[row].tolist())
    assert hidden > 8


def test_eta_of_zero_hides_nothing() -> None:
    for frame in specmask.stream(specmask.wrap(NETWORK), PathPlanning(9, 0.0), num=8, seed=SEED):
        assert int(frame.info.remasked.sum()) == 0


def test_sigma_is_never_above_its_largest() -> None:
    """For every rule and step with η = 1: the chance to stay masked and to be revealed add up."""
    for rule in ("cap", "rescale", "confidence", "loop"):
        sampler = ReMDM(steps=40, rule=rule, eta=1.0)  # type: ignore[arg-type]
        levels = sampler._levels()
        known = torch.ones(40, 6, dtype=torch.bool)
        now, then = levels[:-1, None], levels[1:, None]
        log_p = torch.linspace(-3, 0, 6, dtype=torch.float64).expand(40, -1)
        sigma = sampler._sigma(torch.arange(40), now, then, known, log_p)
        assert bool((sigma >= 0).all())
        assert bool((sigma <= largest_sigma(now, then) + 1e-12).all())
        reveal = (then - (1 - sigma) * now) / (1 - now)
        assert bool((reveal <= 1 + 1e-12).all())
        assert bool((reveal >= -1e-12).all())
        assert float(levels[-1]) == 1.0
        assert bool((levels.diff() >= 0).all())


def test_the_first_of_a_bounded_pass_is_free_and_certain_ones_go_together() -> None:
    """γ = 0 reveals at least one a pass; a bound above every sum reveals all at once."""
    out = specmask.sample(specmask.wrap(NETWORK), EntropyBound(0.0), num=4, seed=1)
    assert out.trunk_passes.tolist() == [LENGTH] * 4
    out = specmask.sample(specmask.wrap(NETWORK), EntropyBound(1e9), num=4, seed=1)
    assert out.trunk_passes.tolist() == [1] * 4


def test_a_threshold_of_nothing_takes_all_and_of_one_takes_one() -> None:
    out = specmask.sample(specmask.wrap(NETWORK), Threshold(0.0), num=4, seed=1)
    assert out.trunk_passes.tolist() == [1] * 4
    out = specmask.sample(specmask.wrap(NETWORK), Threshold(1.0), num=4, seed=1)
    assert out.trunk_passes.tolist() == [LENGTH] * 4
