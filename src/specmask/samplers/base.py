"""The sampler contract, and the one loop that drives every sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.categorical import Purpose, draw, log_probabilities, uniform
from specmask.errors import UserError, unknown
from specmask.masking import ORDERS, Law, order_by
from specmask.models.checkpoint import Model, check_weights
from specmask.models.protocol import Denoiser, Meter, Passes, Verifier

# ------------------------------------------------------------------------------------- contract


@dataclass(frozen=True)
class Canvas:
    """What to fill: rows of tokens with the mask symbol at every free position.

    tokens: (B, L). lengths: (B,) tokens of each row, padding excluded. rows: (B,) each row's
    number among all that were asked for; it names the row's random numbers. mask_id: the mask.
    """

    tokens: Int64[Tensor, "rows length"]
    lengths: Int64[Tensor, "rows"]
    rows: Int64[Tensor, "rows"]
    mask_id: int

    @property
    def given(self) -> Bool[Tensor, "rows length"]:
        """Positions inside a row whose token is already there."""
        inside = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (inside < self.lengths[:, None]) & (self.tokens != self.mask_id)


@dataclass(frozen=True)
class State:
    """Rows under way. Ranks below `revealed` are known; a row is done when that is its length."""

    rows: Int64[Tensor, "rows"]
    tokens: Int64[Tensor, "rows length"]
    order: Int64[Tensor, "rows length"]
    lengths: Int64[Tensor, "rows"]
    revealed: Int64[Tensor, "rows"]
    passes: Int64[Tensor, "rows"]

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, by index or mask."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class StepInfo:
    """What one step did to each row.

    revealed: tokens revealed. accepted, rejected: drafts accepted and rejected.
    rounds: verify passes made. rejected_drafts: (B, L) the draft that was rejected at a position
    in this step, −1 elsewhere.
    """

    revealed: Int64[Tensor, "rows"]
    accepted: Int64[Tensor, "rows"]
    rejected: Int64[Tensor, "rows"]
    rounds: Int64[Tensor, "rows"]
    rejected_drafts: Int64[Tensor, "rows length"]


@dataclass(frozen=True)
class Uniforms:
    """The uniforms of one call: a pure function of (seed, row, position, purpose, counter)."""

    seed: int

    def __call__(
        self, rows: Tensor, positions: Tensor, purpose: Purpose, counter: Tensor | int = 0
    ) -> Float64[Tensor, "rows positions"]:
        """(B,) rows, (B, K) or (K,) positions, (B,) counters → (B, K) in [0, 1)."""
        count = counter[:, None] if isinstance(counter, Tensor) else counter
        return uniform(self.seed, rows[:, None], positions, purpose, count)


class Sampler(Protocol):
    """A frozen dataclass of settings with a pure `init` and `step`."""

    @property
    def verifies(self) -> bool:
        """Whether the settings can ask for a verify pass, so that a causal head is needed."""
        ...

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        """The state before the first pass."""
        ...

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        """One trunk pass and what follows from it; every row of the state has a free rank."""
        ...

    def law(self) -> Law:
        """The exact law along σ. Raises UserError where none is tractable."""
        ...


# ------------------------------------------------------------------------- parts samplers share


def check_order(order: str, allowed: Sequence[str] = ORDERS) -> None:
    """Raise UserError unless `order` is one of the allowed names."""
    if order not in allowed:
        raise unknown("order", order, allowed)


def initial_state(canvas: Canvas, uniforms: Uniforms, order: str) -> State:
    """Given positions first, then the free ones at random, or left to right.

    A confidence order begins left to right and is re-sorted in each step.
    """
    positions = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    if order == "random":
        keys = uniforms(canvas.rows, positions, Purpose.ORDER)
    else:
        keys = positions.double().expand(canvas.tokens.shape)
    return State(
        rows=canvas.rows,
        tokens=canvas.tokens,
        order=order_by(keys, canvas.given, canvas.lengths),
        lengths=canvas.lengths,
        revealed=canvas.given.sum(1),
        passes=torch.zeros_like(canvas.lengths),
    )


@dataclass(frozen=True)
class Drafts:
    """A run of drafted ranks per row: j = 0.. counts from the first masked rank.

    ranks (B, K), L where `inside` is false; positions (B, K); logits (B, K, V) of the draft;
    tokens (B, K) drawn; log_q (B, K) their log-probabilities; padding = L.
    """

    ranks: Int64[Tensor, "rows ranks"]
    inside: Bool[Tensor, "rows ranks"]
    positions: Int64[Tensor, "rows ranks"]
    logits: Tensor
    tokens: Int64[Tensor, "rows ranks"]
    log_q: Float64[Tensor, "rows ranks"]
    padding: int


def draw_drafts(
    model: Denoiser,
    hidden: Tensor,
    state: State,
    ends: Int64[Tensor, "rows"],
    uniforms: Uniforms,
    temperature: float,
    top_p: float,
) -> Drafts:
    """Draw ranks revealed..ends−1 of every row independently from the draft law."""
    length = state.order.shape[1]
    width = int((ends - state.revealed).max())
    ranks = state.revealed[:, None] + torch.arange(width, device=ends.device)
    inside = ranks < ends[:, None]
    positions = state.order.gather(1, ranks.clamp(max=length - 1))
    logits = model.draft_logits(hidden, positions)
    u = uniforms(state.rows, positions, Purpose.DRAFT, state.passes)
    tokens, log_q = draw_tokens(logits, u, temperature, top_p)
    ranks = ranks.masked_fill(~inside, length)
    return Drafts(ranks, inside, positions, logits, tokens, log_q, length)


_BLOCK = 1 << 23  # float64 numbers held at once while probabilities are formed: 64 MB


def blocks(rows: int, ranks: int, vocab: int) -> Iterator[slice]:
    """Slices of the rank axis of (B, K, V) small enough to hold in float64."""
    size = max(1, _BLOCK // (rows * vocab))
    return (slice(k, k + size) for k in range(0, ranks, size))


def draw_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Int64[Tensor, "rows ranks"], Float64[Tensor, "rows ranks"]]:
    """A token and its log-probability at each of (B, K) places, from (B, K, V) logits."""
    tokens, log_p = [], []
    for k in blocks(*logits.shape):
        log_probs = log_probabilities(logits[:, k], temperature, top_p)
        tokens.append(draw(log_probs.exp(), uniforms[:, k]))
        log_p.append(log_probs.gather(-1, tokens[-1][..., None])[..., 0])
    return torch.cat(tokens, 1), torch.cat(log_p, 1)


def score_tokens(
    logits: Tensor, tokens: Tensor, temperature: float, top_p: float
) -> Float64[Tensor, "rows ranks"]:
    """Tempered log-probability of (B, K) given tokens under (B, K, V) logits."""
    return torch.cat(
        [
            log_probabilities(logits[:, k], temperature, top_p).gather(-1, tokens[:, k, None])
            for k in blocks(*logits.shape)
        ],
        1,
    )[..., 0]


def reveal(state: State, ranked: Tensor, count: Tensor) -> State:
    """One pass on: the next `count` (B,) ranks take their token from `ranked` (B, L)."""
    ranks = torch.arange(ranked.shape[1], device=ranked.device)
    now = state.revealed + count
    known = torch.where(ranks < now[:, None], ranked, state.tokens.gather(1, state.order))
    return replace(
        state,
        tokens=torch.zeros_like(known).scatter(1, state.order, known),
        revealed=now,
        passes=state.passes + 1,
    )


def place(state: State, ranks: Tensor, tokens: Tensor) -> Int64[Tensor, "rows length"]:
    """The row in rank order with (B, K) tokens put at (B, K) ranks; rank L is dropped."""
    ranked = torch.nn.functional.pad(state.tokens.gather(1, state.order), (0, 1))
    return ranked.scatter(1, ranks, tokens)[:, :-1]


def plain_info(state: State, count: Tensor, rounds: int = 0) -> StepInfo:
    """The info of a step that keeps all of its `count` drafts."""
    none = torch.zeros_like(count)
    return StepInfo(count, count, none, none + rounds, torch.full_like(state.tokens, -1))


# ---------------------------------------------------------------------------------------- driver


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
    sampler: Sampler,
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
        sampler: its settings.
        num, length: so many rows of so many masked tokens (default: the model's length); or
        canvas: (B, L) tokens with `network.mask_id` at the positions to fill.
        lengths: (B,) tokens of each row if rows differ; what lies beyond is padding.
        seed: names all random numbers, 0 ≤ seed < 2⁶⁴.
        batch_size: rows in one pass. A row's tokens do not depend on it.
        rows: (B,) numbers of the rows among the seed's rows (default 0, 1, …): row 3 drawn alone
            with `rows=[3]` is row 3 of a larger call.

    Raises:
        UserError: any argument out of range, before any pass is made.
    """
    whole = _canvas(model, num, length, canvas, lengths, rows)
    _check_call(model, sampler, seed, batch_size)
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
    sampler: Sampler,
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
    whole = _canvas(model, num, length, canvas, lengths, rows)
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
        _decode(model, tokens, whole.lengths),
        time.perf_counter() - began,
    )


