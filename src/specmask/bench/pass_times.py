"""What a trunk pass and a verify pass cost in seconds on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specmask.host import now
from specmask.models import protocol
from specmask.models.checkpoint import Model
from specmask.models.protocol import can_verify
from specmask.samplers.base import draw_tokens, score_tokens


@dataclass(frozen=True)
class PassTimes:
    """Seconds of a row's share in a trunk pass and in a verify pass, in batches of batch_size."""

    trunk: float
    verify: float
    batch_size: int


@torch.no_grad()
def measure_passes(
    model: Model,
    length: int,
    batch_size: int,
    temperature: float = 1.0,
    repeats: int = 7,
) -> PassTimes:
    """Medians over `repeats` pairs of a trunk and a verify pass, after one to warm up.

    Half of a row is revealed, and the window holds a quarter of it. The trunk pass counts with the
    drafts and what the head keeps of it, the verify pass with the probabilities of its drafts.
    """
    network, device = model.network, model.device
    assert can_verify(network)
    ranked = torch.zeros(batch_size, length, dtype=torch.int64, device=device)
    order = torch.arange(length, device=device).expand_as(ranked)
    lengths, revealed = torch.full((2, batch_size), length, device=device)
    revealed = revealed // 2
    tokens = ranked.masked_fill(order >= length // 2, network.mask_id)
    window = order[:, length // 2 :][:, : max(1, length // 4)]
    uniforms = torch.full(window.shape, 0.5, dtype=torch.float64, device=device)
    times = []
    for _ in range(1 + repeats):
        began = now(device)
        hidden = network.trunk(tokens, lengths)
        logits = protocol.draft_logits(network, hidden, window)
        drafts, _ = draw_tokens(logits, uniforms, temperature, 1.0)
        prefix = network.prefix(hidden, tokens, order, revealed)
        drafted = now(device)
        target = protocol.verify(network, prefix, window, ranked)
        score_tokens(target, drafts, temperature, 1.0)
        times.append((drafted - began, now(device) - drafted))
    trunk, verify = torch.tensor(times[1:], dtype=torch.float64).median(0).values.tolist()
    return PassTimes(trunk / batch_size, verify / batch_size, batch_size)
