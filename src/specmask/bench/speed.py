"""Seconds of a pass: where they go, and what they are beside loops that do less or do it plainly.

Every loop of a setting runs once a round, one after the other, so that what slows the machine slows
all of them; what is told are medians of ratios within a round, and their range.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import specmask
from specmask.bench.run import Point, settings_of
from specmask.bench.speed_cases import TUNED, Case
from specmask.bench.speed_loops import LeftToRight, Timed, bare, ours, textbook
from specmask.bench.speed_parts import PARTS, parts
from specmask.errors import UserError
from specmask.host import now
from specmask.models.checkpoint import Model
from specmask.models.hybrid import HybridNetwork
from specmask.samplers import Ancestral


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
from specmask.bench.speed_cases import Case, gpt2_network
from specmask.bench.speed_loops import ours
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
