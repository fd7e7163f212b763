"""Parts of the samplers that look at every masked position and choose which to reveal."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.categorical import log_probabilities
from specmask.errors import unknown
from specmask.models.protocol import Meter
from specmask.samplers.base import Drafts, State, Uniforms, draw_drafts, place, reveal

Score = Literal["drawn", "top", "margin", "entropy"]


def check_score(score: str) -> None:
    """Raise UserError unless `score` is one that `scores` knows."""
    if score not in get_args(Score):
        raise unknown("score", score, get_args(Score))


def propose(
    model: Meter, state: State, uniforms: Uniforms, temperature: float, top_p: float
) -> Drafts:
    """One trunk pass, and a draw at every masked position."""
    hidden = model.trunk(state.tokens, state.host.lengths)
    return draw_drafts(model, hidden, state, state.host.lengths, uniforms, temperature, top_p)


def scores(drafts: Drafts, score: Score) -> Float64[Tensor, "rows ranks"]:
    """How sure the model is at each masked position; higher is surer, −∞ outside the row.

    From the model's own probabilities, without temperature, top-p or noise. drawn: log-probability
    of the token that was drawn; top: of the likeliest one; margin: probability of the likeliest
    less that of the next; entropy: its negative, in nats.
    """
    found = []
    for k in drafts.logits.blocks():
        log_p = log_probabilities(drafts.logits[:, k])
        if score == "drawn":
            found.append(log_p.gather(-1, drafts.tokens[:, k, None])[..., 0])
        elif score == "top":
            found.append(log_p.amax(-1))
        elif score == "margin":
            best = log_p.topk(min(2, log_p.shape[-1]), dim=-1).values.exp()
            found.append(best[..., 0] - best[..., 1:].sum(-1))
        else:
            found.append((log_p.exp() * log_p.clamp(min=-1e300)).sum(-1))
    return torch.cat(found, 1).masked_fill(~drafts.inside, -torch.inf)


def best(
    ranking: Float64[Tensor, "rows ranks"], count: Int64[Tensor, "rows"]
) -> Bool[Tensor, "rows ranks"]:
    """The `count` highest of each row; of equals the earlier rank goes first."""
    place_of = ranking.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return place_of < count[:, None]


def in_first_block(drafts: Drafts, block: int) -> Bool[Tensor, "rows ranks"]:
    """Masked positions of the first block of `block` positions that has one; 0: the whole row.

    The ranks go left to right, so that the first one stands in that block.
    """
    if block == 0:
        return drafts.inside
    number = drafts.positions // block
    return drafts.inside & (number == number[:, :1])


def spaced(
    chosen: Bool[Tensor, "rows ranks"],
    ranking: Float64[Tensor, "rows ranks"],
    drafts: Drafts,
    spacing: float,
    masked: Bool[Tensor, "rows ranks"],
    size: Int64[Tensor, "rows"],
) -> Bool[Tensor, "rows ranks"]:
    """Of the chosen, best first, those far enough from every better one that was taken.

    The post-filter of dilated unmasking (arXiv 2506.19037): the distance is
    max(2, ⌊spacing·|masked|/size⌋), of a block of `size` positions; 0 filters nothing. The best
    chosen one always stays.
    """
    if spacing == 0:
        return chosen
    distance = (spacing * masked.sum(1) / size).floor().long().clamp(min=2)
    order = ranking.masked_fill(~chosen, -torch.inf).argsort(dim=1, descending=True, stable=True)
    taken = torch.zeros_like(chosen)
    for at in order.T[: int(chosen.sum(1).max())]:
        gap = (drafts.positions - drafts.positions.gather(1, at[:, None])).abs()
        near = (taken & (gap < distance[:, None])).any(1)
        fits = chosen.gather(1, at[:, None])[:, 0] & ~near
        taken = taken.scatter(1, at[:, None], fits[:, None])
    return taken


def commit(state: State, drafts: Drafts, chosen: Bool[Tensor, "rows ranks"]) -> State:
    """Reveal the chosen positions with their drafts: they become the next ranks of the order."""
    chosen = chosen & drafts.inside
    length = state.order.shape[1]
    ranks = torch.arange(length + 1, device=chosen.device)
    # Known ranks stay where they are, the chosen follow, the others keep waiting.
    when = 2 * (ranks >= state.revealed[:, None]).long()
    when = when.scatter(1, drafts.ranks.masked_fill(~chosen, length), 1)
    moved = when[:, :length].argsort(dim=1, stable=True)
    ranked = place(state, drafts.ranks, drafts.tokens).gather(1, moved)
    return reveal(replace(state, order=state.order.gather(1, moved)), ranked, chosen.sum(1))