def _decode(model: Model, tokens: Tensor, lengths: Tensor) -> list[str] | None:
    if model.tokenizer is None:
        return None
    pairs = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return [model.tokenizer.decode(row[:n], skip_special_tokens=False) for row, n in pairs]


# ---------------------------------------------------------------------------------------- checks


def _canvas(
    model: Model,
    num: int | None,
    length: int | None,
    canvas: Tensor | None,
    lengths: Tensor | Sequence[int] | None,
    rows: Sequence[int] | None,
) -> Canvas:
    """Check the arguments that say what to fill, and put them in one form."""
    network = model.network
    if canvas is None:
        tokens = _blank(network, num, length, rows)
    elif num is not None or length is not None:
        raise UserError("got num or length together with canvas: the canvas has its own shape")
    else:
        tokens = _check_tokens(network, canvas)
    tokens = tokens.to(model.device)
    count, longest = tokens.shape
    sizes: Any = [longest] * count if lengths is None else lengths
    sizes = torch.as_tensor(sizes, dtype=torch.int64, device=tokens.device)
    if sizes.shape != (count,) or not bool(((sizes >= 1) & (sizes <= longest)).all()):
        raise UserError(f"lengths {sizes.tolist()}: expected {count} numbers from 1 to {longest}")
    names: Any = range(count) if rows is None else rows
    names = torch.as_tensor(list(names), dtype=torch.int64, device=tokens.device)
    fits = names.shape == (count,) and len(names.unique()) == count
    if not fits or bool(((names < 0) | (names >= 1 << 32)).any()):
        raise UserError(f"rows {names.tolist()}: expected {count} distinct numbers in [0, 2**32)")
    return Canvas(tokens, sizes, names, network.mask_id)


