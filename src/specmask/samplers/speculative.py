"""Self-speculative sampling: draft a window, verify it along σ, keep the accepted run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from specmask.categorical import (
    Purpose,
    accept_block,
    accept_prefix,
    check_tempering,
    draw_residual,
    log_probabilities,
    probabilities,
    run_ratio,
)
from specmask.checks import whole
from specmask.errors import UserError, unknown
from specmask.host import upload
from specmask.masking import (
    CosineWindow,
    OrderName,
    SpeculativeLaw,
    Window,
    confident_ends,
    order_by,
    window_ends,
)
from specmask.models.protocol import Logits, Meter
from specmask.samplers.base import (
    Canvas,
    Drafts,
    State,
    StepInfo,
    Uniforms,
    check_number,
    check_order,
    draw_drafts,
    draw_tokens,
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
    round has scanned are kept for the next round of the same pass; block verification, whose
    verdict depends on all of them, redraws them.

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
    verification: Literal["token", "block"] = "token"
    """token, the paper's rule, judges one draft after the other; block (arXiv 2403.10444) judges
    a round's drafts jointly and accepts at least as many on average. Fewer trunk passes also move
    the law: compare settings at equal cost, by their exact laws."""
    stop: float = 0.0
    """A pass's window ends before the first rank, its own first aside, whose draft's largest
    probability is below this, after temperature and top-p (BiLD, arXiv 2302.07863); from 0, which
    never ends it, to 1."""

    verifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.window, Window):
            raise UserError(f"window={self.window!r}: expected e.g. CosineWindow(0.05)")
        whole("rounds", self.rounds, 1)
        if self.first not in ("verify", "accept"):
            raise unknown("first-rank rule", self.first, ("verify", "accept"))
        if self.verification not in ("token", "block"):
            raise unknown("verification", self.verification, ("token", "block"))
        check_number("stop", self.stop, 0, 1)
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
            self.window,
            self.rounds,
            self.first == "accept",
            self.temperature,
            self.top_p,
            self.verification == "block",
            self.stop,
        )

    def step(self, model: Meter, state: State, uniforms: Uniforms) -> tuple[State, StepInfo]:
        host, device = state.host, state.tokens.device
        hidden = model.trunk(state.tokens, host.lengths)
        if self.order == "confidence":
            state = self._most_confident_first(model, hidden, state)
        ends = window_ends(self.window, host.revealed, host.lengths)
        drafts = draw_drafts(model, hidden, state, ends, uniforms, self.temperature, self.top_p)
        if self.stop > 0:
            ends = self._confident_ends(drafts, state.revealed, *upload(device, ends)).cpu()
        # A column more than ranks or positions takes what is written for rows without a rejection.
        ranked = pad(place(state, drafts.ranks, drafts.tokens), (0, 1))
        rejected_drafts = torch.full_like(ranked, -1)

        # Which rows go on is known on the CPU: a round waits for the device where it ends, once.
        size = ends - host.revealed
        scanned = torch.zeros_like(size)
        if self.first == "accept":  # a window of one rank needs no verdict
            scanned = (size == 1).long()
        rejected, rounds = torch.zeros_like(size), torch.zeros_like(size)
        held, left = torch.arange(len(size)), (scanned < size).nonzero()[:, 0]
        prefix = None
        for n in range(self.rounds):
            if not len(left):
                break
            if prefix is None:
                prefix = model.prefix(hidden, state.tokens, state.order, host.revealed)
            if len(left) < len(held):
                prefix = prefix.take(*upload(device, torch.isin(held, left).nonzero()[:, 0]))
                held = left
            window = _Window(drafts, left, scanned[left], size[left])
            batch = window.batch
            rows, counter = state.rows[batch], state.passes[batch] * self.rounds + n
            if n > 0 and self.verification == "block":
                u = uniforms(rows, window.positions, Purpose.REDRAFT, counter)
                window.redraw(u, self.temperature, self.top_p)
                ranked[batch[:, None], window.ranks] = window.tokens
            target = model.verify(prefix, window.ranks, ranked[batch, :-1])
            run, token = self._judge(window, target, rows, counter, uniforms, n)
            rank, position, draft = window.after(run)
            ranked[batch, rank], rejected_drafts[batch, position] = token, draft
            reached = scanned[left] + run.cpu()  # where the scan ended, counted in the window
            rejected[left] += (reached < size[left]).long()
            rounds[left] += 1
            scanned[left] = torch.minimum(reached + 1, size[left])
            left = (scanned < size).nonzero()[:, 0]

        after = reveal(state, ranked[:, :-1], scanned)
        accepted, rejected, rounds = upload(device, scanned - rejected, rejected, rounds)
        info = StepInfo(
            *(after.revealed - state.revealed, accepted, rejected, rounds),
            *(rejected_drafts[:, :-1], torch.zeros_like(rejected)),
        )
        return after, info

    def _judge(
        self,
        window: _Window,
        target: Logits,
        rows: Tensor,
        counter: Tensor,
        uniforms: Uniforms,
        n: int,
    ) -> tuple[Tensor, Tensor]:
        """How many drafts of each row's window are accepted, and what replaces the next one."""
        # Of every rank, though one residual is drawn: one call is fewer operations to launch.
        both = torch.arange(Purpose.ACCEPT, Purpose.RESIDUAL + 1, device=rows.device)
        u, residual = uniforms(rows, window.positions, both[:, None, None], counter)
        alike = self.first == "accept" and n == 0  # p_i(i) := q_i(i)
        if self.verification == "block":
            log_p = score_tokens(target, window.tokens, self.temperature, self.top_p)
            if alike:
                log_p[:, 0] = window.log_q[:, 0]
            log_c = run_ratio(window.log_q, log_p)
            accepted = accept_block(log_c, self._excess(window, target, log_c), u, window.inside)
        else:
            accepted = self._accepted_run(window, target, u, alike)
            log_c = torch.zeros_like(u)  # the residual is that of a sure run

        at = accepted.clamp(max=target.shape[1] - 1)[:, None]
        every = torch.arange(len(at), device=at.device)[:, None]
        q = probabilities(window.draft_logits(at)[:, 0], self.temperature, self.top_p)
        p = probabilities(target[every, at][:, 0], self.temperature, self.top_p)
        return accepted, draw_residual(
            q, log_c.gather(1, at).exp() * p, residual.gather(1, at)[:, 0]
        )

    def _accepted_run(
        self, window: _Window, target: Logits, uniforms: Tensor, alike: bool
    ) -> Tensor:
        """Token-wise verification, a block of ranks after the other until every row has rejected:
        of a large vocabulary, no logits are formed that no scan comes to."""
        accepted = torch.zeros_like(window.tokens[:, 0])
        for k in target.blocks():
            log_q, tokens = window.log_q[:, k], window.tokens[:, k]
            log_p = log_probabilities(target[:, k], self.temperature, self.top_p)
            log_p = log_p.gather(-1, tokens[..., None])[..., 0]
            if alike and k.start == 0:
                log_p[:, 0] = log_q[:, 0]
            going = accepted == k.start  # this row has rejected nothing yet
            run = accept_prefix(log_q, log_p, uniforms[:, k], window.inside[:, k])
            accepted = accepted + run * going
            if k.stop < target.shape[1] and not bool((accepted == k.stop).any()):
                break
        return accepted

    def _excess(self, window: _Window, target: Logits, log_c: Tensor) -> Tensor:
        """(B, K) s_t = Σ_v (c_t·p(v) − q(v))₊ at the rank after t drafts (method.md §7)."""
        c, excess = log_c[:, :-1, None].exp(), []
        for k in target.blocks():
            p = probabilities(target[:, k], self.temperature, self.top_p)
            draft = window.draft_logits(window.every[:, k])
            q = probabilities(draft, self.temperature, self.top_p)
            excess.append((c[:, k] * p - q).clamp_min(0).sum(-1))
        return torch.cat(excess, 1)

    def _confident_ends(self, drafts: Drafts, revealed: Tensor, ends: Tensor) -> Tensor:
        log_best = torch.cat(
            [
                log_probabilities(drafts.logits[:, k], self.temperature, self.top_p).amax(-1)
                for k in drafts.logits.blocks()
            ],
            dim=1,
        )
        return confident_ends(ends, revealed, drafts.ranks, log_best, self.stop)

    def _most_confident_first(self, model: Meter, hidden: Tensor, state: State) -> State:
        length = state.tokens.shape[1]
        every = torch.arange(length, device=state.tokens.device).expand_as(state.tokens)
        logits = model.draft_logits(hidden, every)
        best = torch.cat(  # largest log-probability, ≤ 0
            [logits[:, k].float().log_softmax(-1).amax(-1) for k in logits.blocks()], dim=1
        )
        rank = torch.empty_like(state.order).scatter(1, state.order, every)
        known = rank < state.revealed[:, None]  # these keep the order they were revealed in
        keys = torch.where(known, (rank - length).float(), -best)
        order = order_by(keys, torch.zeros_like(known), state.lengths)
        return replace(state, order=order).with_host(state.host)


