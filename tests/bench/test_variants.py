"""Training choices are trained once, scored exactly, and compared on the same rows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from specmask import HybridConfig, Model, UserError
from specmask.bench import variants as bench
from specmask.bench.run import Point, read_points
from specmask.bench.variant_tables import Trained, read, table
from specmask.bench.variants import BASE, VARIANTS, Variants, laws, variants
from specmask.models.hybrid import DraftNetwork, build

LENGTH = 12


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variants:
    """A network of seconds on a text of a few thousand characters."""
    small = HybridConfig(27, length=LENGTH, width=16, heads=2, trunk_layers=5)
    monkeypatch.setattr(bench, "NETWORK", small)
    train = replace(bench.TRAIN, batch_size=8, compile=False, precision="fp32", eval_rows=8)
    monkeypatch.setattr(bench, "TRAIN", train)
    few = [one for k, one in enumerate(bench.speculative_grid()) if k % 9 == 0]
    monkeypatch.setattr(bench, "speculative_grid", lambda: few)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 200)
    return Variants(
        tmp_path / "out", text, tmp_path / "runs", (BASE, "6 + 0", "two networks"), rows=4, steps=3
    )


def test_what_is_there_is_not_trained_again(
    args: Variants, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants(args)
    path = args.out / "results.jsonl"
    before = path.read_bytes()
    told = read_points(path)
    assert [p["name"] for p in told if p["kind"] == "variant"] == list(args.only)
    assert {p["tokens"] for p in told if p["kind"] == "variant"} == {3 * 8 * LENGTH}
    pages = {f.name: f.read_bytes() for f in args.out.iterdir() if f.suffix == ".md"}
    assert set(pages) == {"ablations.md", "gain.md"}
    assert (args.out / "frontiers.png").stat().st_size > 0

    monkeypatch.setattr(bench, "train", lambda *_, **__: pytest.fail("trained again"))
    variants(args)
    variants(replace(args, table_only=True, data=None))
    assert path.read_bytes() == before
    for other, named in ((replace(args, steps=4), "steps 3"), (replace(args, rows=5), "rows 4")):
        with pytest.raises(UserError, match=f"{named}, and . is asked for: name another folder"):
            variants(other)
    assert {f.name: f.read_bytes() for f in args.out.iterdir() if f.suffix == ".md"} == pages


def test_a_frozen_trunk_is_that_of_the_plain_network(args: Variants) -> None:
    corpus = bench.load_corpus(args.data, "text8")
    frozen, _ = bench.trained("frozen trunk", 0, corpus, args)
    plain, _ = bench.trained("5 + 0", 0, corpus, args)
    for name, tensor in plain.trunk.state_dict().items():
        assert torch.equal(tensor, frozen.trunk.state_dict()[name]), name


def network(trunk_layers: int, head_layers: int, seed: int) -> DraftNetwork:
    torch.manual_seed(seed)
    config = HybridConfig(5, 6, 16, 2, trunk_layers=trunk_layers, head_layers=head_layers)
    made = build(config)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_laws_are_those_of_the_library() -> None:
    """For one network, those of `log_prob` and `expected_passes`, setting by setting."""
    one = network(5, 1, seed=0)
    rows = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    orders, model = specmask.random_orders(rows, 0), Model(one)
    for point in laws(one, None, rows)[::7]:
        sampler = next(
            s
            for s in (*bench.plain_grid(6), *bench.speculative_grid())
            if bench.describe(s, 0)["settings"] == point["settings"]
            and bench.describe(s, 0)["sampler"] == point["sampler"]
        )
        log_prob = specmask.log_prob(model, rows, orders, sampler)
        trunk, verify = specmask.expected_passes(model, rows, orders, sampler)
        assert point["bits"] == pytest.approx(-float(log_prob.mean()) / 6 / math.log(2), rel=1e-6)
        assert point["nfe"] == pytest.approx(float((5 * trunk + verify).mean()) / 6, rel=1e-6)


def test_two_networks_pay_for_both_trunks() -> None:
    verifier, drafter = network(1, 2, seed=0), network(3, 0, seed=1)
    rows = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    plain_alone = {p["settings"]["steps"]: p for p in laws(drafter, None, rows) if p["plain"]}
    for point in laws(verifier, drafter, rows):
        if point["plain"]:  # the drafter's own law, at the drafter's own cost
            alone = plain_alone[point["settings"]["steps"]]
            assert point["bits"] == pytest.approx(alone["bits"])
            assert point["nfe"] == pytest.approx(alone["nfe"])
        else:
            trunk, verify = point["trunk_passes"], point["verify_passes"]
            assert point["nfe"] == pytest.approx(((3 + 1) * trunk + 2 * verify) / 6)


def test_bad_input_is_refused_before_work(args: Variants) -> None:
    with pytest.raises(UserError, match=r"unknown variant 'distil'.*Did you mean 'distil"):
        variants(replace(args, only=("distil",)))
    with pytest.raises(UserError, match="--data is needed"):
        variants(replace(args, data=None))
    with pytest.raises(UserError, match="run without --table-only"):
        variants(replace(args, table_only=True))
    with pytest.raises(UserError, match="rows=0"):
        variants(replace(args, rows=0))
    with pytest.raises(UserError, match="steps=0"):
        variants(replace(args, steps=0))
    args.out.mkdir(exist_ok=True)
    (args.out / "results.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no law of 5 \+ 1"):
        variants(replace(args, table_only=True))


# ------------------------------------------------------------------------------------------ tables


def points_of(name: str, seed: int, shift: float, head: int) -> list[Point]:
    """Bits fall by one with every doubling of the cost, plus a shift; two rows."""

    def law(nfe: float) -> dict[str, Any]:
        bits = [6.0 - math.log2(nfe) + shift + row for row in (-0.1, 0.1)]
        settings = {"steps": round(nfe)} if head == 0 else {}
        return {
            **{"kind": "law", "variant": name, "train_seed": seed, "plain": head == 0},
            **{"settings": settings, "bits": sum(bits) / 2, "nfe": nfe},
            "each": {"bits": bits, "nfe": [nfe, nfe]},
        }

    about = {"kind": "variant", "name": name, "seed": seed, "group": "ablation", "why": "why"}
    about |= {"layers": [6 - head, head], "draft_bits": 3.0 + shift, "target_bits": 2.0}
    worse = law(20.0)  # off the frontier, and so without its rows
    worse["bits"] += 1.0
    del worse["each"]
    return [*map(law, (4.0, 16.0, 64.0)), worse, about]


def test_between_two_settings_bits_lie_on_the_line() -> None:
    one = Trained(points_of("a", 0, 0.0, 1)[-1], points_of("a", 0, 0.0, 1)[:-1])
    assert one.at(3.9) is None
    for nfe in (4.0, 8.0, 16.0, 30.0, 64.0):
        assert one.at(nfe) == pytest.approx([5.9 - math.log2(nfe), 6.1 - math.log2(nfe)])
    assert one.at(100.0) == pytest.approx([-0.1, 0.1])


def test_differences_are_paired_and_factors_those_of_the_curves() -> None:
    """A shift of half a bit at equal cost is a factor of √2, whatever the rows differ by."""
    told = [
        *points_of(BASE, 0, 0.0, 1),
        *points_of("better", 0, -0.5, 1),
        *points_of("worse", 0, 9.0, 1),
        *points_of("6 + 0", 0, 0.5, 0),
    ]
    lines = table(read(told), BASE, ("ablation",)).splitlines()
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[1:-1]] for line in lines
    }
    assert cells["better"][6:10] == ["-0.500 ± 0.000"] * 4
    assert cells[BASE][7] == "3.000 ± 0.100"
    assert cells["better"][12] == "2.00 (2.00–2.00)"
    assert cells[BASE][12] == "1.41 (1.41–1.41)"
    assert cells["6 + 0"][12] == "–"
    assert cells["worse"][12] == "never as good"


def test_errors_of_several_seeds_are_over_seeds() -> None:
    told = []
    for seed, shift in enumerate((-0.4, -0.5, -0.6)):
        told += [*points_of(BASE, seed, 0.0, 1), *points_of("better", seed, shift, 1)]
        told += points_of("6 + 0", seed, 0.5 if seed else -9.0, 0)
    lines = table(read(told), BASE, ("ablation",)).splitlines()
    (line,) = [line for line in lines if line.startswith("| better")]
    assert "| 3 |" in line
    assert f"-0.500 ± {0.1 / math.sqrt(3):.3f}" in line
    (own,) = [line for line in lines if line.startswith(f"| {BASE}")]
    assert (
        "3.000 ± 0.100" in own
    )  # its rows are the same for every seed: more seeds do not tell more
    cells = [c.strip() for c in line.split("|")[1:-1]]
    assert cells[12] == "never as good, 2.00, 2.14"  # of each seed: a bit is a factor of 2


def test_errors_over_rows_and_over_seeds_add_up() -> None:
    """Rows that gain 0.4 and 0.6 bits, and seeds that gain 0.1 more and less than that."""
    told = []
    for seed, shift in enumerate((-0.1, 0.0, 0.1)):
        better = points_of("better", seed, shift - 0.5, 1)
        for p in better:
            if "each" in p:
                p["each"]["bits"] = [p["each"]["bits"][0] - 0.1, p["each"]["bits"][1] + 0.1]
        told += [*points_of(BASE, seed, 0.0, 1), *better]
    (line,) = [x for x in table(read(told), BASE, ("ablation",)).splitlines() if "| better" in x]
    error = math.hypot(0.1, 0.1 / math.sqrt(3))  # 0.1·√2 / √2 over two rows, 0.1 / √3 over seeds
    assert f"-0.500 ± {error:.3f}" in line


def test_every_variant_can_be_built() -> None:
    for name, variant in VARIANTS.items():
        made = build(replace(bench.NETWORK, **variant.network))
        replace(bench.TRAIN, **variant.train)
        beside = VARIANTS[variant.drafts_of].network if variant.drafts_of else {}
        layers = made.trunk_layers + made.head_layers + beside.get("trunk_layers", 0)
        if variant.group != "part":
            assert layers == bench.LAYERS, name
        for other in (variant.trunk_of, variant.drafts_of):
            assert other is None or VARIANTS[other].group == "part"


# -------------------------------------------------------------------------------------------- docs

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_quotes_what_the_results_say() -> None:
    """What has two decimals in the text stands in docs/results.md, as do its tables,
    which `tests/bench/test_results.py` makes anew."""
    files = (DOCS / "experiments" / name for name in ("ablations.md", "gain.md"))
    made = [file.read_text(encoding="utf-8") for file in files]
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    assert all(one.strip() in results for one in made)
    text = (DOCS / "experiments.md").read_text(encoding="utf-8")
    quoted = set(re.findall(r"\d+\.\d\d+", text))
    assert len(quoted) > 10
    assert quoted <= set(re.findall(r"\d+\.\d\d+", results))
