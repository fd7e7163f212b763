"""The one loop that drives every sampler: rows in, frames out, finished rows leave the batch.

Rows of like length ride together, and a batch that memory does not hold goes on in halves. Rows
that leave are not replaced: on a CPU a pass costs what its rows cost, and the passes of a sampler's
rows differ little (NFE and their spread, docs/chooser/results.jsonl).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from specmask.host import now, upload
from specmask.models.checkpoint import Model
from specmask.models.protocol import Denoiser, Meter, Passes
from specmask.samplers import memory
from specmask.samplers.base import Canvas, Sampler, State, StepInfo, Uniforms, plain_info
from specmask.samplers.checks import check_call, check_canvas
from specmask.samplers.table import default_sampler

BatchSize = int | Literal["auto"]
OnSmaller = Callable[[int], None]
"""Called with the rows that fit, where memory ran out."""


@dataclass(frozen=True)
class Frame:
    """Some rows after one step (step 0: before any).

    rows: (B,) numbers of the rows. tokens (B, L), order (B, L), lengths (B,), revealed (B,) now.
    info: what the step did. passes: metered so far. finished: (B,) on the CPU, whatever the
    others' device: nothing is masked any more.
    seconds: since the rows' batch began; on an accelerator exact where rows have finished.
    """

    step: int
    rows: Tensor
    tokens: Tensor
    order: Tensor
    lengths: Tensor
    revealed: Tensor
    info: StepInfo
    passes: Passes
    finished: Tensor
    seconds: float


@dataclass(frozen=True)
class Samples:
    """Finished rows and what they cost.

    tokens (B, L); order (B, L) as used, given positions first; lengths (B,); per row (B,):
    trunk_passes, verify_passes, nfe (passes of the whole network, method.md §5), accepted and
    rejected drafts, seconds until the row was done, counted from the start of its batch.
    text: decoded rows, where there is a tokenizer. wall_seconds: the whole call.
    """

    tokens: Tensor
    order: Tensor
    lengths: Tensor
    trunk_passes: Tensor
    verify_passes: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    seconds: Tensor
    text: list[str] | None
    wall_seconds: float

    def __len__(self) -> int:
        return len(self.tokens)


@torch.no_grad()
def stream(
    model: Model,
    sampler: Sampler | None = None,
    *,
    num: int | None = None,
    length: int | None = None,
    canvas: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: BatchSize = 64,
    rows: Sequence[int] | None = None,
    on_smaller: OnSmaller | None = None,
) -> Iterator[Frame]:
    """Sample and yield a frame per step; finished rows leave the batch.

    Batches are formed of rows of like length, the longest first, rows of one length in their order;
    a batch computes on its longest row's positions alone. Its frames are as wide as the canvas.

    Args:
        model: from `load` or `wrap`.
        sampler: its settings; default what the model's folder recommends (`specmask tune`), or
            else `Speculative()`, for a network without a causal head `Ancestral()`.
        num, length: so many rows of so many masked tokens (default: the model's length); or
        canvas: (B, L) tokens with `network.mask_id` at the positions to fill.
        lengths: (B,) tokens of each row if rows differ; what lies beyond is padding.
        seed: names all random numbers, 0 ≤ seed < 2⁶⁴.
        batch_size: rows in one pass, or "auto": as many as `memory.fitting` says. A row's tokens
            do not depend on it, to the last bit of an eager float32 network on a CPU; other modes
            and devices may round by it. Where memory runs out in a step, that step is made again in
            halves, down to single rows, and the rest of the call keeps to what fitted.
        rows: (B,) numbers of the rows among the seed's rows (default 0, 1, …): row 3 drawn alone
            with `rows=[3]` is row 3 of a larger call.
        on_smaller: called with the rows that fit, where memory ran out; default a warning.

    Raises:
        UserError: any argument out of range, before any pass is made; memory that does not hold a
            step of a single row.
    """
    sampler = default_sampler(model) if sampler is None else sampler
    whole = check_canvas(model, num, length, canvas, lengths, rows)
    check_call(model, sampler, seed, batch_size)
    if batch_size == "auto":
        longest, count = int(whole.lengths.max()), len(whole.rows)
        batch_size = memory.fitting(model, sampler, longest, count).rows
    room, uniforms = memory.Room(batch_size, on_smaller or _warn), Uniforms(seed)
    waiting = whole.lengths.argsort(descending=True, stable=True)
    while len(waiting):
        batch, waiting = waiting[: room.rows], waiting[room.rows :]
        yield from _run(model.network, sampler, _part(whole, batch), uniforms, room)


def _run(
    network: Denoiser, sampler: Sampler, canvas: Canvas, uniforms: Uniforms, room: memory.Room
) -> Iterator[Frame]:
    """The frames of one batch. Memory permitting, all its rows stay together."""
    began = time.perf_counter()
    state = sampler.init(_cut(canvas), uniforms)
    meter = Meter(network, len(canvas.rows), canvas.tokens.device)
    info = plain_info(state, torch.zeros_like(state.revealed))
    parts = [(0, state, meter)]
    while parts:
        step, state, meter = parts.pop()
        if step:
            if len(state.rows) > room.rows:
                every = torch.arange(len(state.rows))
                for half in reversed(every.tensor_split(2)):  # the first half goes on first
                    parts.append((step, *_take(state, meter, half)))
                continue
            made = _attempt(sampler, meter, state, uniforms)
            if made is None:
                room.shrink(len(state.rows), state.tokens.shape[1])
                parts.append((step, state, meter))
                continue
            room.tell()
            state, info = made
        finished = state.host.revealed >= state.host.lengths
        beyond = canvas.tokens[meter.rows, state.tokens.shape[1] :]
        passes = meter.passes.take(meter.rows)
        # Rows are done when the device is; until some are, nobody waits for a clock.
        clock = now(state.tokens.device) if bool(finished.any()) else time.perf_counter()
        yield _frame(step, state, info, beyond, passes, finished, clock - began)
        if bool(finished.any()):
            state, meter = _take(state, meter, (~finished).nonzero()[:, 0])
        if len(state.rows):
            parts.append((step + 1, state, meter))


def _take(state: State, meter: Meter, rows: Tensor) -> tuple[State, Meter]:
    """Some of the rows, by index on the CPU."""
    return state.take(rows), meter.take(upload(state.tokens.device, rows)[0])


# ----------------------------------------------------------------------------------------- width


def _part(canvas: Canvas, rows: Tensor) -> Canvas:
    return replace(
        canvas, tokens=canvas.tokens[rows], lengths=canvas.lengths[rows], rows=canvas.rows[rows]
    )


def _cut(canvas: Canvas) -> Canvas:
    """As wide as its longest row: what lies beyond all of them is nothing to compute on."""
    return replace(canvas, tokens=canvas.tokens[:, : int(canvas.lengths.max())])


def _frame(
    step: int,
    state: State,
    info: StepInfo,
    beyond: Tensor,
    passes: Passes,
    finished: Tensor,
    seconds: float,
) -> Frame:
    """A frame as wide as the caller's canvas: `beyond` (B, n) is the padding that was cut off."""
    tokens, order = state.tokens, state.order
    if beyond.shape[1]:
        width = tokens.shape[1]
        last = torch.arange(width, width + beyond.shape[1], device=order.device)
        tokens = torch.cat((tokens, beyond), 1)
        order = torch.cat((order, last.expand_as(beyond)), 1)
        drafts = F.pad(info.rejected_drafts, (0, beyond.shape[1]), value=-1)
        info = replace(info, rejected_drafts=drafts)
    return Frame(
        *(step, state.rows, tokens, order, state.lengths, state.revealed),
        *(info, passes, finished, seconds),
    )


# ---------------------------------------------------------------------------------------- memory


def _warn(rows: int) -> None:
    warnings.warn(f"out of memory: going on with batches of {rows}", stacklevel=2)


def _attempt(
    sampler: Sampler, meter: Meter, state: State, uniforms: Uniforms
) -> tuple[State, StepInfo] | None:
    """One step; None where memory ran out, and then nothing has happened."""
    before = meter.passes
    try:
        return sampler.step(meter, state, uniforms)
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
    meter.restore(before)  # here, where the error no longer holds the step's tensors
    if state.tokens.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


# ---------------------------------------------------------------------------------------- samples


def sample(
    model: Model,
    sampler: Sampler | None = None,
    *,
    num: int | None = None,
    length: int | None = None,
    canvas: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: BatchSize = 64,
    rows: Sequence[int] | None = None,
    on_frame: Callable[[Frame], None] | None = None,
    on_smaller: OnSmaller | None = None,
) -> Samples:
    """Drain `stream`, with the same arguments; `on_frame` sees every frame as it comes."""
    began = time.perf_counter()
    whole = check_canvas(model, num, length, canvas, lengths, rows)
    tokens, order = whole.tokens.clone(), torch.empty_like(whole.tokens)
    count = len(whole.rows)
    trunk, verify, accepted, rejected = torch.zeros(
        4, count, dtype=torch.int64, device=tokens.device
    )
    nfe, seconds = torch.zeros(2, count, dtype=torch.float64, device=tokens.device)
    rows_sorted, slots = whole.rows.sort()
    for frame in stream(
        model,
        sampler,
        canvas=whole.tokens,
        lengths=whole.lengths,
        seed=seed,
        batch_size=batch_size,
        rows=whole.rows.tolist(),
        on_smaller=on_smaller,
    ):
        at, passes = slots[torch.searchsorted(rows_sorted, frame.rows)], frame.passes
        accepted[at] += frame.info.accepted
        rejected[at] += frame.info.rejected
        # What stays is that of a row's last frame, which finishes it: nobody looks which one it is.
        tokens[at], order[at] = frame.tokens, frame.order
        trunk[at], verify[at], nfe[at] = passes.trunk, passes.verify, passes.nfe
        seconds[at] = frame.seconds
        if on_frame is not None:
            on_frame(frame)
    return Samples(
        tokens,
        order,
        whole.lengths,
        trunk,
        verify,
        nfe,
        accepted,
        rejected,
        seconds,
        decode_rows(model, tokens, whole.lengths),
        time.perf_counter() - began,
    )


def decode_rows(model: Model, tokens: Tensor, lengths: Tensor) -> list[str] | None:
    """The text of (B, L) rows of (B,) lengths, where there is a tokenizer."""
    if model.tokenizer is None:
        return None
    pairs = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return [model.tokenizer.decode(row[:n], skip_special_tokens=False) for row, n in pairs]
