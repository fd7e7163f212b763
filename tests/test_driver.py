"""How rows become batches: by length, by the memory there is, and in halves where it runs out."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import specmask
from oracle import Chain, tiny_network
from refusal import refuse
from specmask import Ancestral, AnyOrder, FullWindow, LinearWindow, Speculative
from specmask.samplers import memory

VOCAB, LENGTH = 7, 12
NETWORK = tiny_network(vocab_size=VOCAB, length=LENGTH, width=16, scale=0.35, dtype=torch.float32)
MASK = NETWORK.mask_id
MODEL = specmask.wrap(NETWORK)
SAMPLER = Speculative(LinearWindow(0.4), rounds=2)
LENGTHS = [3, 9, 4, 9, 2]
PADDING = 5
FIELDS = ("tokens", "order", "trunk_passes", "verify_passes", "accepted", "rejected", "nfe")


class Watched:
    """A network that writes down the shape of each trunk pass, and fails where `fails` says so."""

    def __init__(self, fails: Callable[[str, int], bool] | None = None) -> None:
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(NETWORK, name))
        self.draft_logits, self.config = NETWORK.draft_logits, NETWORK.config
        self.prefix, self.fails = NETWORK.prefix, fails or (lambda call, rows: False)
        self.shapes: list[tuple[int, int]] = []
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def _try(self, call: str, rows: int) -> None:
        if self.fails(call, rows):
            raise self.error

    def trunk(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        self.shapes.append((len(tokens), tokens.shape[1]))
        self._try("trunk", len(tokens))
        return NETWORK.trunk(tokens, lengths)

    def verify(self, prefix: Any, ranks: Tensor, drafts: Tensor) -> Tensor:
        logits = NETWORK.verify(prefix, ranks, drafts)  # keys and values are kept by now
        self._try("verify", len(ranks))
        return logits


def canvas() -> Tensor:
    inside = torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]
    return torch.where(inside, MASK, PADDING)


def draw(network: Any = NETWORK, **settings: Any) -> specmask.Samples:
    given = {"canvas": canvas(), "lengths": LENGTHS, "seed": 3}
    return specmask.sample(specmask.wrap(network), SAMPLER, **{**given, **settings})


def assert_same(one: specmask.Samples, other: specmask.Samples) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# ---------------------------------------------------------------------------------------- length


def test_rows_of_like_length_ride_together_on_no_more_than_their_positions() -> None:
    network = Watched()
    out = draw(network, batch_size=2)
    assert list(dict.fromkeys(width for _, width in network.shapes)) == [9, 4, 2]
    assert_same(out, draw(batch_size=5))


def test_frames_and_results_are_as_wide_as_the_canvas() -> None:
    frames = list(
        specmask.stream(MODEL, SAMPLER, canvas=canvas(), lengths=LENGTHS, seed=3, batch_size=2)
    )
    starts = [frame.rows.tolist() for frame in frames if frame.step == 0]
    assert starts == [[1, 3], [2, 0], [4]]  # the longest first, equals in their order
    for frame in frames:
        beyond = torch.arange(LENGTH) >= frame.lengths[:, None]
        assert frame.tokens.shape == frame.order.shape == frame.info.rejected_drafts.shape
        assert bool((frame.tokens[beyond] == PADDING).all())
        assert torch.equal(frame.order[beyond], beyond.nonzero()[:, 1])
        assert bool((frame.info.rejected_drafts[beyond] == -1).all())


# ------------------------------------------------------------------------------------- too large


@pytest.mark.parametrize("call", ["trunk", "verify"])
@pytest.mark.parametrize("fit", [1, 2, 3])
def test_a_batch_that_does_not_fit_goes_on_in_halves(call: str, fit: int) -> None:
    network, told = Watched(lambda name, rows: name == call and rows > fit), []
    out = draw(network, on_smaller=told.append)
    assert_same(out, draw())
    assert told == [{1: 1, 2: 2, 3: 3}[fit]]  # 5 rows, then 3, then 2, then 1


def test_memory_that_runs_out_half_way() -> None:
    """The third pass on has room for two rows: the two passes before it are made once."""
    network = Watched()
    network.fails = lambda call, rows: len(network.shapes) > 2 and rows > 2
    assert_same(draw(network, on_smaller=lambda rows: None), draw())
    assert [rows for rows, _ in network.shapes[:2]] == [5, 5]


def test_later_batches_begin_with_what_fitted() -> None:
    network = Watched(lambda call, rows: rows > 2)
    frames = specmask.stream(
        specmask.wrap(network),  # type: ignore[arg-type]
        AnyOrder(),
        num=13,
        length=2,
        batch_size=8,
        on_smaller=lambda rows: None,
    )
    assert [len(frame.rows) for frame in frames if frame.step == 0] == [8, 2, 2, 1]
    assert [rows for rows, _ in network.shapes if rows > 2] == [8, 4]


def test_it_warns_once() -> None:
    with pytest.warns(UserWarning, match="going on with batches of 1") as caught:
        draw(Watched(lambda call, rows: rows > 1), batch_size=4)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Watched())


def test_a_single_row_that_does_not_fit_is_told() -> None:
    network = Watched(lambda call, rows: call == "verify")
    refuse(lambda: draw(network), "single row of 9 tokens", "smaller window", "bf16")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tri"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert memory.ran_out(error) == expected
    network = Watched(lambda call, rows: rows > 2)
    network.error = error
    if expected:
        assert_same(draw(network, on_smaller=lambda rows: None), draw())
    else:
        with pytest.raises(type(error)):
            draw(network)


def test_torch_itself_says_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.int8)
    assert memory.ran_out(caught.value)


# ------------------------------------------------------------------------------------------ auto


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0, 1e9])
def test_auto_takes_the_largest_batch_that_fits(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    weights = sum(p.nbytes for p in NETWORK.parameters())
    needs = {rows: memory.estimate(NETWORK, rows, LENGTH, 5) for rows in (1, 32, 64, 128, 256)}
    free = needs[1] + share * (needs[256] - needs[1])
    monkeypatch.setattr(memory, "free_memory", lambda device: int(free / memory.SHARE) + weights)
    rows, needed, _ = memory.fitting(MODEL, SAMPLER, LENGTH, 10_000)  # a window of ⌈0.4·12⌉
    assert rows == 256 if share > 1 else rows & (rows - 1) == 0
    assert rows == 1 or needed <= free + 1
    assert needed == memory.estimate(NETWORK, rows, LENGTH, 5)
    assert rows == 256 or memory.estimate(NETWORK, 2 * rows, LENGTH, 5) > free
    assert memory.fitting(MODEL, SAMPLER, LENGTH, 9).rows == min(rows, 16)


def test_auto_is_what_the_driver_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def fitting(*args: Any) -> memory.Fit:
        asked.append(args)
        return memory.Fit(2, 1, 1)

    monkeypatch.setattr(memory, "fitting", fitting)
    network = Watched()
    assert_same(draw(network, batch_size="auto"), draw())
    assert max(rows for rows, _ in network.shapes) == 2
    assert asked[0][1:] == (SAMPLER, 9, 5)


def test_auto_refuses_what_it_cannot_know() -> None:
    chain = Chain(states=2, vocab_size=2, length=4)
    call = lambda size: specmask.sample(specmask.wrap(chain), Ancestral(), num=1, batch_size=size)  # noqa: E731
    refuse(lambda: call("auto"), "no config", "pass a whole number")
    refuse(lambda: call("large"), "batch_size='large'", "'auto'")


def test_more_of_anything_needs_more() -> None:
    least = memory.estimate(NETWORK, 64, 8, 2)
    assert memory.estimate(NETWORK, 128, 8, 2) > least
    assert memory.estimate(NETWORK, 64, 12, 2) > least
    assert memory.estimate(NETWORK, 64, 8) > least
    wordy = tiny_network(vocab_size=500, length=8)
    assert memory.estimate(wordy, 64, 8, top_p=0.9) > memory.estimate(wordy, 64, 8)
    half = tiny_network(vocab_size=VOCAB, length=LENGTH, width=16, dtype=torch.bfloat16)
    assert memory.estimate(half, 64, 8, 2) < least
    assert memory.widest(Speculative(FullWindow()), 9) == 9
    assert memory.widest(Speculative(LinearWindow(0.3)), 9) == 3
    assert memory.widest(Speculative(LinearWindow(0.3), order="confidence"), 9) is None
    assert memory.widest(Ancestral(), 9) is None


def test_a_container_has_what_its_limit_leaves(tmp_path: Path) -> None:
    assert memory._container(tmp_path) == float("inf")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 60\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._container(tmp_path) == 360


PEAK = """
import torch
from specmask import FullWindow, HybridConfig, HybridTransformer, Speculative
from specmask.models.protocol import Meter
from specmask.samplers.base import Canvas, Uniforms
from specmask.samplers.memory import estimate

