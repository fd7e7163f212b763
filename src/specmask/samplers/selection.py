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
from specmask.samplers.base import Drafts, State, Uniforms, blocks, draw_drafts, place, reveal

Score = Literal["drawn", "top", "margin", "entropy"]


def check_score(score: str) -> None:
    """Raise UserError unless `score` is one that `scores` knows."""
    if score not in get_args(Score):
        raise unknown("score", score, get_args(Score))


def propose(
    model: Meter, state: State, uniforms: Uniforms, temperature: float, top_p: float
) -> Drafts:
    """One trunk pass, and a draw at every masked position."""
    hidden = model.trunk(state.tokens, state.lengths)
    return draw_drafts(model, hidden, state, state.lengths, uniforms, temperature, top_p)


def scores(drafts: Drafts, score: Score) -> Float64[Tensor, "rows ranks"]:
    """How sure the model is at each masked position; higher is surer, −∞ outside the row.

    From the model's own probabilities, without temperature, top-p or noise. drawn: log-probability
    of the token that was drawn; top: of the likeliest one; margin: probability of the likeliest
    less that of the next; entropy: its negative, in nats.
    """
    found = []
    for k in blocks(*drafts.logits.shape):
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