def _blank(
    network: Denoiser, num: int | None, length: int | None, rows: Sequence[int] | None
) -> Tensor:
    num = len(rows) if num is None and rows is not None else num
    if num is None:
        raise UserError("nothing to sample: pass num (and length), or a canvas")
    if num < 1:
        raise UserError(f"num={num}: expected at least 1 row")
    size = network.length if length is None else length
    if not 1 <= size <= network.length:
        raise UserError(f"length={size}: the model takes 1 to {network.length} tokens")
    return torch.full((num, size), network.mask_id)


def _check_tokens(network: Denoiser, canvas: Tensor) -> Tensor:
    if canvas.ndim != 2 or canvas.is_floating_point() or not canvas.numel():
        raise UserError(
            f"canvas of shape {tuple(canvas.shape)} and type {canvas.dtype}: expected integer "
            "tokens of shape (rows, length)"
        )
    if canvas.shape[1] > network.length:
        raise UserError(
            f"canvas of {canvas.shape[1]} tokens: the model takes at most {network.length}"
        )
    low, high = int(canvas.min()), int(canvas.max())
    if low < 0 or high > network.mask_id:
        raise UserError(
            f"canvas holds token {low if low < 0 else high}: expected 0..{network.mask_id - 1}, "
            f"or the mask {network.mask_id}"
        )
    return canvas.long()


def _check_call(model: Model, sampler: Sampler, seed: int, batch_size: int) -> None:
    if not 0 <= seed < 1 << 64:
        raise UserError(f"seed={seed}: expected 0 <= seed < 2**64")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1")
    network = model.network
    if sampler.verifies and not isinstance(network, Verifier):
        raise UserError(
            f"{type(sampler).__name__} needs a causal head, and {type(network).__name__} has "
            "none: use a sampler of the draft alone, e.g. Ancestral"
        )
    check_weights(network)
