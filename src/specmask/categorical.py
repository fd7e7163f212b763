"""Every random draw of a token: counter-based uniforms, tempering, inverse CDF, accept-prefix.

One uniform belongs to one (seed, row, position, purpose, counter). It is computed, not taken from a
stream, so a row's result cannot depend on the batch it rides in or on what was drawn before it.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import lru_cache

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from specmask.checks import check_seed, is_number
from specmask.errors import UserError

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Purpose(IntEnum):
    """What a uniform is for; two purposes never share one."""

    ORDER = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3  # next to the one before: a verify round draws both at once
    REVEAL = 4
    TRAIN_ORDER = 5
    TRAIN_REVEALED = 6
    SCORE_ORDER = 7
    LENGTH = 8
    SELECT = 9
    REDRAFT = 10


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011).

    A round is two products, each of which feeds the other: both are lanes of one tensor, since a
    GPU takes longer to be told of so small an operation than to do it.

    Args:
        counter: four int64 tensors of one shape, of 32-bit words: the block's number.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of 32-bit random words.
    """
    multipliers, keys = (
        table.reshape(*table.shape, *(1,) * counter[0].ndim)
        for table in _constants(key, counter[0].device)
    )
    even, odd = torch.stack((counter[0], counter[2])), torch.stack((counter[1], counter[3]))
    for key_pair in keys:
        # The int64 product wraps, but its 64 bits are those of the unsigned product.
        product = (even * multipliers).flip(0)
        even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(key_pair).bitwise_and_(_WORD)
        odd = product  # whose upper half is cut off where it is next looked at
    odd = odd & _WORD
    return even[0], odd[0], even[1], odd[1]


