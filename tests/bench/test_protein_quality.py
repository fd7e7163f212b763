"""Quality against cost on a toy protein model, from measuring to figure and table."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import specmask
from refusal import refuse
from specmask.bench import proteins as bench
from specmask.bench.protein_report import HELD_OUT, UNTOUCHED, curves, with_structures
from specmask.bench.proteins import Proteins, main, rows_of_one_length
from specmask.bench.recombination import RecombinationLaw
from specmask.bench.run import describe, read_points
from specmask.data.fasta import AMINO_ACIDS
from specmask.models.checkpoint import save
from specmask.models.hybrid import HybridNetwork

LENGTH = 9


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("judge")
    names = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[TAG]", *AMINO_ACIDS]
    config = transformers.GPT2Config(
        vocab_size=len(names), n_positions=32, n_embd=16, n_layer=1, n_head=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.fixture(scope="module")
def adapted(protein_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head that says something else than the draft does."""
    model = specmask.from_pretrained_trunk(
        protein_model, tokenizer=protein_model / "vocab.txt", draft_layers=1
    )
    network = model.network
    assert isinstance(network, HybridNetwork)
    with torch.no_grad():
        network.head.out.weight.normal_(std=0.1)
        network.trunk.draft.out.weight.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("adapted") / "model"
    save(folder, network, model.tokenizer)
    return folder


