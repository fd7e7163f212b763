"""The best self-speculative setting for a budget, from exact laws alone (method.md §6).

Quality is exact: bits per token of held-out rows under each setting's own law. What a setting
costs depends on the rows, and a sampler does not make held-out rows, it makes its own. So there
are two exact costs, both means of E[passes | row, σ] over rows:

- on the text: over held-out rows, the cost that goes with the bits on one curve;
- generating: over rows that the model draws, along the orders it draws them in.

The second predicts what a sampler's meter will read: without bias for the setting that drew the
rows, and nearly so for its neighbours, whose laws are nearly the same. So the rows are drawn with
the choice itself: first with the one that the text suggests, then with the one that those rows
suggest, until it stays. What is stated of the choice comes from rows that had no say in it: near
the limit, rows that are cheap by chance are what lets a setting in. (Weighting one set of rows by
the ratio of two laws would serve all settings, but over hundreds of tokens one row then has all
the weight.) Budgets are about generating; without own rows, about the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

import specmask
from specmask.bench.pass_times import PassTimes
from specmask.bench.run import Point, describe, estimate
from specmask.bench.tune_scores import (
    Progress,
    Scores,
    score_settings,
    settings_grid,
    tell,
    window_grid,
)
from specmask.errors import UserError
from specmask.likelihood import random_orders
from specmask.masking import Window
from specmask.models.checkpoint import Model
from specmask.models.protocol import has_head
from specmask.samplers import Speculative

OWN_ROWS = 1 << 31
"""Number of the first row that is drawn for costs, far from those of `specmask sample`."""
_MOST_DRAWN = 4  # times that own rows are drawn


@dataclass(frozen=True)
class Budget:
    """What is bounded: nfe or seconds of a sample, for the fewest bits; or bits, for the least NFE.

    times: of the passes, for seconds.
    """

    kind: Literal["nfe", "bits", "seconds"]
    limit: float
    times: PassTimes | None = None

    def allows(self, cost: Tensor, bits: Tensor, setting: int) -> bool:
        """Whether one of (S,) settings is within the budget."""
        return float((bits if self.kind == "bits" else cost)[setting]) <= self.limit

    def nearest(self, cost: Tensor, bits: Tensor) -> int:
        """The best of (S,) settings, or if none is within the budget the nearest to it."""
        least = float((bits if self.kind == "bits" else cost).min())
        return replace(self, limit=max(self.limit, least)).choose(cost, bits)

    def choose(self, cost: Tensor, bits: Tensor) -> int:
        """The best of (S,) settings; of equally good ones the one with more room in the budget.

        Raises:
            UserError: none is within the budget; the message says what is within reach.
        """
        bounded, wanted = (bits, cost) if self.kind == "bits" else (cost, bits)
        within = bounded <= self.limit
        if not bool(within.any()):
            reach = "{:.4g} to {:.4g}".format(*map(float, bounded.aminmax()))
            raise UserError(
                f"--{self.kind} {self.limit:g} is out of reach: the settings have {reach} "
                f"{'bits per token' if self.kind == 'bits' else self.kind}; pass one of those"
            )
        best = wanted.masked_fill(~within, math.inf)
        ties = best <= best.min() + 1e-12
        return int(bounded.masked_fill(~ties, math.inf).argmin())


def pareto(cost: Tensor, bits: Tensor) -> list[int]:
    """The settings no cheaper one is as good as, by rising cost."""
    best, front = math.inf, []
    for k in sorted(range(len(cost)), key=lambda k: (float(cost[k]), float(bits[k]))):
        if float(bits[k]) < best:
            best = float(bits[k])
            front.append(k)
    return front


@dataclass(frozen=True)
class Tuning:
    """What was found.

    points: the Pareto front by rising cost, as they go to a results file. chosen: the index of the
    choice in it. samplers: of each point. settings: how many were scored.
    """

    points: list[Point]
    chosen: int
    samplers: list[Speculative]
    settings: int

    @property
    def sampler(self) -> Speculative:
        """The setting that was chosen."""
        return self.samplers[self.chosen]

    @property
    def point(self) -> Point:
        """What is known of it."""
        return self.points[self.chosen]


def tune(
    model: Model,
    tokens: Tensor,
    lengths: Tensor,
    budget: Budget,
    *,
    windows: Sequence[Window] | None = None,
    rounds: int = 10,
    own: int = 16,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Tuning:
    """Score every setting on held-out rows, and choose the best one within a budget.

    Args:
        model: with a causal head.
        tokens, lengths: (B, L) held-out rows and (B,) their lengths, B ≥ 2.
        budget: of one row as it is generated.
        windows: default `window_grid`. rounds: the most.
        own: rows to draw for the cost of generating, which take the held-out rows' lengths in turn,
            once to four times for the choice and once for what is stated of it, so that the stated
            cost is without bias and may lie above a limit that the choice just met; 0 takes the
            cost on the text.
        temperature: of draft and target alike; the law is then that of the tempered target.
        seed: names orders and own rows. batch_size: rows in one pass.
        progress: what is being done, and how far it is.

    Raises:
        UserError: no causal head, or what `score_settings` and `Budget.choose` refuse.
    """
    network = model.network
    if not has_head(network):
        raise UserError(f"{model.name} has no causal head: there is no speculation to tune")
    windows = window_grid(lengths) if windows is None else windows
    settings = settings_grid(windows, rounds, temperature)
    rest = (windows, rounds, temperature, batch_size, progress)
    text = score_settings(model, tokens, random_orders(tokens, seed, 0, lengths), lengths, *rest)
    layers = network.trunk_layers + network.head_layers
    passes = (network.trunk_layers / layers, network.head_layers / layers)
    prices = passes
    if budget.times is not None:
        prices = (budget.times.trunk, budget.times.verify)
    bits, bits_error = text.bits_per_token()
    if budget.kind == "bits":  # what cannot be had is told before own rows are drawn
        budget.choose(bits, bits)

    mine, chosen = text, budget.nearest(text.cost(*prices)[0], bits)
    sizes = lengths[torch.arange(own) % len(lengths)]

    def generating(first: int) -> Scores:
        """All settings on rows that the chosen one draws."""
        drawn = own_rows(model, settings[chosen], sizes, seed, batch_size, progress, first)
        return score_settings(model, drawn.tokens, drawn.order, drawn.lengths, *rest)

    drawn: dict[int, Scores] = {}  # setting → all settings on rows that it drew
    while own and chosen not in drawn and len(drawn) < _MOST_DRAWN:
        mine = drawn[chosen] = generating(OWN_ROWS)
        chosen = budget.nearest(mine.cost(*prices)[0], bits)
    # Of the settings whose own cost is known and within the budget the best: mostly the last one.
    own_cost = torch.full_like(bits, math.inf)
    for k, scores in drawn.items():
        own_cost[k] = scores.cost(*prices)[0][k]
    known = any(budget.allows(own_cost, bits, k) for k in drawn)
    chosen = budget.choose(own_cost if known else mine.cost(*prices)[0], bits)
    if own:  # other rows than those that it was chosen by
        mine = generating(OWN_ROWS + own)
    cost = mine.cost(*prices)[0]
    figures = {
        "bits": (bits, bits_error),
        "nfe": mine.cost(*passes),
        "nfe_text": text.cost(*passes),
        "trunk_passes": mine.cost(1, 0),
        "verify_passes": mine.cost(0, 1),
    }
    if budget.times is not None:
        figures["seconds_per_sample"] = mine.cost(*prices)
    front = pareto(cost, bits)
    if chosen not in front:  # as good as one of them within what the rows differ
        front = sorted({*front, chosen}, key=lambda k: float(cost[k]))
    points = [
        {
            "kind": "tuning",
            "chosen": k == chosen,
            **describe(settings[k], seed),
            "rows": len(tokens),
            "own_rows": own and len(mine.lengths),
            **{name: float(values[k]) for name, (values, _) in figures.items()},
            **{f"{name}_se": float(errors[k]) for name, (_, errors) in figures.items()},
        }
        for k in front
    ]
    return Tuning(points, front.index(chosen), [settings[k] for k in front], len(settings))


def own_rows(
    model: Model,
    sampler: Speculative,
    lengths: Tensor,
    seed: int,
    batch_size: int,
    progress: Progress | None = None,
    first: int = OWN_ROWS,
) -> specmask.Samples:
    """A row of the sampler's own for each of the (B,) lengths, numbered from `first`."""
    canvas = torch.full((len(lengths), int(lengths.max())), model.network.mask_id)
    rows = range(first, first + len(lengths))
    done = 0

    def on_frame(frame: specmask.Frame) -> None:
        nonlocal done
        done += int(frame.finished.sum())
        tell(progress, "rows of the model's own", done, len(lengths))

    return specmask.sample(
        model,
        sampler,
        canvas=canvas,
        lengths=lengths,
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        on_frame=on_frame,
    )