@lru_cache(maxsize=64)
def _constants(key: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(2,) multipliers and (10, 2) keys of the rounds, kept where they are needed."""
    rounds = [
        [(k + n * weyl) & _WORD for k, weyl in zip(key, _WEYL, strict=True)] for n in range(10)
    ]
    return torch.tensor(_MULTIPLIERS, device=device), torch.tensor(rounds, device=device)


def uniform(seed: int, *words: Tensor | int) -> Tensor:
    """Uniforms in [0, 1) with 53 random bits, a pure function of their arguments.

    Args:
        seed: the key, 0 ≤ seed < 2⁶⁴.
        words: up to four broadcastable integers in [0, 2³²), at least one of them a tensor, which
            gives the device: (row, position, purpose, counter).

    Returns:
        float64 of the broadcast shape.

    Raises:
        UserError: a seed or a word out of range; those in tensors are not looked at.
    """
    check_seed(seed)
    for word in words:
        if not isinstance(word, Tensor) and not 0 <= word <= _WORD:
            raise UserError(f"counter word {word}: expected 0 to 2³²−1")
    device = next(word.device for word in words if isinstance(word, Tensor))
    padded = (*words, 0, 0, 0, 0)[:4]
    counter = tuple(  # a number is filled in on the device, which need not wait for it
        word.long() if isinstance(word, Tensor) else torch.full((), word, device=device)
        for word in padded
    )
    a, b, _, _ = philox(
        torch.broadcast_tensors(*counter),
        (seed & _WORD, seed >> 32),
    )
    return ((a >> 5) * (1 << 26) + (b >> 6)).double() * 2.0**-53


def check_tempering(temperature: float, top_p: float) -> None:
    """Raise UserError unless temperature ≥ 0 is finite and 0 < top_p ≤ 1."""
    if not (is_number(temperature) and temperature >= 0 and math.isfinite(temperature)):
        raise UserError(f"temperature {temperature!r}: expected a number >= 0 (0 takes the best)")
    if not (is_number(top_p) and 0 < top_p <= 1):
        raise UserError(f"top_p {top_p!r}: expected 0 < top_p <= 1")


def log_probabilities(
    logits: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> Float64[Tensor, "*batch vocab"]:
    """Tempered log-probabilities in float64.

    Args:
        logits: (..., V), any float type.
        temperature: divides the logits; 0 puts all mass on the largest (the first of equals).
        top_p: keeps the smallest set of likeliest symbols whose mass reaches top_p, 0 < top_p ≤ 1.
    """
    scores = logits.double()
    if temperature == 0:
        best = torch.full_like(scores, -torch.inf)
        return best.scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
    if temperature != 1:  # from the best down, so that no temperature is too small to divide by
        scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    log_p = torch.log_softmax(scores, dim=-1)
    if top_p < 1:
        ranked, symbols = log_p.sort(dim=-1, descending=True, stable=True)
        mass_before = ranked.exp().cumsum(-1).roll(1, -1)
        mass_before[..., 0] = 0
        ranked = ranked.masked_fill(mass_before >= top_p, -torch.inf)
        log_p = torch.empty_like(log_p).scatter_(-1, symbols, ranked).log_softmax(-1)
    return log_p


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> Float64[Tensor, "*batch vocab"]:
    """`log_probabilities`, not in logs, for one exponential a symbol."""
    if temperature == 1 and top_p == 1:
        return torch.softmax(logits, dim=-1, dtype=torch.float64)
    return log_probabilities(logits, temperature, top_p).exp()


def draw(
    probabilities: Float64[Tensor, "*batch vocab"], uniforms: Float64[Tensor, "*batch"]
) -> Int64[Tensor, "*batch"]:
    """One symbol per row by inverse CDF; `probabilities` need not be normalised.

    A symbol of probability zero is never drawn.
    """
    cdf = probabilities.cumsum(-1)
    total = cdf[..., -1:]
    # u·total may round up to total itself; the largest value below it belongs to the last symbol.
    below = torch.nextafter(total, torch.zeros_like(total))
    threshold = torch.minimum(uniforms[..., None] * total, below)
    return torch.searchsorted(cdf, threshold, right=True)[..., 0]


def accept_prefix(
    log_draft: Float64[Tensor, "rows ranks"],
    log_target: Float64[Tensor, "rows ranks"],
    uniforms: Float64[Tensor, "rows ranks"],
    inside: Bool[Tensor, "rows ranks"],
) -> Int64[Tensor, "rows"]:
    """How many leading drafts of each row are accepted (method.md §4).

    Draft d is accepted with probability min(1, p(d)/q(d)); the scan of a row ends at its first
    rejection or at its first rank that is not `inside` the row's window.
    """
    accept = (uniforms.log() < log_target - log_draft) & inside
    return accept.long().cumprod(-1).sum(-1)


def run_ratio(
    log_draft: Float64[Tensor, "*batch ranks"], log_target: Float64[Tensor, "*batch ranks"]
) -> Float64[Tensor, "*batch lengths"]:
    """log c_t of the first t drafts of a run, t = 0..K (method.md §7).

    c_0 = 1, c_t = min(1, c_{t−1}·p/q): in logs a walk with steps log p − log q that is held at 0,
    which is the walk less its own running maximum. No draft has q = 0; such a step counts as 0.
    """
    steps = (log_target - log_draft).masked_fill(log_draft == -torch.inf, 0)
    walk = torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
    return walk - walk.cummax(-1).values


def accept_block(
    log_c: Float64[Tensor, "rows lengths"],
    excess: Float64[Tensor, "rows ranks"],
    uniforms: Float64[Tensor, "rows ranks"],
    inside: Bool[Tensor, "rows ranks"],
) -> Int64[Tensor, "rows"]:
    """How many leading drafts of each row are accepted, judged as one block (method.md §7).

    Length t = 1..K passes with probability h_t = s_t/(s_t + 1 − c_t), and c_t at the end of the
    row's window; the longest that passes is accepted.

    Args:
        log_c: log c_t, t = 0..K, from `run_ratio`.
        excess: s_t = Σ_v (c_t·p(v) − q(v))₊ at the rank after t drafts, t = 0..K−1.
        uniforms: of the lengths 1..K.
        inside: ranks inside the row's window, a leading run.
    """
    s, following = (torch.nn.functional.pad(x[:, 1:], (0, 1)) for x in (excess, inside))
    lacking = -torch.expm1(log_c[:, 1:])  # 1 − c_t
    # 0/0, where p = q after a sure run, passes for no length: a longer run is as sure.
    h = torch.where(following, s / (s + lacking), 1 - lacking)
    lengths = torch.arange(1, h.shape[1] + 1, device=h.device)
    return (lengths * ((uniforms < h) & inside)).amax(-1)


def draw_residual(
    draft: Float64[Tensor, "rows vocab"],
    target: Float64[Tensor, "rows vocab"],
    uniforms: Float64[Tensor, "rows"],
) -> Int64[Tensor, "rows"]:
    """A symbol from (p − q)₊ normalised, the law of a rejected rank (method.md §4).

    `target` is p, or c_t·p under block verification (§7). Where (p − q)₊ vanishes within rounding,
    p = q and the symbol is drawn from p.
    """
    residual = (target - draft).clamp_min(0)
    vanished = residual.sum(-1, keepdim=True) <= 1e-12
    return draw(torch.where(vanished, target, residual), uniforms)
