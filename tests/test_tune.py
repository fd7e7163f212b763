"""Tuning states the exact laws, chooses by them, and predicts what the meter reads."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from oracle import Draft, tiny_network
from refusal import Refused, command, refuse
from specmask import (
    ConstantWindow,
    CosineWindow,
    FullWindow,
    HybridConfig,
    HybridTransformer,
    Speculative,
)
from specmask.bench.pass_times import PassTimes, measure_passes
from specmask.bench.run import json_line, settings_of, show
from specmask.bench.tune import OWN_ROWS, Budget, check_tuning, own_rows, pareto, tune
from specmask.bench.tune_scores import score_settings, settings_grid, window_grid
from specmask.data.fasta import AMINO_ACIDS
from specmask.data.tokenizers import character_tokenizer
from specmask.masking import parse_window, window_ends
from specmask.samplers import default_sampler

LENGTH, SYMBOLS = 12, "abcd"


@pytest.fixture(scope="module")
def model() -> specmask.Model:
    return specmask.wrap(tiny_network(vocab_size=4, length=LENGTH))


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(4, (20, LENGTH), generator=torch.Generator().manual_seed(1))


def full(tokens: torch.Tensor) -> torch.Tensor:
    return torch.full((len(tokens),), tokens.shape[1])


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("most", [1, 2, 30, 500])
@pytest.mark.parametrize("lengths", [(256,), (5, 40, 41), (1,)])
def test_the_grid_holds_distinct_windows_that_one_can_type(
    most: int, lengths: tuple[int, ...]
) -> None:
    found = window_grid(torch.tensor(lengths), most)
    assert 1 <= len(found) <= most
    assert all(parse_window(show(window)) == window for window in found)
    kinds = set()
    for window in found:
        ends = []
        for length in lengths:
            every = torch.arange(length)
            ends += window_ends(window, every, torch.full_like(every, length)).tolist()
        kinds.add(tuple(ends))
    assert len(kinds) == len(found)
    if most == 500 and lengths == (256,):
        assert len(found) > 400


def test_settings_are_scored_as_they_are_alone(model: specmask.Model, tokens: torch.Tensor) -> None:
    windows = [FullWindow(), ConstantWindow(3), CosineWindow(0.2)]
    order = specmask.random_orders(tokens, 3)
    found = score_settings(model, tokens, order, full(tokens), windows, 3, 0.8)
    grid = settings_grid(windows, 3, 0.8)
    assert found.bits.shape == (20, len(grid))
    assert len(set(grid)) == 18
    layers = model.network.trunk_layers + model.network.head_layers
    bits, bits_error = found.bits_per_token()
    nfe, nfe_error = found.cost(
        model.network.trunk_layers / layers, model.network.head_layers / layers
    )
    for k, sampler in enumerate(grid):
        want = specmask.evaluate(model, tokens, order, sampler)
        each = -want.log_prob / math.log(2) / LENGTH
        cost = (model.network.trunk_layers * want.trunk + want.verify) / layers
        for mean, error, values in ((bits, bits_error, each), (nfe, nfe_error, cost)):
            assert float(mean[k]) == pytest.approx(float(values.mean()), abs=1e-9)
            assert float(error[k]) == pytest.approx(float(values.std()) / 20**0.5, abs=1e-9)


def test_rows_in_groups_are_scored_the_same(model: specmask.Model) -> None:
    """So many short rows that their tables come in two groups; progress ends at its totals."""
    tokens = torch.zeros(4, LENGTH, dtype=torch.int64)
    many = tokens.repeat((1 << 24) // LENGTH**2 // 4000 + 1, 1)
    seen: dict[str, tuple[int, int]] = {}
    order = specmask.random_orders(many)
    rest = ([ConstantWindow(2)], 1, 1.0, 512)
    found = score_settings(
        *(model, many, order, full(many), *rest),
        progress=lambda what, done, total: seen.update({what: (done, total)}),
    )
    last = score_settings(model, many[-2:], order[-2:], full(many[-2:]), *rest)
    torch.testing.assert_close(found.bits[-2:], last.bits)
    assert all(done == total for done, total in seen.values())
    assert len(seen) == 2


def test_a_row_without_probability_is_refused(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(vocab_size=4, length=LENGTH)
    real = network.logits
    forbid = torch.tensor([0.0, 0, 0, -math.inf])
    monkeypatch.setattr(network, "logits", lambda features: real(features) + forbid)
    rows = tokens.clamp(max=2)
    rows[7, 3] = 3
    order = specmask.random_orders(rows)
    model = specmask.wrap(network)
    refuse(
        lambda: score_settings(model, rows, order, full(rows), [FullWindow()], 1),
        "row 7",
        "never draws",
    )


# ---------------------------------------------------------------------------------------- choice

COST = torch.tensor([4.0, 8.0, 2.0, 6.0, 8.0])
BITS = torch.tensor([2.0, 1.5, 3.0, 2.5, 1.4])


@pytest.mark.parametrize(
    ("kind", "limit", "best"),
    [("nfe", 8, 4), ("nfe", 7.9, 0), ("nfe", 3, 2), ("bits", 2.5, 0), ("bits", 1.5, 4)],
)
def test_the_best_within_a_budget(kind: Any, limit: float, best: int) -> None:
    assert Budget(kind, limit).choose(COST, BITS) == best


def test_of_two_equally_good_ones_the_cheaper() -> None:
    assert Budget("nfe", 9).choose(torch.tensor([8.0, 4.0]), torch.tensor([1.0, 1.0])) == 1


@pytest.mark.parametrize(
    ("kind", "limit", "reach"),
    [
        ("nfe", 1.5, "2 to 8 nfe"),
        ("seconds", 1.5, "2 to 8 seconds"),
        ("bits", 1.3, "1.4 to 3 bits per token"),
    ],
)
def test_a_budget_out_of_reach_is_told_what_is(kind: Any, limit: float, reach: str) -> None:
    refuse(lambda: Budget(kind, limit).choose(COST, BITS), f"--{kind} {limit}", reach)


def test_the_front() -> None:
    assert pareto(COST, BITS) == [2, 0, 4]


def test_the_choice_is_what_the_exact_laws_say(model: specmask.Model, tokens: torch.Tensor) -> None:
    """By exhaustion: bits on the text, NFE on rows that the choice itself draws."""
    windows, limit = window_grid(full(tokens), 12), 6.0
    found = tune(
        model, tokens, full(tokens), Budget("nfe", limit), windows=windows, rounds=3, own=9
    )
    grid = settings_grid(windows, 3)
    assert found.settings == len(grid)
    share = model.network.trunk_layers / 3, model.network.head_layers / 3

    def scored(tokens: torch.Tensor, order: torch.Tensor) -> list[tuple[float, float]]:
        laws = [specmask.evaluate(model, tokens, order, sampler) for sampler in grid]
        return [
            (
                float(-law.log_prob.mean() / math.log(2) / LENGTH),
                float((share[0] * law.trunk + share[1] * law.verify).mean()),
            )
            for law in laws
        ]

    text = scored(tokens, specmask.random_orders(tokens))
    drawn = own_rows(model, found.sampler, full(tokens)[:9], 0, 64)
    own = scored(drawn.tokens, drawn.order)
    fresh = own_rows(model, found.sampler, full(tokens)[:9], 0, 64, first=OWN_ROWS + 9)
    stated = scored(fresh.tokens, fresh.order)
    within = [k for k in range(len(grid)) if own[k][1] <= limit]
    best = min(within, key=lambda k: (text[k][0], own[k][1]))
    assert found.sampler == grid[best]
    assert found.point["chosen"]
    assert found.point["settings"] == settings_of(grid[best])
    assert found.point["bits"] == pytest.approx(text[best][0])
    assert found.point["nfe_text"] == pytest.approx(text[best][1])
    assert found.point["nfe"] == pytest.approx(stated[best][1])
    assert (found.point["rows"], found.point["own_rows"]) == (20, 9)
    costs = [point["nfe"] for point in found.points]
    bits = [point["bits"] for point in found.points]
    assert costs == sorted(costs)
    others = [point["bits"] for point in found.points if not point["chosen"]]
    assert others == sorted(others, reverse=True)
    assert min(bits) == pytest.approx(min(bits for bits, _ in text))


def test_without_own_rows_the_text_is_the_cost(model: specmask.Model, tokens: torch.Tensor) -> None:
    found = tune(
        *(model, tokens, full(tokens), Budget("nfe", 6.0)),
        windows=[CosineWindow(0.3), FullWindow()],
        rounds=2,
        own=0,
    )
    assert found.point["nfe"] == found.point["nfe_text"] <= 6
    assert found.point["own_rows"] == 0


def test_the_prediction_is_what_the_meter_reads() -> None:
    """Two standard errors, seeds fixed; on uniform text, of which the network makes none, the same
    setting takes another cost, which the test would notice."""
    network = tiny_network(vocab_size=8, length=40, width=16, scale=0.5, dtype=torch.float32)
    model = specmask.wrap(network)
    tokens = torch.randint(8, (60, 40), generator=torch.Generator().manual_seed(1))
    found = tune(
        *(model, tokens, full(tokens), Budget("nfe", 14.0)),
        windows=window_grid(full(tokens), 30),
        rounds=4,
        own=100,
    )
    assert found.point["own_rows"] == 100
    measured = check_tuning(model, found, full(tokens), 1000, 0, 500)
    error = math.hypot(measured["nfe_se"], found.point["nfe_se"])
    assert measured["apart"] == pytest.approx(abs(measured["nfe"] - found.point["nfe"]) / error)
    assert measured["apart"] < 2
    assert abs(measured["nfe"] - found.point["nfe_text"]) > 4 * error


@pytest.mark.slow
def test_the_stated_cost_had_no_say_in_the_choice() -> None:
    """Of a setting that costs the limit itself, over the seeds that choose it.

    Its predictions are means of 8 rows around a mean of 4000: their z average to zero within three
    standard errors, odds 3e-3. A cost stated on the rows of the choice is below the limit every
    time, which is −0.8 for each and four standard errors for twenty.
    """
    network = tiny_network(vocab_size=4, length=LENGTH, dtype=torch.float32)
    model = specmask.wrap(network)
    text = specmask.sample(model, specmask.AnyOrder("target"), num=30, seed=5).tokens
    near = Speculative(ConstantWindow(3), first="verify")
    drawn = specmask.sample(model, near, num=4000, seed=9, batch_size=4000)
    exact = specmask.evaluate(model, drawn.tokens, drawn.order, near, batch_size=4000)
    cost = (2 * exact.trunk + exact.verify) / 3
    found = [
        tune(
            *(model, text, full(text), Budget("nfe", float(cost.mean()))),
            windows=[ConstantWindow(3)],
            rounds=1,
            own=8,
            seed=seed,
            batch_size=512,
        )
        for seed in range(60)
    ]
    stated = torch.tensor([one.point["nfe"] for one in found if one.sampler == near])
    assert len(stated) >= 20
    z = (stated - cost.mean()) / cost.std() * 8**0.5
    assert abs(float(z.mean())) < 3 / len(z) ** 0.5


def test_costs_without_spread_are_no_error_apart() -> None:
    """Where draft and target are one law every row costs the same: no gap is none, and another
    cost is told as infinite, which JSON writes as null."""
    network = HybridTransformer(HybridConfig(4, LENGTH, 8, 2, trunk_layers=2, head_layers=1))
    model = specmask.wrap(network.eval())
    tokens = torch.zeros(4, LENGTH, dtype=torch.int64)
    found = tune(
        *(model, tokens, full(tokens), Budget("nfe", 9.0)),
        windows=[ConstantWindow(4)],
        rounds=1,
        own=4,
    )
    assert found.point["nfe_se"] == pytest.approx(0, abs=1e-9)
    assert check_tuning(model, found, full(tokens), 4, 0, 4)["apart"] == 0
    wrong = {**found.point, "nfe": 1.0, "nfe_se": 0.0}
    other = replace(found, points=[wrong], chosen=0, samplers=[found.sampler])
    measured = check_tuning(model, other, full(tokens), 4, 0, 4)
    assert measured["apart"] == math.inf
    assert json.loads(json_line(measured))["apart"] is None


def test_seconds_are_those_of_the_passes(model: specmask.Model, tokens: torch.Tensor) -> None:
    times = PassTimes(3.0, 0.5, 16)
    found = tune(
        *(model, tokens, full(tokens), Budget("seconds", 20.0, times)),
        windows=window_grid(full(tokens), 12),
        rounds=3,
        own=4,
    )
    for point in found.points:
        assert point["seconds_per_sample"] == pytest.approx(
            3.0 * point["trunk_passes"] + 0.5 * point["verify_passes"]
        )
    seconds = [point["seconds_per_sample"] for point in found.points]
    assert seconds == sorted(seconds)
    assert found.point["seconds_per_sample"] == max(s for s in seconds if s <= 20)


def test_pass_times_are_of_one_row(model: specmask.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves two seconds in a trunk pass and one in a verify pass."""
    clock = iter(second for k in range(99) for second in (3 * k, 3 * k + 2, 3 * k + 3))
    monkeypatch.setattr("specmask.host.time.perf_counter", lambda: next(clock))
    found = measure_passes(model, LENGTH, 4, repeats=5)
    assert (found.trunk, found.verify, found.batch_size) == (0.5, 0.25, 4)


