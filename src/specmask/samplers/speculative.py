"""Self-speculative sampling: draft a window, verify it along σ, keep the accepted run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from specmask.categorical import (
    Purpose,
    accept_prefix,
    check_tempering,
    draw_residual,
    log_probabilities,
)
from specmask.checks import whole
from specmask.errors import UserError, unknown
from specmask.masking import (
    CosineWindow,
    OrderName,
    SpeculativeLaw,
    Window,
    order_by,
    window_ends,
)
from specmask.models.protocol import Meter
from specmask.samplers.base import (
    Canvas,
    Drafts,
    State,
    StepInfo,
    Uniforms,
    blocks,
    check_order,
    draw_drafts,
    initial_state,
    place,
    reveal,
    score_tokens,
)


@dataclass(frozen=True)
class Speculative:
    """Self-speculative masked diffusion (arXiv 2510.03929, Algorithms 1–3; method.md §4).

    Each trunk pass drafts the next W(i) ranks independently; up to `rounds` verify passes accept
    a run of them and redraw the first rejected one from (p − q)₊. With enough rounds a window is
    an exact joint draw from the target; fewer only trade verify for trunk passes. Drafts that no
    round has scanned are kept for the next round of the same pass.

    Passes per step: 1 trunk and at most `rounds` verify. Paper's settings: `rounds` and cosine
    `step` of (1, .002) (2, .005) (3, .01) (4, .02) (8, .04) (10, .083) on OpenWebText.
    """

    window: Window = CosineWindow(0.05)
    """How many ranks a trunk pass may reveal: cosine:STEP, linear:STEP, constant:K or full."""
    rounds: int = 1
    """Verify passes a trunk pass may make, at least 1."""
    first: Literal["verify", "accept"] = "accept"
    """accept takes p = q at a pass's first rank, where both have seen the same tokens, so that a
    pass reveals two ranks at least wherever its window does; verify, the paper's rule, judges that
    rank too, and needs more passes for the same quality (measured: the card of text8-small)."""
    order: OrderName = "random"
    """random is the paper; left-to-right; confidence re-sorts the masked ranks by the draft's
    largest probability in every pass."""
    temperature: float = 1.0
    """Divides the logits of draft and target alike; 0 takes the likeliest symbol."""
    top_p: float = 1.0
    """Keeps the smallest set of symbols of that mass, in draft and target alike."""

    verifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.window, Window):
            raise UserError(f"window={self.window!r}: expected e.g. CosineWindow(0.05)")
        whole("rounds", self.rounds, 1)
        if self.first not in ("verify", "accept"):
            raise unknown("first-rank rule", self.first, ("verify", "accept"))
        check_order(self.order)
        check_tempering(self.temperature, self.top_p)

    def init(self, canvas: Canvas, uniforms: Uniforms) -> State:
        return initial_state(canvas, uniforms, self.order)

    def law(self) -> SpeculativeLaw:
        if self.order == "confidence":
            raise UserError(
                "Speculative(order='confidence') has no tractable law: its order depends on what "
                "was drawn. Use order='random' or 'left-to-right'"
            )
        return SpeculativeLaw(
            self.window, self.rounds, self.first == "accept", self.temperature, self.top_p
        )

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        hidden = model.trunk(state.tokens, state.lengths)
        if self.order == "confidence":
            state = self._most_confident_first(model, hidden, state)
        ends = window_ends(self.window, state.revealed, state.lengths)
        drafts = draw_drafts(model, hidden, state, ends, uniforms, self.temperature, self.top_p)
        ranked = place(state, drafts.ranks, drafts.tokens)
        size = ends - state.revealed
        scanned = torch.zeros_like(size)
        if self.first == "accept":  # a window of one rank needs no verdict
            scanned = (size == 1).long()
        rejected, rounds = torch.zeros_like(size), torch.zeros_like(size)
        rejected_drafts = torch.full_like(state.tokens, -1)

        left = (scanned < size).nonzero()[:, 0]
        prefix = None
        for n in range(self.rounds):
            if not len(left):
                break
            if prefix is None:
                prefix = model.prefix(hidden, state.tokens, state.order, state.revealed)
            if len(left) < len(prefix.rows):
                prefix = prefix.take(torch.isin(prefix.rows, left).nonzero()[:, 0])
            counter = state.passes[left] * self.rounds + n
            window = _Window(drafts, left, scanned[left], size[left])
            logits = model.verify(prefix, window.ranks, ranked[left])
            accepted, token = self._judge(window, logits, state.rows[left], counter, uniforms, n)
            stop = scanned[left] + accepted  # where the scan ended, counted in the window
            cut = (stop < size[left]).nonzero()[:, 0]
            row, at = left[cut], stop[cut]
            rejected_drafts[row, drafts.positions[row, at]] = drafts.tokens[row, at]
            ranked[row, drafts.ranks[row, at]] = token[cut]
            rejected[row] += 1
            rounds[left] += 1
            scanned[left] = torch.minimum(stop + 1, size[left])
            left = (scanned < size).nonzero()[:, 0]

        remasked = torch.zeros_like(size)
        info = StepInfo(scanned, scanned - rejected, rejected, rounds, rejected_drafts, remasked)
        return reveal(state, ranked, scanned), info

    def _judge(
        self,
        window: _Window,
        target: Tensor,
        rows: Tensor,
        counter: Tensor,
        uniforms: Uniforms,
        n: int,
    ) -> tuple[Tensor, Tensor]:
        """How many drafts of each row's window are accepted, and what replaces the next one."""
        log_q = window.log_q
        log_p = score_tokens(target, window.tokens, self.temperature, self.top_p)
        if self.first == "accept" and n == 0:
            log_p[:, 0] = log_q[:, 0]  # p_i(i) := q_i(i)
        u = uniforms(rows, window.positions, Purpose.ACCEPT, counter)
        accepted = accept_prefix(log_q, log_p, u, window.inside)

        at = accepted.clamp(max=target.shape[1] - 1)[:, None]
        every = torch.arange(len(at), device=at.device)
        q = log_probabilities(window.draft_logits(at[:, 0]), self.temperature, self.top_p).exp()
        p = log_probabilities(target[every, at[:, 0]], self.temperature, self.top_p).exp()
        position = window.positions.gather(1, at)
        u = uniforms(rows, position, Purpose.RESIDUAL, counter)[:, 0]
        return accepted, draw_residual(q, p, u)

    def _most_confident_first(self, model: Meter, hidden: Tensor, state: State) -> State:
        length = state.tokens.shape[1]
        every = torch.arange(length, device=state.tokens.device).expand_as(state.tokens)
        best = torch.cat(  # largest log-probability, ≤ 0
            [
                model.draft_logits(hidden, every[:, k]).float().log_softmax(-1).amax(-1)
                for k in blocks(len(every), length, model.vocab_size)
            ],
            dim=1,
        )
        rank = torch.empty_like(state.order).scatter(1, state.order, every)
        known = rank < state.revealed[:, None]  # these keep the order they were revealed in
        keys = torch.where(known, (rank - length).float(), -best)
        return replace(state, order=order_by(keys, torch.zeros_like(known), state.lengths))


class _Window:
    """The part of some rows' drafts that no round has scanned yet, j = 0.. from its start."""

    def __init__(self, drafts: Drafts, rows: Tensor, scanned: Tensor, size: Tensor) -> None:
        width = int((size - scanned).max())
        index = scanned[:, None] + torch.arange(width, device=rows.device)
        self.inside = index < size[:, None]
        self._drafts, self._rows = drafts, rows
        self._index = index.clamp(max=drafts.ranks.shape[1] - 1)
        pick = rows[:, None], self._index
        self.ranks = drafts.ranks[pick].masked_fill(~self.inside, drafts.padding)
        self.positions = drafts.positions[pick]
        self.tokens, self.log_q = drafts.tokens[pick], drafts.log_q[pick]

    def draft_logits(self, at: Tensor) -> Tensor:
        """(B, V) draft logits at the `at`-th unscanned rank of each row."""
        return self._drafts.logits[self._rows, self._index.gather(1, at[:, None])[:, 0]]