def check_tuning(
    model: Model, tuning: Tuning, lengths: Tensor, num: int, seed: int, batch_size: int
) -> Point:
    """Metered NFE and seconds of `num` samples by the setting that was chosen.

    The samples are those of `specmask sample` with the seed; rows take the (B,) lengths in turn.
    `apart` is the distance from the predicted NFE in standard errors of the difference: 0 for none,
    ∞ for one where neither figure has an error.
    """
    sizes = lengths[torch.arange(num) % len(lengths)]
    canvas = torch.full((num, int(sizes.max())), model.network.mask_id)
    out = specmask.sample(
        model, tuning.sampler, canvas=canvas, lengths=sizes, seed=seed, batch_size=batch_size
    )
    nfe, error = estimate(out.nfe)
    gap = abs(nfe - tuning.point["nfe"])
    return {
        "kind": "metered",
        **describe(tuning.sampler, seed),
        "samples": num,
        "nfe": nfe,
        "nfe_se": error,
        "apart": _apart(gap, math.hypot(error, tuning.point["nfe_se"]), nfe),
        "seconds_per_sample": out.wall_seconds / num,
    }


def _apart(gap: float, error: float, nfe: float) -> float:
    """Where every row costs the same there is no error, and a gap of rounding is none."""
    if gap <= 1e-9 * nfe:
        return 0.0
    return gap / error if error > 0 else math.inf
