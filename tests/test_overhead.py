"""What sampling costs beside the network: time, logits that nobody needs, memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import specmask
from specmask.masking import fixed_cuts, window_ends
from specmask.models.hybrid import HybridConfig, HybridPrefix, HybridTransformer
from specmask.models.protocol import can_verify
from specmask.samplers import Sampler


class Watched:
    """A verifier around a network's four calls, each inside `watch`."""

    def __init__(self, network: HybridTransformer) -> None:
        self._network = network
        self.vocab_size, self.mask_id, self.length = (
            network.vocab_size,
            network.mask_id,
            network.length,
        )
        self.trunk_layers, self.head_layers = network.trunk_layers, network.head_layers

    @contextmanager
    def watch(self) -> Iterator[None]:
        yield

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        with self.watch():
            return self._network.trunk(tokens, lengths)

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        with self.watch():
            return self._network.draft_logits(hidden, positions)

    def prefix(
        self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor
    ) -> HybridPrefix:
        with self.watch():
            return self._network.prefix(hidden, tokens, order, revealed)

    def verify(self, prefix: Any, ranks: Tensor, drafts: Tensor) -> Tensor:
        with self.watch():
            return self._network.verify(prefix, ranks, drafts)


# ------------------------------------------------------------------------------------------ time


class Timed(Watched):
    """Adds up the processor time of the calls."""

    seconds = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.seconds += time.thread_time() - began


