"""Who is cheaper at equal quality, who better at equal entropy, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specmask.bench.run import Point
from specmask.errors import UserError


def frontier(points: Sequence[Point], quality: str, sign: int) -> list[Point]:
    """The points no cheaper one is as good as, by rising NFE; sign +1 if more quality is better.

    A point without that quality (null in the file: nothing to measure) is on no frontier.
    """
    best: list[Point] = []
    sound = [p for p in points if is_number(p["nfe"]) and is_number(p[quality])]
    for point in sorted(sound, key=lambda p: (p["nfe"], -sign * p[quality])):
        if not best or sign * point[quality] > sign * best[-1][quality]:
            best.append(point)
    return best


def is_number(value: float | None) -> bool:
    """Whether there was something to measure."""
    return value is not None and math.isfinite(value)


def thin(points: Sequence[Point], ratio: float = 1.15) -> list[Point]:
    """Points by rising NFE, each at least `ratio` times as dear as the one before it."""
    kept: list[Point] = []
    for point in points:
        if not kept or point["nfe"] >= ratio * kept[-1]["nfe"]:
            kept.append(point)
    return kept


def cost_at(plain: Sequence[Point], quality: str, sign: int, wanted: float) -> float:
    """NFE at which the frontier of `plain` reaches a quality, interpolated in log NFE.

    0 if its cheapest point is better already, ∞ if none is as good.
    """
    curve = frontier(plain, quality, sign)
    if not curve or sign * wanted > sign * curve[-1][quality]:
        return math.inf
    if sign * wanted < sign * curve[0][quality]:
        return 0.0
    for low, high in itertools.pairwise(curve):
        a, b = low[quality], high[quality]
        if sign * wanted <= sign * b:
            return float(low["nfe"] * (high["nfe"] / low["nfe"]) ** ((wanted - a) / (b - a)))
    return float(curve[-1]["nfe"])


def at_cost(curve: Sequence[Point], key: str, nfe: float) -> tuple[float, float]:
    """A measure and its standard error on the line between two points of a curve, in log NFE.

    Args:
        curve: samples by rising NFE. key: the measure. nfe: within the curve's costs.
    """
    for low, high in itertools.pairwise(curve):
        if low["nfe"] <= nfe <= high["nfe"]:
            t = math.log(nfe / low["nfe"]) / math.log(high["nfe"] / low["nfe"])
            error = math.hypot((1 - t) * low[f"{key}_se"], t * high[f"{key}_se"])
            return (1 - t) * low[key] + t * high[key], error
    raise UserError(
        f"nfe={nfe:g}: expected one from {curve[0]['nfe']:g} to {curve[-1]['nfe']:g}, between two "
        "points of the curve"
    )


def cost_ratios(
    some: Sequence[Point], free: Sequence[Point], quality: str, sign: int
) -> list[float]:
    """NFE of the frontier of `some` ÷ NFE of that of `free`, at each of its points whose quality
    both have."""
    ratios = [
        cost_at(some, quality, sign, point[quality]) / point["nfe"]
        for point in frontier(free, quality, sign)
    ]
    return [ratio for ratio in ratios if 0 < ratio < math.inf]


@dataclass(frozen=True)
class Factor:
    """Plain NFE ÷ our NFE at the quality of one of our points, with a 95 % bootstrap interval.

    low may be 0 and high ∞, where plain's curve ends before that quality in so many replicates.
    """

    nfe: float
    quality: float
    factor: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        """In words."""
        return f"{self.low:.2f} to " + ("∞" if math.isinf(self.high) else f"{self.high:.2f}")

    def over(self, share: float) -> Factor:
        """With plain passes counted 1 that counted `share`."""
        return replace(
            self, factor=self.factor / share, low=self.low / share, high=self.high / share
        )


def factors_at_equal(
    plain: Sequence[Point],
    ours: Sequence[Point],
    quality: str,
    sign: int,
    replicates: int = 1000,
    seed: int = 0,
) -> list[Factor]:
    """The factor at each of our frontier's points whose quality plain's curve has.

    The bootstrap draws rows again (Efron, 1979): the same for all laws, which were scored on the
    same rows, and other ones for each sampled setting. It holds our settings fixed.
    """
    curve = frontier(plain, quality, sign)
    chosen = [
        (point, cost_at(curve, quality, sign, point[quality]))
        for point in frontier(ours, quality, sign)
    ]
    chosen = [(point, cost) for point, cost in chosen if 0 < cost < math.inf and len(curve) > 1]
    generator = np.random.default_rng(seed)
    found: list[list[float]] = [[] for _ in chosen]
    theirs = [_Rows(point, quality) for point in plain] if chosen else []
    mine = [_Rows(point, quality) for point, _ in chosen]
    for _ in range(replicates if chosen else 0):
        shared = _Shared(int(generator.integers(1 << 62)))
        again = frontier([rows.drawn(generator, shared) for rows in theirs], quality, sign)
        for costs, rows in zip(found, mine, strict=True):
            point = rows.drawn(generator, shared)
            costs.append(cost_at(again, quality, sign, point[quality]) / point["nfe"])
    return [
        Factor(point["nfe"], point[quality], cost / point["nfe"], *_interval(each))
        for (point, cost), each in zip(chosen, found, strict=True)
    ]


def crossed_factors(plain: Sequence[Point], ours: Sequence[Point]) -> list[list[float]]:
    """Factors in exact bits of settings that were chosen on other rows than they are scored on.

    Both sides choose their best settings at rising cost on one half of the rows, and are compared
    on the other half; then the other way round. The best of many on the rows that score them look
    better than they are; this is what is left without that.
    """
    rows = len(plain[0]["each"]["bits"])
    halves = np.arange(0, rows, 2), np.arange(1, rows, 2)
    found = []
    for choose, judge in (halves, halves[::-1]):
        base, mine = (_chosen(points, choose, judge) for points in (plain, ours))
        costs = [(cost_at(base, "bits", -1, p["bits"]), p["nfe"]) for p in mine]
        found.append([cost / nfe for cost, nfe in costs if 0 < cost < math.inf])
    return found


def _chosen(points: Sequence[Point], choose: np.ndarray, judge: np.ndarray) -> list[Point]:
    """The settings that are best on some rows, as others score them."""

    def of(point: Point, rows: np.ndarray, at: int) -> Point:
        means = {key: float(np.array(point["each"][key])[rows].mean()) for key in ("nfe", "bits")}
        return {**means, "at": at}

    best = thin(frontier([of(p, choose, k) for k, p in enumerate(points)], "bits", -1))
    return [of(points[p["at"]], judge, p["at"]) for p in best]


class _Shared(dict[int, np.ndarray]):
    """Number of rows → which of them a replicate draws; all laws draw the same."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def __missing__(self, count: int) -> np.ndarray:
        return self.setdefault(count, np.random.default_rng(self._seed).integers(count, size=count))