def test_a_network_without_a_head_is_refused(tokens: torch.Tensor) -> None:
    model = specmask.wrap(Draft(tiny_network(vocab_size=4, length=LENGTH)))  # type: ignore[arg-type]
    refuse(lambda: tune(model, tokens, full(tokens), Budget("nfe", 4)), "no causal head")


# ---------------------------------------------------------------------------------- command line

QUICK = ("--windows", 12, "--rounds", 3, "--rows", 6, "--own-rows", 3, "--check", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = tiny_network(vocab_size=4, length=LENGTH, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer(SYMBOLS))
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    drawn = torch.randint(4, (400,), generator=torch.Generator().manual_seed(2)).tolist()
    path = tmp_path / "held-out.txt"
    path.write_text("".join(SYMBOLS[k] for k in drawn) + "\n")
    return path


def test_tune_saves_a_default_that_sample_uses(
    tmp_path: Path, folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "front.jsonl"
    assert command("tune", folder, "--data", data, "--nfe", 7, *QUICK, "--out", out) == 0
    said, notes = capsys.readouterr()
    *front, metered = [json.loads(line) for line in out.read_text().splitlines()]
    (chosen,) = [point for point in front if point["chosen"]]
    assert chosen["nfe"] < 7 + 2 * chosen["nfe_se"]  # on other rows than those of the choice
    assert metered["kind"] == "metered"
    saved = json.loads((folder / "sampler.json").read_text())
    assert saved["sampler"] == "speculative"
    assert saved["settings"] == chosen["settings"]
    for name in ("bits", "bits_se", "nfe", "nfe_se", "nfe_text", "seed", "versions"):
        assert saved[name] == chosen[name]
    assert saved["data"]["sha256"] == specmask.models.checkpoint.file_sha256(data)
    assert saved["metered"] == metered
    assert metered["samples"] == 4
    assert f"{chosen['bits']:.4f} ± {chosen['bits_se']:.4f} bits per token" in said
    assert f"{chosen['nfe']:.2f} ± {chosen['nfe_se']:.2f} NFE to generate" in said
    assert f"{saved['metered']['nfe']:.2f} ± {saved['metered']['nfe_se']:.2f} NFE metered" in said
    assert str(folder / "sampler.json") in notes

    model = specmask.load(folder)
    assert settings_of(default_sampler(model)) == chosen["settings"]
    assert chosen["settings"] != settings_of(Speculative())
    assert command("sample", folder, "--num", 4, "--out", tmp_path / "a.jsonl") == 0
    line = said.splitlines()[-1].split()
    assert line[:3] == ["specmask", "sample", str(folder)]
    assert command(*line[1:], "--num", 4, "--out", tmp_path / "b.jsonl") == 0
    rows = [
        [json.loads(row) for row in (tmp_path / name).read_text().splitlines()]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert [row["tokens"] for row in rows[0]] == [row["tokens"] for row in rows[1]]
    assert rows[0][0]["settings"] == rows[1][0]["settings"] == chosen["settings"]
    assert [row["sampler"] for row in rows[0]] == ["speculative"] * 4
    mean = sum(row["nfe"] for row in rows[0]) / 4
    assert saved["metered"]["nfe"] == pytest.approx(mean)


def test_tune_in_a_mode_tunes_the_network_in_it(
    tmp_path: Path, folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits are of the rounded network's laws; the lines, the saved file and the command say so."""
    found = {}
    for name, options in (("plain", ()), ("bfloat16", ("--dtype", "bfloat16"))):
        out = tmp_path / f"{name}.jsonl"
        words = ("tune", folder, "--data", data, "--nfe", 7, *QUICK, "--out", out)
        assert command(*words, *options) == 0
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["dtype"] for line in found["bfloat16"]} == {"bfloat16"}
    assert {line["dtype"] for line in found["plain"]} == {"float32"}
    bits = {
        name: {json.dumps(p["settings"]): p["bits"] for p in rows[:-1]}
        for name, rows in found.items()
    }
    both = bits["plain"].keys() & bits["bfloat16"].keys()
    assert both
    assert all(bits["plain"][key] != bits["bfloat16"][key] for key in both)
    saved = json.loads((folder / "sampler.json").read_text())
    assert (saved["dtype"], saved["compile"], saved["quantize"]) == ("bfloat16", False, None)
    said, notes = capsys.readouterr()
    assert said.splitlines()[-1].endswith(" --dtype bfloat16")
    assert "tuned for --dtype bfloat16" in notes


def test_an_interruption_of_the_check_loses_the_check_alone(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specmask.cli.tune.check_tuning", interrupted)
    assert command("tune", folder, "--data", data, "--nfe", 7, *QUICK) != 0
    saved = json.loads((folder / "sampler.json").read_text())
    assert saved["metered"] is None
    assert settings_of(default_sampler(specmask.load(folder))) == saved["settings"]


def test_a_fresh_network_can_be_tuned_on_rows_of_one_token(tmp_path: Path, data: Path) -> None:
    """Every row costs the same, so that no figure has an error; sampler.json stays JSON."""
    network = HybridTransformer(HybridConfig(4, LENGTH, 8, 2, trunk_layers=2, head_layers=1))
    specmask.save(tmp_path / "model", network, character_tokenizer(SYMBOLS))
    words = ("--nfe", 4, *QUICK, "--length", 1)
    assert command("tune", tmp_path / "model", "--data", data, *words) == 0

    def refuse_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "model" / "sampler.json").read_text()
    assert json.loads(text, parse_constant=refuse_constant)["metered"]["apart"] == 0


@pytest.mark.parametrize("budget", [("--bits", "4"), ("--seconds", "10")])
def test_other_budgets(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str], budget: tuple[str, str]
) -> None:
    quick = (*QUICK, "--own-rows", 0, "--check", 0)
    assert command("tune", folder, "--data", data, *budget, *quick, "--no-save") == 0
    said, notes = capsys.readouterr()
    assert not (folder / "sampler.json").exists()
    assert "metered" not in said
    assert ("a trunk pass takes" in notes) == ("seconds a sample" in said) == (budget[0][2] == "s")
    if budget[0] == "--bits":
        found = re.search(r"([\d.]+) ± [\d.]+ bits per token", said)
        assert found is not None
        assert float(found[1]) <= 4


def test_temperature_is_saved_and_told(
    folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--nfe", 9, "--temperature", 0.8, *QUICK, "--check", 0)
    assert command("tune", folder, "--data", data, *words) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("--temperature 0.8")
    assert default_sampler(specmask.load(folder)).temperature == 0.8  # type: ignore[attr-defined]


def test_sequences_of_many_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = tiny_network(vocab_size=20, length=LENGTH, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer(AMINO_ACIDS))
    fasta = tmp_path / "held-out.fasta"
    fasta.write_text("".join(f">{n}\n{AMINO_ACIDS[n : 2 * n + 3]}\n" for n in range(1, 9)))
    words = ("--nfe", 6, *QUICK, "--out", tmp_path / "front.jsonl")
    assert command("tune", tmp_path / "model", "--data", fasta, *words) == 0
    point = json.loads((tmp_path / "front.jsonl").read_text().splitlines()[0])
    assert (point["rows"], point["own_rows"]) == (6, 3)


def test_a_shipped_model_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from specmask.models.zoo import zoo_folder

    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog")
    quick = ("--length", 8, "--rows", 2, "--own-rows", 0, "--check", 0, "--windows", 3)
    assert command("tune", "text8-small", "--data", text, "--nfe", 8, *quick, "--rounds", 1) == 0
    said, notes = capsys.readouterr()
    assert not (zoo_folder("text8-small") / "sampler.json").exists()
    assert "left as it is" in notes
    assert said.splitlines()[-1].startswith("specmask sample text8-small --window")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ("none of them", "--nfe 32")),
        (("--nfe", "3", "--bits", "2"), ("--nfe and --bits", "expected one")),
        (("--nfe", "0"), ("--nfe 0", "above 0")),
        (("--bits", "nan"), ("--bits nan", "finite")),
        (("--seconds", "-1"), ("--seconds -1", "above 0")),
        (("--nfe", "8", "--rows", "1"), ("--rows 1", "at least 2")),
        (("--nfe", "8", "--own-rows", "1"), ("--own-rows 1", "at least 2")),
        (("--nfe", "8", "--check", "-1"), ("--check -1", "at least 2")),
        (("--nfe", "8", "--windows", "0"), ("--windows 0",)),
        (("--nfe", "8", "--rounds", "0"), ("--rounds 0",)),
        (("--nfe", "8", "--temperature", "0"), ("--temperature 0", "no probability")),
        (("--nfe", "8", "--device", "meta"), ("device meta",)),
    ],
)
def test_refused_before_the_model_is_loaded(
    data: Path, refused: Refused, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    said = refused("tune", "nothing", "--data", data, *words)
    assert all(word in said for word in expected)
    assert "unknown model" not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--nfe", "0.5"), ("--nfe 0.5 is out of reach", " to ")),
        (("--bits", "0.01"), ("--bits 0.01 is out of reach", "bits per token")),
        (("--nfe", "8", "--length", "13"), ("--length 13", "1 to 12")),
        (("--nfe", "8", "--out", "."), ("is a folder",)),
    ],
)
def test_refused_with_the_model(
    folder: Path,
    data: Path,
    refused: Refused,
    words: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    said = refused("tune", folder, "--data", data, *QUICK, *words)
    assert all(word in said for word in expected)


def test_data_refused(tmp_path: Path, folder: Path, refused: Refused) -> None:
    words = ("--nfe", "8", *QUICK)
    assert "no file" in refused("tune", folder, "--data", tmp_path / "none.txt", *words)
    (tmp_path / "short.txt").write_text("abcd" * 4)
    assert "expected two" in refused("tune", folder, "--data", tmp_path / "short.txt", *words)
    (tmp_path / "other.txt").write_text("abcd" * 9 + "Q")
    assert "'Q'" in refused("tune", folder, "--data", tmp_path / "other.txt", *words)
    (tmp_path / "a.fasta").write_text(">a\nACD\n")
    assert "not single residues" in refused("tune", folder, "--data", tmp_path / "a.fasta", *words)
