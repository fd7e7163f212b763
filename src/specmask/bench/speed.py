"""Seconds of a pass: where they go, and what they are beside loops that do less or do it plainly.

Every loop of a setting runs once a round, one after the other, so that what slows the machine slows
all of them; what is told are medians of ratios within a round, and their range.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import specmask
from specmask.bench.run import Point, settings_of
from specmask.errors import UserError
from specmask.host import now
from specmask.masking import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from specmask.models.checkpoint import Model
from specmask.models.hybrid import HybridConfig, HybridNetwork, HybridTransformer
from specmask.samplers import Ancestral, Sampler, Speculative
from specmask.samplers import base as parts_of_samplers
from specmask.samplers import speculative as speculative_sampling

TUNED = Speculative(LinearWindow(0.133), rounds=4)
"""The setting of docs/choose-a-sampler.md for 16 NFE on text8-small."""

# ----------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """What is timed: so many rows of a length on a model, filled by a sampler.

    known: share of each row that is given. passes: trunk passes to time; None fills the rows.
    """

    scale: str
    batch: int
    length: int
    sampler: Sampler
    known: float = 0.0
    passes: int | None = None
    vocab_size: int | None = None

    def about(self) -> Point:
        """For the results file."""
        return {
            "scale": self.scale,
            "batch": self.batch,
            "length": self.length,
            "known": self.known,
            "vocab_size": self.vocab_size,
            "settings": settings_of(self.sampler),
        }


def gpt2_network(
    width: int = 768,
    layers: int = 12,
    length: int = 1024,
    vocab_size: int = 50257,
    seed: int = 0,
    heads: int = 12,
) -> HybridTransformer:
    """A network of GPT-2's sizes with random weights, and drafts that are sometimes rejected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HybridTransformer(
            HybridConfig(vocab_size, length, width, heads, trunk_layers=layers - 1)
        )
        # At initialisation the target is the draft; this is a head that has learned something.
        torch.nn.init.normal_(network.head.out.weight, std=0.5 * width**-0.5)
        for norm in (network.trunk.norm, network.head.norm):
            torch.nn.init.constant_(norm.get_parameter("weight"), 4.0)
    return network.eval()


def like(model: Model, vocab_size: int, seed: int = 0) -> HybridTransformer:
    """A network of a model's sizes with random weights and another vocabulary."""
    config: Any = model.network.config  # type: ignore[attr-defined]
    layers = config.trunk_layers + config.head_layers
    return gpt2_network(config.width, layers, config.length, vocab_size, seed, config.heads)


