"""Each heuristic against a literal transcription of its published rule, one row, pass by pass.

The transcriptions work on plain lists of probabilities and share nothing with the samplers but the
uniforms, which the contract names by (seed, row, position, purpose, pass).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import specmask
from oracle import tiny_network
from specmask import Confidence, EntropyBound, Threshold
from specmask.categorical import Purpose, uniform
from specmask.samplers import Sampler

VOCAB, LENGTH, SEED = 7, 20, 5
NETWORK = tiny_network(
    1, vocab_size=VOCAB, length=LENGTH, width=16, scale=0.5, seed=4, dtype=torch.float32
)
MASK = NETWORK.mask_id


@dataclass
class Pass:
    """What one pass of one row has to choose from."""

    row: int
    number: int  # passes made before
    p: dict[int, list[float]]  # masked position → probabilities
    drawn: dict[int, int]  # masked position → token drawn
    free: int  # positions that were masked at first
    share: float = 0.0  # of the steps that are over after this pass

    def gumbel(self, d: int) -> float:
        u = float(uniform(SEED, torch.tensor(self.row), d, Purpose.SELECT, self.number))
        return -math.log(-math.log(1 - u))


Rule = Callable[[Pass], set[int]]


def literal(rule: Rule, row: int, canvas: list[int]) -> list[dict[int, int]]:
    """What each pass reveals, position → token."""
    tokens, passes = list(canvas), []
    free = tokens.count(MASK)
    while MASK in tokens:
        hidden = NETWORK.trunk(torch.tensor([tokens]), torch.tensor([len(tokens)]))
        logits = NETWORK.draft_logits(hidden, torch.arange(len(tokens))[None])[0].double()
        p = {d: logits[d].softmax(-1).tolist() for d, t in enumerate(tokens) if t == MASK}
        drawn = {}
        for d, law in p.items():
            u = float(uniform(SEED, torch.tensor(row), d, Purpose.DRAFT, len(passes)))
            drawn[d] = next(v for v in range(VOCAB) if sum(law[: v + 1]) > u)
        chosen = rule(Pass(row, len(passes), p, drawn, free))
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
}


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_choices_are_those_of_the_published_rule(name: str, holes: bool) -> None:
    """Same positions and same tokens in every pass, for eight rows sampled in one batch."""
    sampler, rule = CASES[name]
    canvas = torch.full((8, LENGTH), MASK)
    # At least one token is given: with none, positions that are known relatively are all alike.
    canvas[:, :: 3 if holes else LENGTH] = torch.arange(8)[:, None] % VOCAB
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
