"""Sentences of the evidence page that more than one section says."""

from __future__ import annotations

from collections.abc import Sequence

from specmask.bench.compare import Factor

LOW = 1.5
"""Factors below this are listed."""


def series(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def span(values: Sequence[float], digits: int = 3) -> str:
    """The least to the largest, or the only one."""
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def below(limit: float, low: Sequence[tuple[str, Factor]]) -> str:
    """Which factors are below a limit, with their intervals."""
    if not low:
        return f"no factor is below {limit}."
    parts: dict[str, list[str]] = {}
    for name, f in low:
        parts.setdefault(name, []).append(f"{f.factor:.2f} at {f.nfe:.1f} NFE ({f.interval})")
    return f"below {limit}: " + "; ".join(f"{k} {series(v)}" for k, v in parts.items()) + "."