def small_cases(scale: str, length: int, batches: Sequence[int]) -> list[Case]:
    """By batch, length and window, on a model of about text8-small's size."""
    middle = batches[len(batches) // 2]
    cases = [Case(scale, batch, length, TUNED) for batch in batches]
    cases += [Case(scale, middle, length // n, TUNED) for n in (4, 2)]
    cases += [
        Case(scale, middle, length, Speculative(window, rounds=2))
        for window in (ConstantWindow(4), ConstantWindow(12), CosineWindow(0.05), FullWindow())
    ]
    return cases


def vocabulary_cases(length: int, batch: int) -> list[Case]:
    """By vocabulary, on random networks of text8-small's other sizes."""
    return [Case("random", batch, length, TUNED, 0.5, 4, size) for size in (27, 1000, 10000, 50257)]


def gpt2_cases(batches: Sequence[int], passes: int) -> list[Case]:
    """By batch, at GPT-2's sizes: half of each row is given."""
    sampler = Speculative(CosineWindow(0.02), rounds=4)
    return [Case("gpt2", batch, 1024, sampler, 0.5, passes, 50257) for batch in batches]


# ----------------------------------------------------------------------------------------- loops


@dataclass(frozen=True)
class Timed:
    """One run of a loop. passes: trunk passes of the batch; tokens: revealed, of all rows.

    rows: how many rows each pass had.
    """

    seconds: float
    passes: int
    tokens: int
    rows: tuple[int, ...]


def canvas_of(model: Model, case: Case) -> Tensor:
    """Rows with the first tokens given: symbols in turn."""
    canvas = torch.full((case.batch, case.length), model.network.mask_id)
    given = round(case.known * case.length)
    canvas[:, :given] = torch.arange(given) % min(model.network.vocab_size, 1000)
    return canvas


def ours(model: Model, case: Case, seed: int = 0) -> Timed:
    """The sampler as `stream` drives it, from the first pass on."""
    frames = specmask.stream(
        model, case.sampler, canvas=canvas_of(model, case), seed=seed, batch_size=case.batch
    )
    next(frames)  # arguments and weights are checked, nothing is drawn
    began, rows, tokens = now(model.device), [], 0
    for frame in itertools.islice(frames, case.passes):
        rows.append(len(frame.rows))
        tokens += int(frame.info.revealed.sum())
    return Timed(now(model.device) - began, len(rows), tokens, tuple(rows))


@torch.no_grad()
def bare(model: Model, case: Case, rows: Sequence[int]) -> Timed:
    """The same trunk passes, and nothing else."""
    canvas = canvas_of(model, case).to(model.device)
    lengths = torch.full((case.batch,), case.length, device=model.device)
    began = now(model.device)
    for count in rows:
        model.network.trunk(canvas[:count], lengths[:count])
    return Timed(now(model.device) - began, len(rows), 0, tuple(rows))


@torch.no_grad()
def textbook(model: Model, case: Case, steps: int, seed: int = 0) -> Timed:
    """Plain masked diffusion as it is usually written: fixed steps, all rows, logits and float64
    Gumbel noise for every position and symbol, the argmax at as many random masked positions as
    the step reveals.
    """
    network, device = model.network, model.device
    tokens = canvas_of(model, case).to(device)
    lengths = torch.full((case.batch,), case.length, device=device)
    every = torch.arange(case.length, device=device).expand_as(tokens)
    generator = torch.Generator(device).manual_seed(seed)
    masked = int((tokens[0] == network.mask_id).sum())
    began = now(device)
    for step in range(steps):
        logits = network.draft_logits(network.trunk(tokens, lengths), every)
        noise = torch.rand(logits.shape, dtype=torch.float64, device=device, generator=generator)
        drawn = (logits.double() - (-noise.log()).log()).argmax(-1)
        hidden = tokens == network.mask_id
        keys = torch.rand(tokens.shape, device=device, generator=generator).masked_fill(~hidden, 2)
        count = masked * (step + 1) // steps - masked * step // steps
        at = keys.argsort(1)[:, :count]
        tokens = tokens.scatter(1, at, drawn.gather(1, at))
    seconds = now(device) - began
    return Timed(seconds, steps, case.batch * masked, (case.batch,) * steps)


class LeftToRight:
    """An autoregressive model of equal size, GPT-2's architecture in Transformers, random weights,
    with a cache of keys and values."""

    def __init__(self, model: Model, length: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config: Any = model.network.config  # type: ignore[attr-defined]
        layers = model.network.trunk_layers + model.network.head_layers
        dtype = next(model.network.parameters()).dtype  # type: ignore[attr-defined]
        self._model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=model.network.vocab_size,
                n_positions=length,
                n_embd=config.width,
                n_layer=layers,
                n_head=config.heads,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        self._model.to(model.device, dtype).eval()  # type: ignore[arg-type]
        self._device = model.device

    @torch.no_grad()
    def __call__(self, case: Case, limit: int) -> Timed:
        """At most `limit` tokens a row after those that are given, drawn one by one."""
        given = max(1, round(case.known * case.length))
        count = min(limit, case.length - given)
        tokens = torch.zeros(case.batch, given, dtype=torch.int64, device=self._device)
        out = self._model(input_ids=tokens, use_cache=True)  # the given ones, not timed
        began = now(self._device)
        for _ in range(count):
            p = out.logits[:, -1].softmax(-1)
            tokens = torch.multinomial(p, 1)
            out = self._model(input_ids=tokens, past_key_values=out.past_key_values, use_cache=True)
        seconds = now(self._device) - began
        return Timed(seconds, count, case.batch * count, (case.batch,) * count)


# ----------------------------------------------------------------------------------------- parts


@dataclass
class Clock:
    """Seconds by part; a part inside another is not counted twice."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _inside: bool = False

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self._inside, began = True, now(self.device)
        try:
            yield
        finally:
            self._inside = False
            self.seconds[part] = self.seconds.get(part, 0.0) + now(self.device) - began

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **settings: Any) -> Any:
            with self(part):
                return function(*args, **settings)

        return timed


_NETWORK = {
    "trunk": ("trunk",),
    "unembedding": ("draft_features", "logits"),
    "head": ("prefix", "target_features"),
}
_DRAWS = (
    "uniform", "draw", "probabilities", "log_probabilities", "accept_prefix", "accept_block",
    "draw_residual", "run_ratio",
)  # fmt: skip
PARTS = (*_NETWORK, "draws", "bookkeeping")


class TimedNetwork:
    """A network whose calls are timed by part."""

    def __init__(self, network: HybridNetwork, clock: Clock) -> None:
        for name in ("vocab_size", "mask_id", "length", "trunk_layers", "head_layers"):
            setattr(self, name, getattr(network, name))
        for part, names in _NETWORK.items():
            for name in names:
                setattr(self, name, clock.wrap(part, getattr(network, name)))
        self.draft_logits, self.verify = network.draft_logits, network.verify
        self.parameters = network.parameters  # they say where it is


def parts(model: Model, case: Case, seed: int = 0) -> dict[str, float]:
    """Seconds by part of the sampler's run, of `PARTS`."""
    clock = Clock(model.device)
    assert isinstance(model.network, HybridNetwork)
    network: Any = TimedNetwork(model.network, clock)
    with _timed_draws(clock):
        whole = ours(Model(network), case, seed).seconds
    spent = {part: clock.seconds.get(part, 0.0) for part in PARTS[:-1]}
    return {**spent, "bookkeeping": whole - sum(spent.values())}


@contextmanager
def _timed_draws(clock: Clock) -> Iterator[None]:
    """Everything that samplers take from `specmask.categorical`, timed as draws."""
    changes = [
        patch.object(module, name, clock.wrap("draws", getattr(module, name)))
        for module in (parts_of_samplers, speculative_sampling)
        for name in _DRAWS
        if hasattr(module, name)
    ]
    for change in changes:
        change.start()
    try:
        yield
    finally:
        for change in changes:
            change.stop()


# ---------------------------------------------------------------------------------------- rounds


def case_rounds(
    model: Model, case: Case, rounds: int, left_to_right: LeftToRight | None, seed: int = 0
) -> list[Point]:
    """Every loop of a case, `rounds` times in turn after one to warm up; a line each."""
    taken: dict[str, list[Timed]] = {}
    spent: list[dict[str, float]] = []
    for turn in range(1 + rounds):
        mine = ours(model, case, seed)
        found = {
            "ours": mine,
            "bare": bare(model, case, mine.rows),
            "textbook": textbook(model, case, mine.passes, seed),
        }
        if left_to_right is not None:
            found["left-to-right"] = left_to_right(case, 16 if case.passes else case.length)
        share = parts(model, case, seed) if isinstance(model.network, HybridNetwork) else {}
        if turn:
            for name, timed in found.items():
                taken.setdefault(name, []).append(timed)
            spent.append(share)
    lines = [
        {
            "kind": "loop",
            "loop": name,
            **case.about(),
            "passes": runs[0].passes,
            "tokens": runs[0].tokens,
            "row_passes": sum(runs[0].rows),
            "seconds": [run.seconds for run in runs],
        }
        for name, runs in taken.items()
    ]
    if spent[0]:
        by_part = {part: [each[part] for each in spent] for part in PARTS}
        lines.append({"kind": "parts", **case.about(), "passes": mine.passes, "seconds": by_part})
    return lines


def half_finished(model: Model, batch: int, length: int, rounds: int, seed: int = 0) -> Point:
    """A batch of which every second row has but a sixteenth to fill, beside one that is empty."""
    sampler = TUNED
    empty = torch.full((batch, length), model.network.mask_id)
    early = empty.clone()
    early[::2, : length - length // 16] = 0
    whole: list[float] = []
    half: list[float] = []
    for turn in range(1 + rounds):
        for canvas, seconds in ((empty, whole), (early, half)):
            began = now(model.device)
            specmask.sample(model, sampler, canvas=canvas, seed=seed, batch_size=batch)
            if turn:
                seconds.append(now(model.device) - began)
    about = {"batch": batch, "length": length, "settings": settings_of(sampler)}
    return {"kind": "half", **about, "seconds": {"none early": whole, "half early": half}}


@torch.no_grad()
def later_rounds(model: Model, batch: int, length: int, width: int, rounds: int) -> Point:
    """A second verify pass over a window's tracks, beside the head on all tracks of the row."""
    network, device = model.network, model.device
    assert isinstance(network, HybridNetwork)
    ranked = torch.zeros(batch, length, dtype=torch.int64, device=device)
    order = torch.arange(length, device=device).expand_as(ranked)
    lengths = torch.full((batch,), length, device=device)
    start = length // 2
    hidden = network.trunk(ranked.masked_fill(order >= start, network.mask_id), lengths)
    window = order[:, start : start + width]
    later: list[float] = []
    full: list[float] = []
    for turn in range(1 + rounds):
        prefix = network.prefix(hidden, ranked, order, torch.full_like(lengths, start))
        network.target_features(prefix, window, ranked)  # the first round
        began = now(device)
        network.target_features(prefix, window, ranked)
        middle = now(device)
        empty = network.prefix(hidden, ranked, order, torch.zeros_like(lengths))
        network.target_features(empty, order, ranked)
        if turn:
            later.append(middle - began)
            full.append(now(device) - middle)
    about = {"batch": batch, "length": length, "width": width}
    return {"kind": "later round", **about, "seconds": {"window": later, "row": full}}


_PEAK = """
import sys, torch
from specmask import Speculative, wrap
from specmask.bench.speed import Case, gpt2_network, ours
from specmask.masking import {window}

def peak():  # getrusage would count what the parent held when it forked
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

model = wrap(gpt2_network())
window = {window}({step})
before = peak()
timed = ours(model, Case("gpt2", {batch}, 1024, Speculative(window, rounds=2), 0.5, 2, 50257))
print((peak() - before) / 1e6, timed.tokens)
"""


def peak_memory(batch: int, window: str = "CosineWindow", step: str = "0.05") -> Point:
    """GB over the weights, at the peak of two passes at GPT-2's sizes, in a process of its own.

    Raises:
        UserError: the system tells no peak (/proc/self/status).
    """
    if not Path("/proc/self/status").exists():
        raise UserError("peak memory is read from /proc/self/status, which is not there")
    code = _PEAK.format(batch=batch, window=window, step=step)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, tokens = done.stdout.split()
    about = {"scale": "gpt2", "batch": batch, "length": 1024, "window": f"{window}({step})"}
    return {"kind": "memory", **about, "gigabytes": float(peak), "tokens": int(tokens)}


def equal_quality(
    model: Model, batch: int, rounds: int, plain: Sequence[Ancestral], seed: int = 0
) -> Point:
    """Whole rows: the tuned setting, and the textbook loop at the steps of plain settings."""
    case = Case("", batch, model.network.length, TUNED)
    names = {f"{one.steps} steps": one.steps for one in plain}
    taken: dict[str, list[float]] = {name: [] for name in ("ours", *names)}
    for turn in range(1 + rounds):
        found = {"ours": ours(model, case, seed).seconds}
        found |= {name: textbook(model, case, n, seed).seconds for name, n in names.items()}
        if turn:
            for name, seconds in found.items():
                taken[name].append(seconds)
    about = {"batch": batch, "length": case.length, "settings": settings_of(TUNED)}
    return {"kind": "equal quality", **about, "seconds": taken}
