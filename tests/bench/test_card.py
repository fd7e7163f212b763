"""What the card and the evidence page say of cost at equal quality."""

from __future__ import annotations

import math
from typing import Any

import pytest

from specmask.bench.card import plain_factors
from specmask.bench.run import Point


def laws(sampler: str, shift: float, **settings: Any) -> list[Point]:
    """Bits that fall by one with every doubling of the cost, of one row."""
    found = []
    for nfe in (4.0, 8.0, 16.0, 32.0, 64.0):
        bits = 6 - math.log2(nfe) + shift
        each = {"nfe": [nfe], "bits": [bits]}
        found.append({"kind": "law", "sampler": sampler, "settings": settings, "nfe": nfe})
        found[-1] |= {"bits": bits, "each": each}
    return found


def test_each_kind_of_plain_sampling_has_its_own_factor() -> None:
    """A bit more at equal cost is twice the cost at equal bits."""
    points = [
        *laws("speculative", -1.0, window="full"),
        *laws("ancestral", 1.0, schedule="cosine"),
        *laws("ancestral", 0.0, schedule="linear"),
        *laws("optimal", -0.5),
        *laws("any_order", -9.0),
        *laws("speculative", -9.0, verification="block"),
        *laws("speculative", -9.0, order="left-to-right"),
    ]
    found = plain_factors(points)
    for name, factor in (("cosine schedule", 4), ("linear schedule", 2), ("optimal cuts", 2**0.5)):
        assert found[name]
        for nfe, one in found[name].items():
            assert one.nfe == nfe
            assert one.factor == pytest.approx(factor)
    # wherever a curve that ends at 64 NFE comes to our bits
    assert set(found["cosine schedule"]) == {4.0, 8.0, 16.0}
    assert set(found["linear schedule"]) == {4.0, 8.0, 16.0, 32.0}
