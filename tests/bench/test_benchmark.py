"""The benchmark measures every setting once, goes on where it was stopped, and says what it saw."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import specmask
from oracle import Draft, tiny_network
from refusal import Refused, command, refuse
from specmask import Ancestral, CosineWindow, FullWindow, Speculative, Star
from specmask.bench import benchmark, run
from specmask.bench.benchmark import Results, fingerprint
from specmask.bench.compare import turned
from specmask.bench.grid import default_grid, fixed_steps, named, read_grid
from specmask.bench.plot import protein_figure
from specmask.bench.report import acceptance, bits, entropy
from specmask.bench.run import law_points, read_points, settings_of, write_points
from specmask.bench.tables import family, metric_of, table
from specmask.data.batches import windows
from specmask.data.tokenizers import character_tokenizer, encode
from specmask.metrics.spelling import save_words
from specmask.models.guides import PolicyConfig, UnmaskingPolicy, save_guide
from specmask.models.zoo import WORDS
from specmask.samplers import SAMPLERS

LENGTH = 12
SYMBOLS = "ab c"
GRID = """
[[ancestral]]
steps = [2, 4]
counts = "fixed"

[speculative]
window = ["cosine:0.2", "full"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = tiny_network(vocab_size=4, length=LENGTH, scale=0.25, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer(SYMBOLS))
    save_words(tmp_path / "model" / WORDS, ["a", "ab", "b", "cab"])
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    drawn = torch.randint(4, (300,), generator=torch.Generator().manual_seed(2)).tolist()
    path = tmp_path / "held-out.txt"
    path.write_text("".join(SYMBOLS[k] for k in drawn) + "\n")
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


# ------------------------------------------------------------------------------------------ grids


def test_a_grid_file_is_the_product_of_its_lists(grid: Path, tmp_path: Path) -> None:
    chosen = read_grid(grid)
    assert chosen == [
        Ancestral(2, "fixed"),
        Ancestral(4, "fixed"),
        Speculative(CosineWindow(0.2)),
        Speculative(FullWindow()),
    ]
    (tmp_path / "grid.json").write_text(
        '{"speculative": [{"rounds": [1, 2]}, {"rounds": 1, "first": "verify"}]}'
    )
    found = read_grid(tmp_path / "grid.json")
    assert found == [Speculative(), Speculative(rounds=2), Speculative(first="verify")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("g.toml", "[speculativ]\nrounds = 1", ("speculativ", "Did you mean")),
        ("g.toml", "[ancestral]\nstep = 4", ("step", "steps")),
        ("g.toml", "[ancestral]\nsteps = [4, 0]", ("steps", "0")),
        ("g.toml", "ancestral = 4", ("ancestral is 4", "table")),
        ("g.toml", "[ancestral\nsteps = 4", ("not toml",)),
        ("g.json", "[1]", ("expected samplers by name",)),
        ("g.json", "{", ("not json",)),
        ("g.toml", "", ("expected samplers by name",)),
        ("g.toml", "[speculative]\nwindow = 'cosin:0.1'", ("cosin",)),
    ],
)
def test_bad_grids_are_refused(
    tmp_path: Path, name: str, text: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(text)
    refuse(lambda: read_grid(tmp_path / name), str(tmp_path / name), *expected)
    refuse(lambda: read_grid(tmp_path / "none.toml"), "none.toml", "check the path")


def test_the_default_grid_costs_what_it_is_asked_for() -> None:
    """Every sampler with a number of steps is there at every target, none beyond a token a pass."""
    model = specmask.wrap(tiny_network(vocab_size=4, length=32))
    share = 2 / 3  # two layers of three
    targets = (4, 8, 40)
    tuned = {4: Speculative(FullWindow())}
    chosen = default_grid(model, 32, targets, (), tuned)
    assert len(set(chosen)) == len(chosen)
    steps = {sampler.steps for sampler in chosen if hasattr(sampler, "steps")}
    assert steps == {round(4 / share), round(8 / share)}
    for n in steps:
        assert set(fixed_steps(n)) <= set(chosen)
    assert tuned[4] in chosen
    guided = {"policy"}
    assert {type(one) for one in chosen} == {k for n, k in SAMPLERS.items() if n not in guided}
    plain = specmask.wrap(Draft(tiny_network(vocab_size=4, length=32)))
    assert not any(sampler.verifies for sampler in default_grid(plain, 32, targets))


def test_samplers_by_name() -> None:
    chosen = [Ancestral(2), Speculative(), Ancestral(3)]
    assert named(chosen, ()) == chosen
    assert named(chosen, ("ancestral",)) == [Ancestral(2), Ancestral(3)]
    refuse(lambda: named(chosen, ("p2",)), "p2", "--grid")


# -------------------------------------------------------------------------------------- measuring


def bench(folder: Path, data: Path, out: Path, *words: object) -> int:
    usual = ("--out", out, "--samples", 5, "--rows", 3, "--nfe", 4, 8)
    return command("bench", folder, "--data", data, *usual, *words)


def test_a_grid_is_measured(folder: Path, data: Path, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bench(folder, data, out, "--grid", grid, "--report") == 0
    points = read_points(out / "results.jsonl")
    kinds = [point["kind"] for point in points]
    assert kinds == ["run", "held-out", "profile", *["law"] * 4, *["samples"] * 4]
    model = specmask.load(folder)
    assert points[0]["weights"] == fingerprint(model.network)
    assert (points[0]["rows"], points[0]["num"], points[0]["length"]) == (3, 5, LENGTH)
    for point, sampler in zip(points[-4:], read_grid(grid), strict=True):
        assert point["settings"] == settings_of(sampler)
        drawn = specmask.sample(model, sampler, num=5)
        assert point["nfe"] == pytest.approx(float(drawn.nfe.mean()))
        assert point["texts"] == (drawn.text or [])[:2]
        assert 0 <= point["spelling"] <= 1
    # the exact laws are those of every second of the six rows
    assert model.tokenizer is not None
    ids = encode(model.tokenizer, data.read_text().rstrip("\n"), "data")
    laws = law_points(model, windows(ids, LENGTH, 6)[::2], read_grid(grid))
    for point, law in zip(points[3:7], laws, strict=True):
        assert point["bits"] == pytest.approx(law["bits"], rel=1e-6)
    for name in ("table.md", "quality.png", "bits.png", "acceptance.png", "losses.png"):
        assert (out / name).stat().st_size > 0
    assert (out / "table.md").read_text() == table(points)
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "$" not in page.split("<script>")[0]


def test_a_stopped_run_goes_on(
    folder: Path, data: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the third setting's line, it measures that one and the last, and nothing twice."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert bench(folder, data, whole, "--grid", grid) == 0
    lines = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    out.mkdir()
    (out / "results.jsonl").write_text("".join(lines[:9]) + lines[9][:40])
    measured: list[str] = []
    real = benchmark.sample_point

    def sample_point(model: Any, sampler: Any, *rest: Any) -> Any:
        measured.append(type(sampler).__name__)
        return real(model, sampler, *rest)

    monkeypatch.setattr(benchmark, "sample_point", sample_point)
    monkeypatch.setattr(benchmark, "law_points", None)  # would fail
    assert bench(folder, data, out, "--grid", grid) == 0
    assert measured == ["Speculative", "Speculative"]

    def timeless(path: Path) -> list[dict[str, Any]]:
        points = read_points(path / "results.jsonl")
        return [{k: v for k, v in p.items() if not k.startswith("seconds")} for p in points]

    assert timeless(out) == timeless(whole)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interruption_loses_one_law_at_most(
    folder: Path,
    data: Path,
    grid: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """A law is in the file before the next one is scored, and is not scored again."""
    grid.write_text(GRID + "temperature = [1.0, 0.8]\n")  # six laws on two tables
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert bench(folder, data, whole, "--grid", grid) == 0
    real, scored = run.score, 0

    def score(*args: Any) -> Any:
        nonlocal scored
        if scored == after:
            raise KeyboardInterrupt
        scored += 1
        return real(*args)

    monkeypatch.setattr(run, "score", score)
    assert bench(folder, data, out, "--grid", grid) != 0

    def laws(folder: Path) -> list[tuple[str, str, float]]:
        points = [p for p in read_points(folder / "results.jsonl") if p["kind"] == "law"]
        return [(p["sampler"], str(p["settings"]), p["bits"]) for p in points]

    assert laws(out) == laws(whole)[:after]
    after = 99
    assert bench(folder, data, out, "--grid", grid) == 0
    assert scored == len(laws(whole)) == 6
    assert sorted(laws(out)) == sorted(laws(whole))


def test_a_part_of_the_tuning_front_is_no_front(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--samplers", "speculative", "--samples", 2)
    assert bench(folder, data, tmp_path / "whole", *words) == 0
    lines = (tmp_path / "whole" / "results.jsonl").read_text().splitlines(keepends=True)
    front = [k for k, line in enumerate(lines) if json.loads(line)["kind"] == "tuning"]
    assert len(front) > 1
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.jsonl").write_text("".join(lines[: front[-1]]))
    assert bench(folder, data, out, *words) == 0
    kinds = [point["kind"] for point in read_points(out / "results.jsonl")]
    assert kinds == [json.loads(line)["kind"] for line in lines]

    def again(*args: Any, **rest: Any) -> None:
        raise AssertionError("tuned twice")

    monkeypatch.setattr(benchmark, "tune", again)
    assert bench(folder, data, out, *words) == 0


def test_only_what_is_named_is_tuned_and_scored(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "tune", None)  # would fail
    assert bench(folder, data, tmp_path / "out", "--samplers", "ancestral") == 0
    points = read_points(tmp_path / "out" / "results.jsonl")
    assert {p["sampler"] for p in points if "sampler" in p} == {"ancestral"}


def test_two_guides_of_one_name_are_both_measured(folder: Path, data: Path, tmp_path: Path) -> None:
    """And one that was trained again is measured again."""

    def policy(bias: float) -> UnmaskingPolicy:
        made = UnmaskingPolicy(PolicyConfig(width=8, heads=2, mlp_hidden=8))
        torch.nn.init.constant_(made.logit.bias, bias)
        return made

    for name, bias in (("a", 5.0), ("b", -5.0)):
        save_guide(tmp_path / name / "guide", policy(bias))
    guides = [str(tmp_path / name / "guide") for name in "ab"]
    (tmp_path / "grid.json").write_text(json.dumps({"policy": {"policy": guides}}))
    out, words = tmp_path / "out", ("--grid", tmp_path / "grid.json")

    def sampled() -> list[dict[str, Any]]:
        assert bench(folder, data, out, *words) == 0
        return [p for p in read_points(out / "results.jsonl") if p["kind"] == "samples"]

    first = sampled()
    assert [p["settings"]["policy"][:6] for p in first] == ["guide@"] * 2
    assert first[0]["nfe"] < first[1]["nfe"]
    assert sampled() == first
    save_guide(tmp_path / "b" / "guide", policy(1.0), overwrite=True)
    again = sampled()
    assert again[:2] == first
    assert len({p["settings"]["policy"] for p in again}) == len(again) == 3


def test_a_run_names_its_arithmetic_and_its_judge(
    folder: Path, data: Path, grid: Path, tmp_path: Path, refused: Refused
) -> None:
    """A run is not mixed with one in bfloat16 or by other words; a file from before, which says
    neither, is one in float32 by whatever words it had."""
    out = tmp_path / "out"
    usual = ("bench", folder, "--data", data, "--grid", grid, "--rows", 2, "--samples", 2)
    usual = (*usual, "--out", out)
    assert command(*usual) == 0
    (tmp_path / "words").write_text("b cab")
    assert "bf16 false" in refused(*usual, "--bf16")
    assert 'dtype "float32"' in refused(*usual, "--dtype", "bfloat16")
    assert "quantize null" in refused(*usual, "--quantize", "int8")
    assert "judged_by" in refused(*usual, "--words", tmp_path / "words")
    run_line, *rest = (out / "results.jsonl").read_text().splitlines(keepends=True)
    before = json.loads(run_line)
    assert before.pop("bf16") is False
    assert [before.pop(n) for n in ("dtype", "compile", "quantize")] == ["float32", False, None]
    assert len(before.pop("judged_by")) == 64
    (out / "results.jsonl").write_text("".join([json.dumps(before) + "\n", *rest]))
    assert command(*usual) == 0
    assert "bf16 false" in refused(*usual, "--bf16")
    assert command(*usual, "--overwrite", "--quantize", "int8") == 0
    assert json.loads((out / "results.jsonl").open().readline())["quantize"] == "int8"


def test_the_rows_that_were_scored_are_told(folder: Path, data: Path, tmp_path: Path) -> None:
    """25 windows of the text, of which every second one is scored, whatever was asked for."""
    words = ("--samplers", "any_order", "--rows", 400)
    assert bench(folder, data, tmp_path / "out", *words) == 0
    run_point, *points = read_points(tmp_path / "out" / "results.jsonl")
    assert run_point["rows"] == 13
    assert {p["rows"] for p in points if p["kind"] == "law"} == {13}


@pytest.mark.parametrize("length", [1, 3])
def test_rows_too_short_for_anything_but_entropy(data: Path, tmp_path: Path, length: int) -> None:
    """No words, no four tokens: entropy is the measure there is, and the report is made."""
    network = tiny_network(vocab_size=4, length=LENGTH, scale=0.25, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer(SYMBOLS))
    words = ("--nfe", 1, 2, "--length", length, "--report")
    assert bench(tmp_path / "model", data, tmp_path / "out", *words) == 0
    assert metric_of(read_points(tmp_path / "out" / "results.jsonl")) == "entropy"
    assert "entropy" in (tmp_path / "out" / "table.md").read_text()


def test_figures_of_nothing_positive_are_drawn(tmp_path: Path) -> None:
    """Every draft rejected; no law with a value; an excess that is none: no logarithm of those."""
    settings = {"window": "full", "rounds": 1, "temperature": 1.0, "top_p": 1.0}
    point = {"sampler": "speculative", "settings": settings, "nfe": 1.0, "runs": [5]}
    point |= {"progress": {"accepted": [0] * 10, "rejected": [5] * 10}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acceptance([{**point, "kind": "samples"}]).savefig(io.BytesIO())
        bits([{**point, "kind": "law", "nfe": None, "bits": None}]).savefig(io.BytesIO())
        law = {**point, "kind": "law", "model": "m", "nats": 1.0, "excess": -0.1}
        protein_figure(tmp_path / "figure.png", [law])


def test_nothing_measured_has_no_measure() -> None:
    refuse(lambda: metric_of([{"kind": "run"}]), "nothing is measured yet")


def test_the_default_grid_is_tuned_first(folder: Path, data: Path, tmp_path: Path) -> None:
    """Every sampler is measured, and self-speculation at settings found on rows of their own."""
    out = tmp_path / "out"
    assert bench(folder, data, out, "--samples", 2) == 0
    points = read_points(out / "results.jsonl")
    sampled = {point["sampler"] for point in points if point["kind"] == "samples"}
    assert sampled == SAMPLERS.keys() - {"policy"}
    front = [point for point in points if point["kind"] == "tuning"]
    ours = [p for p in points if p["kind"] == "samples" and p["sampler"] == "speculative"]
    best = [max((p for p in front if p["nfe"] <= t), key=lambda p: p["nfe"]) for t in (4, 8)]
    chosen = {(p["settings"]["window"], p["settings"]["rounds"]) for p in best}
    assert {(p["settings"]["window"], p["settings"]["rounds"]) for p in ours} == chosen
    optimal = next(p for p in points if p["sampler" if "sampler" in p else "kind"] == "optimal")
    (profile,) = (p for p in points if p["kind"] == "profile")
    assert list(optimal["settings"]["profile"]) == profile["draft"]


def test_optimal_cuts_of_a_grid_are_the_models_own(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    """Where the grid names a profile it is that one."""
    (tmp_path / "mine.json").write_text(json.dumps([1.0, 0.5]))
    (tmp_path / "grid.toml").write_text(
        f"[optimal]\nsteps = 3\nprofile = ['{tmp_path / 'mine.json'}']\n"
    )
    for name in ("mine", "own"):
        assert bench(folder, data, tmp_path / name, "--grid", tmp_path / "grid.toml") == 0
        (tmp_path / "grid.toml").write_text("[optimal]\nsteps = 3\n")
    profiles = {}
    for name in ("mine", "own"):
        points = read_points(tmp_path / name / "results.jsonl")
        found = [p["settings"]["profile"] for p in points if p["kind"] in ("law", "samples")]
        (measured,) = (p["draft"] for p in points if p["kind"] == "profile")
        assert found[0] == found[1]
        profiles[name] = (found[0], measured)
    assert profiles["mine"][0] == [1.0, 0.5]
    assert profiles["own"][0] == profiles["own"][1]
    assert len(profiles["own"][0]) == LENGTH


def test_sequences_of_many_lengths_are_measured(tmp_path: Path) -> None:
    network = tiny_network(vocab_size=20, length=LENGTH, dtype=torch.float32)
    symbols = "ACDEFGHIKLMNPQRSTVWY"
    specmask.save(tmp_path / "model", network, character_tokenizer(symbols))
    fasta = tmp_path / "held-out.fasta"
    fasta.write_text("".join(f">{n}\n{symbols[n : 2 * n + 3]}\n" for n in range(1, 9)))
    words = ("--samplers", "ancestral", "optimal", "speculative")
    assert bench(tmp_path / "model", fasta, tmp_path / "out", *words) == 0
    points = read_points(tmp_path / "out" / "results.jsonl")
    sampled = [point for point in points if point["kind"] == "samples"]
    assert {point["sampler"] for point in sampled} == {"ancestral", "optimal", "speculative"}
    assert all(0 <= point["composition"] < 1 for point in sampled)
    assert "composition" in (tmp_path / "out" / "table.md").read_text()


# ------------------------------------------------------------------------------------------- said


def test_a_family_is_what_is_no_matter_of_cost() -> None:
    def of(sampler: specmask.samplers.Sampler) -> str:
        from specmask.bench.run import describe

        return family(describe(sampler, 0))

    assert of(Ancestral(7)) == of(Ancestral(9)) == "ancestral cosine"
    assert of(Star(score="random")) == "star random"
    assert of(specmask.samplers.Confidence(noise=4.5)) == "confidence drawn noise"
    assert of(Speculative(rounds=3)) == "speculative"
    assert of(Speculative(verification="block")) == "speculative block"


def test_the_report_needs_the_results_alone(
    folder: Path, data: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert bench(folder, data, out, "--grid", grid) == 0
    before = (out / "table.md").read_text()
    (out / "table.md").unlink()
    capsys.readouterr()
    assert command("bench", "--out", out, "--report") == 0
    assert (out / "table.md").read_text() == before
    assert "report.html" in capsys.readouterr().err


def test_bad_input_is_refused_before_any_work(
    folder: Path, data: Path, grid: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    usual = ("bench", folder, "--out", out)
    assert "--data" in refused(*usual)
    assert "no" in refused("bench", "--out", tmp_path / "nothing", "--report")
    assert "name the model" in refused("bench", "--data", data, "--out", out)
    assert "1" in refused(*usual, "--data", data, "--samples", 1)
    for bad in (0, "inf", "nan"):
        assert "--nfe" in refused(*usual, "--data", data, "--nfe", 8, bad)
    assert "--grid" in refused(*usual, "--data", data, "--samplers", "policy")
    (tmp_path / "policy.toml").write_text("[policy]")
    assert "train_policy" in refused(*usual, "--data", data, "--grid", tmp_path / "policy.toml")
    specmask.save(tmp_path / "planner", tiny_network(vocab_size=5, length=LENGTH))
    (tmp_path / "p2.json").write_text(json.dumps({"p2": {"planner": str(tmp_path / "planner")}}))
    assert "vocab_size" in refused(*usual, "--data", data, "--grid", tmp_path / "p2.json")
    assert "Did you mean 'ancestral'" in refused(*usual, "--data", data, "--samplers", "anceestral")
    assert "--grid" in refused(*usual, "--data", data, "--grid", grid, "--samplers", "p2")
    assert "none.toml" in refused(*usual, "--data", data, "--grid", tmp_path / "none.toml")
    short = tmp_path / "short.txt"
    short.write_text("ab" * LENGTH)
    assert "expected 4" in refused(*usual, "--data", short)
    assert not out.exists()


def test_results_of_another_run_are_left_alone(
    folder: Path, data: Path, grid: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    usual = ("bench", folder, "--data", data, "--grid", grid, "--rows", 2, "--out", out)
    assert command(*usual, "--samples", 4) == 0
    assert "num 4" in refused(*usual, "--samples", 5)
    assert "seed 0" in refused(*usual, "--samples", 4, "--seed", 1)
    assert command(*usual, "--samples", 5, "--overwrite") == 0
    assert read_points(out / "results.jsonl")[0]["num"] == 5


def test_a_file_that_is_not_results_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"kind": "samples"}) + "\n")
    refuse(lambda: Results(path, {"model": "m"}), str(path), "line of a run", "--overwrite")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("does not begin with the line of a run",)),
        ("{lines}[1]\n", ("line 4: got [1]", "one measured point a line")),
        ("{lines}oops\n{last}", ("line 4", "delete the line")),
        ("\n{lines}", ("line 1",)),
        ('{lines}{{"kind": "law"}}\n', ("line 4 has no sampler",)),
        ('{lines}{{"sampler": "p2"}}\n', ("line 4", "without settings")),
        ('{lines}{{"nfe": 3}}\n', ("line 4 has no kind",)),
        ("{run}", ("nothing is measured yet", "--data again")),
    ],
)
def test_a_report_of_a_damaged_file_is_refused(
    folder: Path,
    data: Path,
    grid: Path,
    tmp_path: Path,
    refused: Refused,
    text: str,
    expected: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    assert bench(folder, data, out, "--grid", grid) == 0
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    first = "".join(lines[:3])
    (out / "results.jsonl").write_text(text.format(lines=first, run=lines[0], last=lines[3]))
    said = refused("bench", "--out", out, "--report")
    assert str(out / "results.jsonl") in said
    assert all(word in said for word in expected)


def test_a_last_line_that_was_cut_off_is_left_out(
    folder: Path, data: Path, grid: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert bench(folder, data, out, "--grid", grid) == 0
    whole = (out / "results.jsonl").read_bytes()
    points = read_points(out / "results.jsonl")
    (out / "results.jsonl").write_bytes(whole[:-40])
    assert read_points(out / "results.jsonl") == points[:-1]
    assert command("bench", "--out", out, "--report") == 0
    assert (out / "results.jsonl").read_bytes() == whole[:-40]


def test_text_with_other_ends_of_lines_is_read_back(tmp_path: Path) -> None:
    """JSON may hold U+2028, at which Python's splitlines would cut."""
    points = [{"kind": "samples", "texts": ["a\u2028b\x85c"]}, {"kind": "x"}]
    write_points(tmp_path / "file", points)
    assert read_points(tmp_path / "file") == points


def test_entropy_has_a_figure_where_a_knob_was_turned(tmp_path: Path) -> None:
    """One curve for each knob and each setting of the rest, of two points at least."""

    def point(value: float, **settings: Any) -> dict[str, Any]:
        usual = {"steps": 8, "temperature": 1.0, "top_p": 1.0}
        return {
            "kind": "samples", "sampler": "p2", "settings": usual | settings, "nfe": 8.0,
            "entropy": value, "entropy_se": 0.01, "spelling": 1 - value / 4, "spelling_se": 0.01,
        }  # fmt: skip

    points = [
        point(2.7), point(2.5, temperature=0.8), point(2.6, temperature=0.9),
        point(2.4, top_p=0.9), point(2.3, steps=16),
    ]  # fmt: skip
    curves = [(knob, [p["entropy"] for p in curve]) for knob, curve in turned(points)]
    assert curves == [("temperature", [2.5, 2.6, 2.7]), ("top_p", [2.4, 2.7])]
    axis = entropy([*points, {"kind": "held-out", "entropy": 2.85, "spelling": 1.0}]).axes[0]
    assert len(axis.containers) == 2
    assert axis.get_xlim()[0] == pytest.approx(2.35)  # one setting is below
    assert any("1 settings" in text.get_text() for text in axis.texts)
    assert turned(points[3:]) == []