def peak():  # getrusage would count what the parent held when it forked
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

def step(rows, length):
    tokens = torch.full((rows, length), network.mask_id)
    lengths, uniforms = torch.full((rows,), length), Uniforms(0)
    sampler = Speculative(FullWindow(), rounds=1)
    canvas = Canvas(tokens, lengths, torch.arange(rows), network.mask_id)
    with torch.no_grad():
        sampler.step(Meter(network, rows), sampler.init(canvas, uniforms), uniforms)

torch.set_num_threads(1)
rows, length, vocab, width = {shape}
network = HybridTransformer(HybridConfig(vocab, length, width, 4, trunk_layers=1)).eval()
step(1, 8)  # the weights are packed
before = peak()
step(rows, length)
print(estimate(network, rows, length) / (peak() - before) / 1024, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    "shape", [(160, 256, 28, 256), (192, 8, 50257, 32)], ids=["activations", "vocabulary"]
)
def test_the_estimate_beside_the_real_peak(shape: tuple[int, ...]) -> None:
    """Rows, length, vocabulary, width: a GB of activations, half a one of logits."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(shape=shape)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    ratio, peak = map(float, done.stdout.split())
    print(f"estimate/measured {ratio:.2f}, peak {peak / 1e6:.2f} GB")
    assert 0.8 < ratio < 2.5
    assert peak < 2e6