def fasta(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    with path.open("w") as file:
        for k in range(12):
            size = LENGTH if k % 2 else 5 + k // 4
            row = torch.randint(20, (size,), generator=generator).tolist()
            file.write(f">{k}\n{''.join(AMINO_ACIDS[i] for i in row)}\n")
    return path


@pytest.fixture
def args(protein_model: Path, adapted: Path, judge: Path, tmp_path: Path) -> Proteins:
    return Proteins(
        tmp_path / "out",
        pretrained=str(protein_model),
        tokenizer=str(protein_model / "vocab.txt"),
        models=(f"adapted={adapted}",),
        data=fasta(tmp_path / "held-out.fasta"),
        judge=judge,
        judge_tokenizer=judge / "vocab.txt",
        prompt="[TAG]",
        rows=4,
        samples=6,
        loss_rows=8,
        targets=(2, 4),
    )


def test_everything_is_measured_once_and_told(args: Proteins) -> None:
    main(args)
    file = args.out / "results.jsonl"
    first = file.read_text()
    points = read_points(file)
    assert {p["model"] for p in points} == {UNTOUCHED, "adapted", HELD_OUT}
    assert {p["kind"] for p in points} == {"law", "loss", "samples", HELD_OUT}
    assert all("versions" in p and "seed" in p for p in points)
    assert (args.out / "quality.png").stat().st_size > 10_000
    table = (args.out / "table.md").read_text()
    for word in ("adapted", UNTOUCHED, "plain, 2 steps", "judge, nats", "target below draft"):
        assert word in table
    main(args)  # what is measured is kept
    assert file.read_text() == first


def test_costs_are_in_passes_of_the_pretrained_model(args: Proteins) -> None:
    """Two pretrained layers, one of the draft, one of the head: a plain step of the adapted model
    costs 3/2, and every pass of self-speculation one more half."""
    main(args)
    for p in read_points(args.out / "results.jsonl"):
        if p["kind"] == "samples" and p["sampler"] == "ancestral":
            step = 1.0 if p["model"] == UNTOUCHED else 1.5
            assert p["nfe"] == pytest.approx(step * p["settings"]["steps"])
        elif p["kind"] == "law" and p["sampler"] == "any-order":
            assert p["nfe"] == pytest.approx(LENGTH * (1.0 if p["model"] == UNTOUCHED else 1.5))


def test_laws_are_those_of_the_library(args: Proteins) -> None:
    """Of one setting, row by row, from `log_prob` along the orders that the seed gives."""
    main(args)
    points = read_points(args.out / "results.jsonl")
    laws = curves(points, "law")["adapted", "speculative"]
    model = specmask.load(args.models[0].partition("=")[2])
    sequences = [line for line in args.data.read_text().split("\n") if line[:1] not in (">", "")]
    rows = rows_of_one_length(sequences, args.rows)
    assert all(len(row) == LENGTH for row in rows)
    assert model.tokenizer is not None
    tokens = torch.tensor([model.tokenizer.encode(row).ids for row in rows])
    sampler = specmask.Speculative(window=specmask.CosineWindow(0.17), rounds=2)
    order = specmask.random_orders(tokens, args.seed)
    found = -specmask.log_prob(model, tokens, order, sampler) / LENGTH
    (point,) = [
        p for p in laws if p["settings"]["window"] == "cosine:0.17" and p["settings"]["rounds"] == 2
    ]
    assert point["each"]["nats"] == pytest.approx(found.tolist(), abs=2e-5)


class Folded:
    """What IgFold says of a sequence, as far as it is read: as many Å as the sequence has A's."""

    def __init__(self, sequence: str) -> None:
        self.prmsd = torch.full((1, len(sequence), 4), float(sequence.count("A")))


class Runner:
    calls = 0

    def __init__(self, num_models: int, verbose: bool) -> None:
        assert num_models == 1

    def predict(self, chains: list[dict[str, str]]) -> list[Folded]:
        Runner.calls += len(chains)
        return [Folded(chain["H"]) for chain in chains]


def test_structures_are_predicted_of_samples_and_of_the_data(
    args: Proteins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "igfold", SimpleNamespace(IgFoldRunner=Runner))
    monkeypatch.setattr(Runner, "calls", 0)
    main(replace(args, fold=4))
    points = read_points(args.out / "results.jsonl")
    folds = [p for p in points if p["kind"] == "structure"]
    samples = [p for p in points if p["kind"] == "samples"]
    assert len(folds) == len(samples) + 1
    for p in with_structures(points):
        if p["kind"] == "samples":
            counts = [float(s.count("A")) for s in p["sequences"][:4]]
            assert p["each"]["rmsd"] == pytest.approx(counts)
            assert p["rmsd"] == pytest.approx(sum(counts) / 4)
    (data,) = [p for p in folds if p["model"] == HELD_OUT]
    with args.data.open() as file:
        first = [line.strip() for line in file if not line.startswith(">")][:4]
    assert data["each"]["rmsd"] == pytest.approx([float(s.count("A")) for s in first])
    table = (args.out / "table.md").read_text()
    assert "predicted RMSD, Å" in table
    assert "| held-out | the data itself |" in table
    calls = Runner.calls
    main(replace(args, fold=4))  # what is folded is kept
    assert Runner.calls == calls


def test_more_samples_take_the_place_of_fewer(
    args: Proteins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their structures with them; laws and losses are kept."""
    monkeypatch.setitem(sys.modules, "igfold", SimpleNamespace(IgFoldRunner=Runner))
    main(replace(args, fold=2))
    before = read_points(args.out / "results.jsonl")
    main(replace(args, samples=8, bf16=True, fold=2))
    after = read_points(args.out / "results.jsonl")
    for kind in ("law", "loss"):
        assert [p for p in after if p["kind"] == kind] == [p for p in before if p["kind"] == kind]
    counts = {kind: sum(p["kind"] == kind for p in before) for kind in ("samples", "structure")}
    assert counts == {kind: sum(p["kind"] == kind for p in after) for kind in counts}
    samples = [p for p in after if p["kind"] == "samples"]
    assert {(p["num"], p["bf16"], len(p["sequences"])) for p in samples} == {(8, True, 8)}
    assert {p["num"] for p in after if p["kind"] == "structure"} == {2}
    assert [p["num"] for p in after if p["kind"] == HELD_OUT] == [8]
    main(replace(args, samples=6))  # as many are there, in whatever precision
    assert [p for p in read_points(args.out / "results.jsonl") if p["kind"] == "samples"] == samples
    for p in with_structures(samples + [p for p in after if p["kind"] == "structure"]):
        if p["kind"] == "samples":
            assert p["each"]["rmsd"] == [float(s.count("A")) for s in p["sequences"][:2]]


def test_without_igfold_it_says_what_to_install(
    args: Proteins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "igfold", None)
    refuse(lambda: main(replace(args, rows=0, samples=2, fold=2)), "igfold", "pip install igfold")


@pytest.mark.parametrize("better", ["cosine", "linear"])
def test_plain_samples_are_by_the_schedule_of_fewer_nats(args: Proteins, better: str) -> None:
    (model,) = [one for name, one in bench._models(args) if name == "adapted"]
    known = []
    for sampler in bench._scored(model, args):
        about = {"model": "adapted", **describe(sampler, args.seed)}
        nats = 1.0 if about["settings"].get("schedule") == better else 2.0
        known.append({"kind": "law", **about, "nfe": 999.0, "nats": nats})
    chosen = bench._sampled(model, "adapted", known, args)
    assert [s.schedule for s in chosen] == [better] * 2  # two targets, nothing of ours near them


def test_bad_input(args: Proteins) -> None:
    refuse(lambda: main(replace(args, samples=13)), "--samples 13", "12 sequences")
    refuse(lambda: main(replace(args, models=("adapted",))), "name=FOLDER")
    refuse(lambda: main(replace(args, rows=100)), "commonest length, 9", "--rows")
    refuse(lambda: main(replace(args, rows=-1)), "rows=-1", "at least 0")
    refuse(lambda: main(replace(args, targets=(0,))), "--targets has 0", "at least 1")
    refuse(lambda: main(replace(args, report_only=True)), "holds no results", "--report-only")


# ---------------------------------------------------------------------------------- the exact law


def test_without_olga_the_law_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    refuse(RecombinationLaw, "olga", "pip install")
    refuse(lambda: RecombinationLaw("human_B_heavi"), "human_B_heavy")


@pytest.mark.slow
def test_the_recombination_law_is_that_of_its_own_draws() -> None:
    """Every draw is possible and has no substitution; one residue changed in front is neither.

    E[1/(n·p)] over n draws would count the support; here: the mean of −log p over two halves of
    the draws agrees within four standard errors (odds 6e-5; the seed is fixed).
    """
    pytest.importorskip("olga")
    law = RecombinationLaw("human_B_heavy")
    draws = list(law.sample(40, seed=3))
    assert draws == list(law.sample(40, seed=3))
    logs = torch.tensor([law.log_prob(chain) for chain in draws], dtype=torch.float64)
    assert bool(logs.isfinite().all())
    gap = abs(logs[:20].mean() - logs[20:].mean())
    assert gap < 4 * logs.std() * math.sqrt(2 / 20)
    assert {law.substitutions(chain) for chain in draws} == {0}
    changed = "W" + draws[0][1:]
    assert law.log_prob(changed) == -math.inf
    assert law.substitutions(changed) == 1
