"""Subword text under a judge, plain and self-speculative: from measuring to table and figure."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import specmask
from refusal import refuse
from specmask.bench import prose
from specmask.bench.prose import Prose, held_out, main
from specmask.bench.prose_report import factor_table, near, report, section
from specmask.bench.run import read_points
from specmask.data.subwords import END_OF_TEXT, train_bpe
from specmask.data.tokenizers import text8_tokenizer
from specmask.metrics.perplexity import generative_perplexity
from specmask.models.checkpoint import save
from specmask.models.hybrid import HybridConfig, HybridTransformer
from specmask.samplers import make_sampler

DOCS = Path(__file__).parents[2] / "docs"
LENGTH, ROWS, NUM = 12, 3, 5
WORDS = itertools.product(
    ("river", "letter", "winter"), ("crossed", "remembered"), ("orchard", "lantern", "harbour")
)
TEXT = "\n\n".join(f"The {a} {b} the {c}." for a, b, c in WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prose")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    (folder / "held-out.txt").write_text(TEXT)
    return folder / "held-out.txt"


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> Tokenizer:
    return train_bpe(data, 280)


def made(folder: Path, tokenizer: Tokenizer | None) -> Path:
    """A model folder, its weights so large that draft and target differ."""
    torch.manual_seed(0)
    network = HybridTransformer(HybridConfig(280, LENGTH, 16, 2, trunk_layers=3))
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    save(folder, network, tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path, tokenizer: Tokenizer) -> Path:
    return made(folder / "model", tokenizer)


@pytest.fixture(scope="module")
def judge(folder: Path, tokenizer: Tokenizer) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=280, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "judge")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    ).save_pretrained(folder / "judge")
    return folder / "judge"


@pytest.fixture(scope="module")
def log(folder: Path) -> Path:
    lines: list[dict[str, Any]] = [
        {"kind": "header", "config": {}},
        {"kind": "train", "tokens": 700_000},
        {"kind": "validation", "tokens": 700_000, "draft_nll": 5.5, "target_nll": 5.25},
        {"kind": "train", "tokens": 800_000},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "log.jsonl"


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """A few settings are as good as all of them here."""
    every = prose.grid()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "grid", lambda: [every[0], *every[-8:]])
        yield


@pytest.fixture(scope="module")
def measured(model: Path, data: Path, judge: Path, log: Path, folder: Path) -> Prose:
    """Measured once for all tests here."""
    args = Prose(
        *(str(model), data, str(judge)),
        out=folder / "out",
        rows=ROWS,
        num=NUM,
        nfe=(3, 6, 12),
        about="A few sentences.",
        log=(log, log),
    )
    main(args)
    return args


@pytest.fixture
def args(measured: Prose, tmp_path: Path) -> Prose:
    """The same, nothing measured."""
    return replace(measured, out=tmp_path / "out")


@pytest.fixture
def done(measured: Prose, args: Prose) -> Prose:
    """The same, all measured."""
    shutil.copytree(measured.out, args.out)
    return args


def without_seconds(file: Path) -> list[dict[str, Any]]:
    def kept(point: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in point.items() if "seconds" not in key}

    return [kept(json.loads(line)) for line in file.read_text().splitlines()]


# ------------------------------------------------------------------------------------- measuring


def test_everything_is_measured_once_and_told(done: Prose, data: Path) -> None:
    file = done.out / "results.jsonl"
    points = read_points(file)
    kinds = [p["kind"] for p in points]
    assert kinds[:3] == ["run", "background", "held-out"]
    assert set(kinds[3:]) == {"law", "samples"}
    assert kinds[3:] == sorted(kinds[3:])  # all laws, then samples
    assert all("versions" in p and "seed" in p and "settings" in p for p in points[3:])
    assert (done.out / "quality.png").stat().st_size > 10_000
    table = (done.out / "table.md").read_text()
    for word in ("self-speculation, NFE", "held-out rows", "plain NFE ÷ ours", "first verify"):
        assert word in table
    first = file.read_text()
    main(done)  # what is measured is kept
    assert file.read_text() == first
    refuse(lambda: main(replace(done, seed=3)), "seed 0", "this run has 3")


def test_points_are_what_the_library_says(done: Prose, data: Path, judge: Path) -> None:
    """Laws by `log_prob`, samples and held-out rows by the judge, NFE by the meter."""
    model = specmask.load(done.model or "")
    tokens, reference = held_out(model, data, ROWS, NUM)
    assert tokens.shape == (ROWS, LENGTH)
    assert int(tokens[0, 0]) != model.tokenizer.token_to_id(END_OF_TEXT)  # type: ignore[union-attr]
    order = specmask.random_orders(tokens, 0)
    points = read_points(done.out / "results.jsonl")
    for p in [p for p in points if p["kind"] == "law"][::5]:
        sampler = make_sampler(p["sampler"], p["settings"])
        bits = -specmask.log_prob(model, tokens, order, sampler) / math.log(2) / LENGTH
        assert p["bits"] == pytest.approx(float(bits.mean()), rel=1e-5)
    for p in [p for p in points if p["kind"] == "samples"]:
        out = specmask.sample(model, make_sampler(p["sampler"], p["settings"]), num=NUM, seed=0)
        said = generative_perplexity(out.text or [], out.tokens, str(judge))
        assert p["perplexity"] == pytest.approx(said.perplexity.mean, rel=1e-4)
        assert p["perplexity_se"] == pytest.approx(said.perplexity.standard_error, rel=1e-3)
        assert p["judge"] == pytest.approx(sum(said.texts_nll) / NUM, rel=1e-5)
        assert p["each"]["judge"] == pytest.approx(said.texts_nll, abs=1e-4)
        assert p["entropy"] == pytest.approx(said.entropy.mean)
        assert p["nfe"] == pytest.approx(float(out.nfe.mean()))
        if p["sampler"] == "ancestral":  # a plain step runs three of four layers
            assert p["nfe"] == pytest.approx(0.75 * float(out.trunk_passes.double().mean()))
    held = points[2]
    texts = [model.tokenizer.decode(row, skip_special_tokens=False) for row in reference.tolist()]  # type: ignore[union-attr]
    said = generative_perplexity(texts, reference, str(judge))
    assert held["perplexity"] == pytest.approx(said.perplexity.mean, rel=1e-4)
    assert held["entropy"] == pytest.approx(said.entropy.mean)


def test_an_interrupted_run_goes_on(done: Prose) -> None:
    """Cut within the line of a law: the rest comes out as it was."""
    file = done.out / "results.jsonl"
    whole, lines = without_seconds(file), file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:7]) + lines[7][:40])
    main(done)
    assert without_seconds(file) == whole


# ---------------------------------------------------------------------------------------- report


def test_the_report_comes_from_the_results_alone(
    done: Prose, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = done.out / "table.md"
    before = table.read_text()
    table.unlink()
    (done.out / "quality.png").unlink()
    monkeypatch.setattr(specmask, "load", None)
    main(Prose(out=done.out, report_only=True))
    assert table.read_text() == before
    assert (done.out / "quality.png").is_file()


def test_the_section_says_what_was_measured_on_what(done: Prose, tmp_path: Path) -> None:
    assert section(tmp_path) is None
    text = section(done.out) or ""
    assert text.startswith(report(read_points(done.out / "results.jsonl")).split("\n")[0])
    for word in (
        "![nats, perplexity and entropy against NFE](out/quality.png)",
        "3 + 1 layers",
        "trained on about 2 M tokens to 5.500 nats per token of the draft and 5.250",
        "A few sentences.",
        "a plain step counts 3/4",
        f"on {ROWS} held-out rows",
        f"{NUM} samples a setting",
        f"--rows {ROWS} --num {NUM} --seed 0 --nfe 3 6 12",
    ):
        assert word in text
    assert str(tmp_path) not in text


def point(kind: str, sampler: str, nfe: float, value: float, steps: int) -> dict[str, Any]:
    key = "bits" if kind == "law" else "judge"
    found = {"kind": kind, "sampler": sampler, "settings": {"steps": steps}, "nfe": nfe}
    return {**found, key: value, "each": {"nfe": [nfe] * 4, key: [value] * 4}}


def test_factors_are_plain_cost_over_ours_at_equal_quality() -> None:
    """Plain has our 2 bits, which cost 8 NFE, halfway between 16 and 64 NFE: at 32; and never our
    0.5."""
    points: list[dict[str, Any]] = [
        {"kind": "run", "layers": [4, 1]},
        *(point("law", "ancestral", 4.0**n, 4.0 - n + 0.5, n) for n in (1, 2, 3)),
        point("law", "speculative", 8.0, 2.0, 0),
        point("law", "speculative", 20.0, 0.5, 1),
    ]
    rows = factor_table(points).splitlines()[2:]
    nats = f"{2 * math.log(2):.3f}"
    assert rows[0] == f"| exact nats per token | {nats} | 8.0 | 4.00 | 4.00 to 4.00 | 5.00 |"
    gain = f"by {math.log(2):.3f} ± 0.000"
    assert f"plain's best, at 64.0 NFE, {gain} | from 20.0" in rows[1]


def test_a_budget_has_the_best_setting_that_costs_about_as_much_and_no_more() -> None:
    laws = [point("law", "ancestral", nfe, bits, 0) for nfe, bits in ((10, 3), (17, 1), (19, 2))]
    laws.append({"nfe": 18.0, "bits": None})
    for budget, nfe in ((9, None), (12, 10), (16, 10), (18, 17), (20, 17), (21.5, 19), (99, 19)):
        found = near(laws, budget)
        assert (found and found["nfe"]) == nfe


def test_the_committed_report_is_that_of_the_committed_results() -> None:
    points = read_points(DOCS / "prose" / "results.jsonl")
    assert (DOCS / "prose" / "table.md").read_text() == report(points)
    told = (DOCS / "data.md").read_text()
    for line in report(points).split("\n\n")[0].splitlines():
        assert line in told


# --------------------------------------------------------------------------------------- refusals


def no_judge(args: Prose, _: Tokenizer) -> Prose:
    return replace(args, judge=str(args.out.parent))


def no_tokenizer(args: Prose, _: Tokenizer) -> Prose:
    return replace(args, model=str(made(args.out.parent / "m", None)))


def characters(args: Prose, _: Tokenizer) -> Prose:
    return replace(args, model=str(made(args.out.parent / "m", text8_tokenizer())))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_judge, ("no causal language model",)),
        (no_tokenizer, ("has no tokenizer",)),
        (characters, ("no token '<|endoftext|>'",)),
        (lambda args, _: replace(args, rows=99), ("tokens, 99 rows of 12 need 1188",)),
        (lambda args, _: replace(args, data=Path("none.txt")), ("none.txt",)),
        (lambda args, _: replace(args, data=None), ("no --data",)),
        (lambda args, _: replace(args, model=None), ("no MODEL",)),
        (lambda args, _: replace(args, log=(Path("none"),)), ("no file none",)),
        (lambda args, _: replace(args, num=1), ("num=1", "at least 2")),
        (lambda args, _: replace(args, nfe=(8, math.nan)), ("--nfe 8 nan",)),
        (lambda args, _: replace(args, seed=-1), ("seed=-1",)),
        (lambda args, _: replace(args, report_only=True), ("no ", "to report on")),
    ],
)
def test_bad_input_is_refused_before_any_work(
    args: Prose,
    tokenizer: Tokenizer,
    change: Callable[[Prose, Tokenizer], Prose],
    words: tuple[str, ...],
) -> None:
    bad = change(args, tokenizer)
    refuse(lambda: main(bad), *words)
    assert not args.out.exists()


def test_a_model_without_a_head_is_refused(args: Prose, monkeypatch: pytest.MonkeyPatch) -> None:
    network = HybridTransformer(HybridConfig(280, LENGTH, 16, 2, trunk_layers=1))
    network.head_layers = 0
    monkeypatch.setattr(specmask, "load", lambda _: specmask.wrap(network))
    refuse(lambda: main(args), "has no causal head", "expected a self-speculative model")
    assert not args.out.exists()
