"""How often a sampler waits for an accelerator: counted on a pretended one (`accelerator`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import specmask
from accelerator import DEVICE, accelerator, move
from oracle import tiny_network
from specmask import (
    CosineWindow,
    FullWindow,
    HybridConfig,
    HybridTransformer,
    LinearWindow,
    Speculative,
)
from specmask.host import upload

RAGGED = [32, 5, 32, 1, 17, 9]


def network() -> HybridTransformer:
    """A third of its drafts is rejected."""
    return tiny_network(1, vocab_size=11, length=32, width=16, scale=0.35, seed=2)


def canvas(ragged: bool) -> dict[str, Any]:
    if not ragged:
        return {"num": 6, "length": 32}
    return {"canvas": torch.full((6, 32), network().mask_id), "lengths": RAGGED}


SPECULATIVE = {
    "accept": Speculative(CosineWindow(0.2)),
    "verify": Speculative(CosineWindow(0.3), rounds=3, first="verify"),
    "block": Speculative(FullWindow(), rounds=3, verification="block"),
    "confidence": Speculative(CosineWindow(0.3), rounds=2, order="confidence", top_p=0.9),
    "stop": Speculative(FullWindow(), rounds=2, stop=0.25),
    "subset": specmask.AnySubset(k=4),
}
OTHERS = {
    "ancestral": specmask.Ancestral(steps=8),
    "fixed": specmask.Ancestral(steps=8, counts="fixed"),
    "draft": specmask.AnyOrder(),
    "target": specmask.AnyOrder("target"),
    "first-hitting": specmask.FirstHitting(),
    "threshold": specmask.Threshold(0.3),
}
CASES = {**SPECULATIVE, **OTHERS}
SHORT = ("accept", "block", "ancestral")
FEW = [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in CASES]
EITHER = [True, pytest.param(False, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_round_waits_once_and_a_pass_without_one_at_most_once(case: str, ragged: bool) -> None:
    """Of the frame behind the last pass nothing but its finished rows is looked at.

    Guards against looks that creep in (an `int` of a device's tensor, a mask as an index), each of
    which lets an accelerator idle, and against tensors of two devices in one operation.
    """
    sampler, settings = CASES[case], canvas(ragged)
    with accelerator() as waits:
        frames = specmask.stream(specmask.wrap(move(network())), sampler, seed=1, **settings)
        next(frames)
        waits.clear()
        for frame in frames:
            found = sum(waits.values())
            rounds = int(frame.info.rounds.max()) if case in SPECULATIVE else 0
            assert found <= max(1, rounds) + (case == "stop"), dict(waits)
            waits.clear()


@pytest.mark.parametrize("case", FEW)
def test_a_call_waits_for_its_frames_alone(case: str) -> None:
    """Whatever a call looks at beside is looked at once, however many passes it makes.

    Guards against a wait for each frame where samples are gathered.
    """
    with accelerator() as waits:
        model, beside = specmask.wrap(move(network())), []
        for length in (6, 18):
            waits.clear()
            for _ in specmask.stream(model, CASES[case], seed=1, num=4, length=length):
                pass
            streamed = sum(waits.values())
            waits.clear()
            specmask.sample(model, CASES[case], seed=1, num=4, length=length)
            beside.append(sum(waits.values()) - streamed)
        assert beside[0] == beside[1]


@pytest.mark.parametrize("ragged", EITHER)
@pytest.mark.parametrize("case", [name for name in CASES if name != "threshold"])
def test_samples_there_are_those_here(case: str, ragged: bool) -> None:
    """In float64, where rounding flips no draw; blank rows tie where confidence decides."""
    sampler, settings = CASES[case], canvas(ragged)
    here = specmask.sample(specmask.wrap(network()), sampler, seed=1, **settings)
    with accelerator():
        there = specmask.sample(specmask.wrap(move(network())), sampler, seed=1, **settings)
        for name in ("tokens", "order", "trunk_passes", "verify_passes", "accepted", "rejected"):
            assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name


def test_the_accelerator_counts() -> None:
    with accelerator() as waits:
        (x,) = upload(DEVICE, torch.arange(5))
        assert (x + 1).device == DEVICE
        assert not waits
        assert x.tolist() == [0, 1, 2, 3, 4]
        assert int(x.max()) == 4
        assert bool((x > 3).any())
        assert len(x[x > 2]) == 2
        torch.arange(5).to(DEVICE)
        x.masked_fill(x > 2, x.max())
        assert sum(waits.values()) == 6
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.arange(5)


class Launches(TorchDispatchMode):
    """Counts operations but for views, which launch nothing."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.made += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_row_launches_few_operations() -> None:
    """On a GPU they are the time a small network takes.

    9810 before random numbers, and turns of keys and queries, were bundled.
    """
    torch.manual_seed(0)
    config = HybridConfig(27, length=64, width=32, heads=2, trunk_layers=3)
    net = HybridTransformer(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    sampler = Speculative(LinearWindow(0.133), rounds=4)
    specmask.sample(specmask.wrap(net), sampler, num=1)  # the seed's constants are kept after it
    with Launches() as count:
        out = specmask.sample(specmask.wrap(net), sampler, num=1)
    assert (int(out.trunk_passes), int(out.verify_passes)) == (8, 13)
    assert count.made <= 6800