class _Rows:
    """What a bootstrap needs of the rows of a point, as arrays."""

    def __init__(self, point: Point, quality: str) -> None:
        self.law, self.quality = point["kind"] == "law", quality
        names = ("words", "correct") if quality == "spelling" else (quality,)
        self.each = {name: np.array(point["each"][name]) for name in ("nfe", *names)}
        self.count = len(self.each[names[-1]])

    def drawn(self, generator: np.random.Generator, shared: _Shared) -> Point:
        """The point of rows drawn again."""
        count = self.count
        pick = shared[count] if self.law else generator.integers(count, size=count)
        mean = _mean(self.each, self.quality, pick)
        return {"nfe": float(self.each["nfe"][pick].mean()), self.quality: mean}


def _mean(
    each: Mapping[str, Sequence[float] | np.ndarray], quality: str, pick: np.ndarray
) -> float:
    if quality == "spelling":  # a ratio of totals
        words = np.take(each["words"], pick).sum()
        return float(np.take(each["correct"], pick).sum() / words) if words else math.nan
    return float(np.take(each[quality], pick).mean())


_KNOBS = ("temperature", "top_p", "noise")
_NEIGHBOURS = 0.15
"""Nats between two settings the line between which is still believed."""


def turned(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Knob, and samples that differ in it alone, two at least, by rising entropy; ours first."""
    found: list[tuple[str, list[Point]]] = []
    samples = [p for p in points if p["kind"] == "samples"]
    for knob in _KNOBS:
        groups: dict[str, list[Point]] = {}
        for point in samples:
            rest = {name: value for name, value in point["settings"].items() if name != knob}
            if knob in point["settings"]:
                groups.setdefault(f"{point['sampler']} {rest}", []).append(point)
        for group in groups.values():
            if len(group) > 1:
                found.append((knob, sorted(group, key=lambda p: p["entropy"])))
    return sorted(found, key=lambda item: item[1][0]["sampler"] != "speculative")


def countable(point: Point, quality: str) -> bool:
    """Whether a point has that quality, and what a bootstrap of it over its rows needs."""
    there = ("correct" if quality == "spelling" else quality) in point.get("each", {})
    return there and is_number(point[quality])


def at_entropy(
    curve: Sequence[Point], quality: str, wanted: float, replicates: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Quality where a curve of samples has an entropy, on the line between its two neighbours.

    Args:
        curve: samples by rising entropy, as `turned` gives them. quality: key of the measure.
        wanted: nats.

    Returns:
        The value and its standard error, half of what holds the middle 68 % of a bootstrap over the
        rows of both neighbours (Efron, 1979): that counts what quality and entropy of a row have in
        common, and a line that comes out nearly upright now and then does not decide it. None where
        the curve does not come to that entropy, or has no two settings within 0.15 nats around it:
        quality is no straight line over more than that.
    """
    pairs = [pair for pair in itertools.pairwise(curve) if _spans(pair, wanted)]
    if not pairs:
        return None
    generator = np.random.default_rng(seed)
    both = pairs[-1]
    value = _on_the_line([(p["entropy"], p[quality]) for p in both], wanted)
    counts = [len(p["each"]["entropy"]) for p in both]
    again = []
    for _ in range(replicates):
        picks = [generator.integers(count, size=count) for count in counts]
        ends = [
            (_mean(p["each"], "entropy", pick), _mean(p["each"], quality, pick))
            for p, pick in zip(both, picks, strict=True)
        ]
        again.append(_on_the_line(ends, wanted))
    low, high = np.nanquantile(np.array(again), (0.16, 0.84))
    return value, float(high - low) / 2


def _spans(pair: tuple[Point, Point], wanted: float) -> bool:
    low, high = pair[0]["entropy"], pair[1]["entropy"]
    return bool(low < high and low <= wanted <= high <= low + _NEIGHBOURS)


def _on_the_line(ends: Sequence[tuple[float, float]], wanted: float) -> float:
    (x0, y0), (x1, y1) = ends
    if x0 == x1:  # rows drawn again may come to one entropy, and no line goes through that
        return math.nan
    return y0 + (y1 - y0) * (wanted - x0) / (x1 - x0)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    low, high = np.quantile(np.array(values), (0.025, 0.975), method="nearest")
    return float(low), float(high)
