"""The one loop that drives every sampler: rows in, frames out, finished rows leave the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specmask.models.checkpoint import Model
from specmask.models.protocol import Denoiser, Meter, Passes
from specmask.samplers.base import Canvas, Sampler, StepInfo, Uniforms, plain_info
from specmask.samplers.checks import check_call, check_canvas
from specmask.samplers.table import default_sampler


@dataclass(frozen=True)
class Frame:
    """Some rows after one step (step 0: before any).

    rows: (B,) numbers of the rows. tokens (B, L), order (B, L), lengths (B,), revealed (B,) now.
    info: what the step did. passes: metered so far. finished: (B,) nothing is masked any more.
    seconds: since the rows' batch began.
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
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
) -> Iterator[Frame]:
    """Sample and yield a frame per step; finished rows leave the batch.

    Args:
        model: from `load` or `wrap`.
        sampler: its settings; default what the model's folder recommends (`specmask tune`), or
            else `Speculative()`, for a network without a causal head `Ancestral()`.
        num, length: so many rows of so many masked tokens (default: the model's length); or
        canvas: (B, L) tokens with `network.mask_id` at the positions to fill.
        lengths: (B,) tokens of each row if rows differ; what lies beyond is padding.
        seed: names all random numbers, 0 ≤ seed < 2⁶⁴.
        batch_size: rows in one pass. A row's tokens do not depend on it, to the last bit of an
            eager float32 network on a CPU; other modes and devices may round by it.
        rows: (B,) numbers of the rows among the seed's rows (default 0, 1, …): row 3 drawn alone
            with `rows=[3]` is row 3 of a larger call.

    Raises:
        UserError: any argument out of range, before any pass is made.
    """
    sampler = default_sampler(model) if sampler is None else sampler
    whole = check_canvas(model, num, length, canvas, lengths, rows)
    check_call(model, sampler, seed, batch_size)
    uniforms = Uniforms(seed)
    for start in range(0, len(whole.rows), batch_size):
        part = slice(start, start + batch_size)
        yield from _run(
            model.network,
            sampler,
            Canvas(whole.tokens[part], whole.lengths[part], whole.rows[part], whole.mask_id),
            uniforms,
        )


def _run(
    network: Denoiser, sampler: Sampler, canvas: Canvas, uniforms: Uniforms
) -> Iterator[Frame]:
    began = time.perf_counter()
    state = sampler.init(canvas, uniforms)
    meter = Meter(network, len(canvas.rows), canvas.tokens.device)
    info = plain_info(state, torch.zeros_like(state.revealed))
    step = 0
    while True:
        finished = state.revealed >= state.lengths
        yield Frame(
            step,
            state.rows,
            state.tokens,
            state.order,
            state.lengths,
            state.revealed,
            info,
            meter.passes.take(meter.rows),
            finished,
            time.perf_counter() - began,
        )
        if bool(finished.any()):
            state, meter.rows = state.take(~finished), meter.rows[~finished]
            if not len(state.rows):
                return
        state, info = sampler.step(meter, state, uniforms)
        step += 1


def sample(
    model: Model,
    sampler: Sampler | None = None,
    *,
    num: int | None = None,
    length: int | None = None,
    canvas: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
    on_frame: Callable[[Frame], None] | None = None,
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
    slot = {int(row): index for index, row in enumerate(whole.rows)}
    for frame in stream(
        model,
        sampler,
        canvas=whole.tokens,
        lengths=whole.lengths,
        seed=seed,
        batch_size=batch_size,
        rows=whole.rows.tolist(),
    ):
        at = torch.tensor([slot[row] for row in frame.rows.tolist()], device=tokens.device)
        accepted[at] += frame.info.accepted
        rejected[at] += frame.info.rejected
        done = frame.finished
        if bool(done.any()):
            passes, out = frame.passes.take(done), at[done]
            tokens[out], order[out] = frame.tokens[done], frame.order[done]
            trunk[out], verify[out], nfe[out] = passes.trunk, passes.verify, passes.nfe
            seconds[out] = frame.seconds
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