class _Window:
    """The part of some rows' drafts that no round has scanned yet, j = 0.. from its start.

    Args:
        drafts: of the whole batch.
        rows: (n,) of which of its rows. scanned, size: (n,) drafts that are scanned, and all; on
            the CPU, as `rows`.
    """

    def __init__(self, drafts: Drafts, rows: Tensor, scanned: Tensor, size: Tensor) -> None:
        width, device = int((size - scanned).max()), drafts.ranks.device
        self.batch, scanned, size = upload(device, rows, scanned, size)
        index = scanned[:, None] + torch.arange(width, device=device)
        self.inside = index < size[:, None]
        self._drafts = drafts
        self.every = torch.arange(width, device=device).expand_as(index)
        self._index = index.clamp(max=drafts.ranks.shape[1] - 1)
        pick = self.batch[:, None], self._index
        self.ranks = drafts.ranks[pick].masked_fill(~self.inside, drafts.padding)
        self.positions = drafts.positions[pick]
        self.tokens, self.log_q = drafts.tokens[pick], drafts.log_q[pick]

    def draft_logits(self, at: Tensor) -> Tensor:
        """(B, n, V) draft logits at the (B, n) `at`-th unscanned ranks of each row."""
        return self._drafts.logits[self.batch[:, None], self._index.gather(1, at)]

    def after(self, run: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) rank, position and draft behind the first (n,) `run` of each row; rank and position
        are L where that is the end of the window."""
        none = self._drafts.padding
        at = run[:, None]
        rank = pad(self.ranks, (0, 1), value=none).gather(1, at)
        at = at.clamp(max=self.ranks.shape[1] - 1)
        position = self.positions.gather(1, at).masked_fill(rank == none, none)
        return rank[:, 0], position[:, 0], self.tokens.gather(1, at)[:, 0]

    def redraw(self, uniforms: Tensor, temperature: float, top_p: float) -> None:
        """Draw every draft of this part anew."""
        logits = self._drafts.logits.part(self.batch[:, None], self._index)
        self.tokens, self.log_q = draw_tokens(logits, uniforms, temperature, top_p)