@pytest.fixture
def one_thread() -> Iterator[None]:
    """All work in this thread, so that its processor time is the work done, however busy the
    machine is with others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_nine_tenths_of_the_time_are_the_networks(one_thread: None) -> None:
    """D = 256, 32 rows: everything else in sample() below 10 %."""
    loaded = specmask.load("text8-small")
    assert isinstance(loaded.network, HybridTransformer)
    network = Timed(loaded.network)
    assert can_verify(network)
    model = specmask.Model(network, loaded.tokenizer)
    sampler = specmask.Speculative(window=specmask.CosineWindow(0.05), rounds=2)
    specmask.sample(model, sampler, num=2, length=64, seed=0)  # warms caches and allocator
    network.seconds = 0.0
    began = time.thread_time()
    out = specmask.sample(model, sampler, num=32, seed=0, batch_size=32)
    whole = time.thread_time() - began
    share = 1 - network.seconds / whole
    print(f"outside the network: {share:.1%} of {whole:.1f} s, NFE {float(out.nfe.mean()):.1f}")
    assert share < 0.10


# ---------------------------------------------------------------------------------------- logits

LENGTH, VOCAB, ROWS = 40, 11, 5

Reach = Callable[[Tensor, Tensor], Tensor]
"""(revealed, lengths) → exclusive last rank that the next pass may reveal."""


class Shapes(Watched):
    """Checks that no pass asks for logits beyond what it may reveal."""

    def __init__(self, network: HybridTransformer, reach: Reach) -> None:
        super().__init__(network)
        self.reach, self.sizes = reach, torch.zeros(0)
        self.asked = {"draft": 0, "verify": 0}

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        revealed = ((tokens != self.mask_id) & inside).sum(1)
        self.sizes = self.reach(revealed, lengths) - revealed  # (B,) of the pass that begins here
        return super().trunk(tokens, lengths)

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        assert positions.shape == (len(self.sizes), int(self.sizes.max()))
        logits = super().draft_logits(hidden, positions)
        assert logits.shape == (*positions.shape, VOCAB)
        self.asked["draft"] += logits.shape[1]
        return logits

    def verify(self, prefix: HybridPrefix, ranks: Tensor, drafts: Tensor) -> Tensor:
        real = (ranks < drafts.shape[1]).sum(1)
        assert ranks.shape[1] == int(real.max())  # no round is wider than its widest row
        assert bool((real <= self.sizes[prefix.rows]).all())
        assert bool((real >= 1).all())  # a row that is done is not in it
        logits = super().verify(prefix, ranks, drafts)
        assert logits.shape == (*ranks.shape, VOCAB)
        self.asked["verify"] += logits.shape[1]
        return logits


def in_window(window: Any) -> Reach:
    return lambda revealed, lengths: window_ends(window, revealed, lengths)


def one_more(revealed: Tensor, lengths: Tensor) -> Tensor:
    return revealed + 1


def next_group(revealed: Tensor, lengths: Tensor) -> Tensor:
    """Of seven fixed cosine steps from an empty canvas."""
    cuts = fixed_cuts("cosine", 7, torch.zeros_like(lengths), lengths)
    return cuts.masked_fill(cuts <= revealed[:, None], LENGTH).amin(1)


CASES: list[tuple[Sampler, Reach]] = [
    *(
        (specmask.Speculative(window, rounds, first, order), in_window(window))
        for window, rounds, first, order in (
            (specmask.CosineWindow(0.1), 1, "verify", "random"),
            (specmask.CosineWindow(0.1), 3, "accept", "left-to-right"),
            (specmask.LinearWindow(0.2), 2, "verify", "random"),
            (specmask.ConstantWindow(6), 4, "verify", "random"),
        )
    ),
    (specmask.AnyOrder(), one_more),
    (specmask.AnyOrder(source="target"), one_more),
    (specmask.Ancestral(steps=7, counts="fixed"), next_group),
]


@pytest.fixture
def network() -> HybridTransformer:
    sharp = HybridTransformer(HybridConfig(VOCAB, LENGTH, 16, 2, trunk_layers=1, head_layers=2))
    for parameter in sharp.parameters():
        if parameter.ndim == 2:  # so that draft and target differ, and drafts are rejected
            torch.nn.init.normal_(parameter, std=0.4)
    return sharp.eval()


@pytest.mark.parametrize(("sampler", "reach"), CASES)
def test_no_logits_beyond_the_window(
    network: HybridTransformer, sampler: Sampler, reach: Reach
) -> None:
    watched = Shapes(network, reach)
    lengths = [LENGTH, 3, 17, LENGTH, 29]
    canvas = torch.full((ROWS, LENGTH), watched.mask_id)
    model = specmask.Model(watched)
    out = specmask.sample(model, sampler, canvas=canvas, lengths=lengths, seed=1)
    assert (watched.asked["verify"] > 0) == bool(out.verify_passes.sum())
    assert watched.asked["draft"] + watched.asked["verify"] > 0
    if isinstance(sampler, specmask.Speculative):
        assert int(out.rejected.sum()) > 0  # so that later rounds were among what was checked


# ---------------------------------------------------------------------------------------- memory

ONE_PASS = """
import sys, torch
from specmask import FullWindow, HybridConfig, HybridTransformer, Speculative
from specmask.models.protocol import Meter
from specmask.samplers.base import Canvas, Uniforms

def peak():  # getrusage would count what the parent held when it forked
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

torch.set_num_threads(1)
network = HybridTransformer(HybridConfig(50257, 1024, 64, 4, trunk_layers=1)).eval()
tokens = torch.full((4, 1024), network.mask_id)
canvas = Canvas(tokens, torch.full((4,), 1024), torch.arange(4), network.mask_id)
sampler, uniforms = Speculative(FullWindow(), rounds=1), Uniforms(0)
state = sampler.init(canvas, uniforms)
with torch.no_grad():
    before = peak()
    state, info = sampler.step(Meter(network, 4), state, uniforms)
assert int(info.rounds.min()) == 1 and int(info.revealed.min()) >= 1
print((peak() - before) * 1024 / 1e9)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_a_pass_at_gpt2_scale_holds_no_table_of_logits() -> None:
    """D = 1024, V = 50257, four rows, the window as wide as the row.

    One float32 table of logits has 823 MB, draft and target have one each: neither is ever whole.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", ONE_PASS], capture_output=True, text=True, check=True, timeout=600
    )
    print(f"{float(done.stdout):.2f} GB at the peak, {time.perf_counter() - began:.0f} s")
    assert 0.05 < float(done.stdout) < 0.6
