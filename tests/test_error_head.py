"""G-Star's learned score: what the error head is taught, that it learns, and how Star uses it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import specmask
from oracle import Draft, tiny_network
from refusal import Refused, command, refuse
from specmask import Star
from specmask.bench.run import settings_of
from specmask.categorical import Purpose, draw, log_probabilities
from specmask.data.tokenizers import character_tokenizer
from specmask.masking import schedule_levels
from specmask.models.guides import (
    ErrorHead,
    ErrorHeadConfig,
    UnmaskingPolicy,
    hidden_width,
    load_error_head,
    load_policy,
    save_guide,
)
from specmask.samplers.base import Uniforms
from specmask.training.error_head import (
    ErrorTraining,
    area_under_curve,
    error_loss,
    fill,
    train_error_head,
    validate,
)

WIDTH = 8


def head(seed: int = 0) -> ErrorHead:
    """Float64 weights that make every input matter."""
    made = ErrorHead(ErrorHeadConfig(WIDTH, heads=2, mlp_hidden=8)).double()
    generator = torch.Generator().manual_seed(seed)
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.8, generator=generator)
    return made.requires_grad_(False).eval()


def test_padding_is_not_read() -> None:
    made = head()
    hidden = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    lengths = torch.tensor([7, 3])
    together = made(hidden, lengths)
    alone = made(hidden[1:, :3], lengths[1:])
    torch.testing.assert_close(together[1:, :3], alone, rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------- sampling


@torch.no_grad()
def test_g_star_is_the_rule_pass_by_pass() -> None:
    """At batch 1: ancestral down to `start`, then fill all, score all, hide the most suspicious."""
    network = tiny_network(vocab_size=5, length=8)
    made, steps, scale = head(1), 6, 0.7
    sampler = Star(steps, start=0.7, score="learned", error_head=made, scale=scale)
    everywhere, lengths = torch.arange(8)[None], torch.tensor([8])
    left = (8 * (1 - schedule_levels("linear", steps)) - 1e-9).ceil().long().tolist()
    hidden_again = 0
    for row in range(6):
        frames = list(specmask.stream(specmask.wrap(network), sampler, num=1, seed=5, rows=[row]))
        tokens, uniforms, rows = frames[0].tokens.clone(), Uniforms(5), torch.tensor([row])
        frame = iter(frames[1:])
        extra = counter = 0
        for step in range(1, steps + 1):
            refining = 1 - (step - 1) / steps <= 0.7 + 1e-9
            masked = tokens == network.mask_id
            if not refining and int(masked.sum()) <= left[step]:
                continue
            logits = network.draft_logits(network.trunk(tokens, lengths), everywhere)
            time = torch.tensor([counter])
            coins = uniforms(rows, everywhere, Purpose.DRAFT, time)
            drafts = draw(log_probabilities(logits).exp(), coins)
            shown = next(frame)
            if not refining:  # which positions: the random order's next ones
                known = shown.tokens != network.mask_id
                assert torch.equal(shown.tokens, torch.where(known & masked, drafts, tokens))
                assert int((~known).sum()) == left[step]
            else:
                filled = torch.where(masked, drafts, tokens)
                score = torch.zeros(8, dtype=torch.float64)
                if left[step]:
                    extra += 1
                    score = made(network.trunk(filled, lengths), lengths)[0]
                u = uniforms(rows, everywhere, Purpose.SELECT, time)[0]
                ranking = score / scale - (-(1 - u).log()).log()
                worst = ranking.argsort(descending=True)[: left[step]]
                again = filled.clone()
                again[0, worst] = network.mask_id
                hidden_again += int((~masked[0, worst]).sum())
                assert torch.equal(shown.tokens, again)
            tokens, counter = shown.tokens.clone(), counter + 1
            assert int(shown.passes.trunk) == counter + extra
    assert hidden_again > 5


def test_the_extra_passes_are_counted_by_row() -> None:
    """Two passes a hiding step, one in the last, and the head's share of the parameters."""
    network = tiny_network(vocab_size=5, length=8)
    model, made = specmask.wrap(network), head(2)
    canvas = torch.full((3, 8), network.mask_id)
    canvas[1, :7] = 1  # one free token
    lengths = torch.tensor([8, 8, 4])
    sampler = Star(4, start=1.0, score="learned", error_head=made)
    out = specmask.sample(model, sampler, canvas=canvas, lengths=lengths)
    left = (torch.tensor([8, 1, 4])[:, None] * (1 - schedule_levels("linear", 4)) - 1e-9).ceil()
    scored = (left[:, 1:] > 0).sum(1)
    assert scored.tolist() == [3, 3, 3]
    assert torch.equal(out.trunk_passes, 4 + scored)
    size = sum(p.numel() for n, p in network.named_parameters() if "embed." not in n)
    own = sum(p.numel() for p in made.parameters())
    cost = 2 * out.trunk_passes + 3 * own / size * scored
    torch.testing.assert_close(out.nfe, (cost / 3).double())
    for row in range(3):  # and alone the same
        alone = specmask.sample(
            model,
            sampler,
            canvas=canvas[row : row + 1],
            lengths=lengths[row : row + 1],
            rows=[row],
        )
        assert torch.equal(alone.tokens, out.tokens[row : row + 1])
        assert torch.equal(alone.nfe, out.nfe[row : row + 1])


def test_a_head_that_does_not_belong_is_refused() -> None:
    made = head()
    refuse(lambda: Star(score="learned"), "without an error_head", "specmask error-head")
    refuse(lambda: Star(score="random", error_head=made), "'random' with an error_head")
    model = specmask.wrap(tiny_network(width=16))
    sampler = Star(score="learned", error_head=made)
    refuse(lambda: specmask.sample(model, sampler, num=1), "reads 8 channels", "has 16")
    assert hidden_width(tiny_network(width=16)) == hidden_width(Draft(tiny_network(width=16))) == 16


# -------------------------------------------------------------------------------------- training


def test_rows_are_filled_from_the_draft_where_they_were_masked() -> None:
    network = tiny_network(vocab_size=3, length=5)
    model = specmask.wrap(network)
    tokens = torch.randint(3, (400, 5), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([5, 3]).repeat(200)
    filled = fill(model, (tokens, lengths), seed=2, step=3)
    assert torch.equal(filled.tokens[~filled.drawn], tokens[~filled.drawn])
    assert torch.equal(filled.wrong, filled.tokens != tokens)
    assert not bool((filled.drawn & ~filled.inside).any())
    hidden = filled.drawn.sum(1)
    for length in (5, 3):  # uniform on 1..D, evenly spread over the batch
        counts = hidden[lengths == length].bincount(minlength=length + 1)
        assert int(counts[0]) == 0
        assert int(counts[1:].max() - counts[1:].min()) <= 4
    again = fill(model, (tokens, lengths), seed=2, step=3)
    assert torch.equal(again.tokens, filled.tokens)
    assert not torch.equal(fill(model, (tokens, lengths), seed=2, step=4).tokens, filled.tokens)
    # the drawn tokens follow the draft: the expected share of right ones is the draft's own
    masked = tokens.masked_fill(filled.drawn, network.mask_id)
    logits = network.draft_logits(network.trunk(masked, lengths), torch.arange(5).expand(400, 5))
    chance = log_probabilities(logits).exp().gather(-1, tokens[..., None])[..., 0]
    right = (~filled.wrong & filled.drawn).sum() / filled.drawn.sum()
    expected = float(chance[filled.drawn].mean().detach())
    spread = math.sqrt(expected * (1 - expected) / int(filled.drawn.sum()))
    assert abs(float(right) - expected) < 4.9 * spread  # false alarm below 1e-6


def test_the_loss_by_hand() -> None:
    network = tiny_network(vocab_size=3, length=4)
    model, made = specmask.wrap(network), head(3)
    tokens, lengths = torch.randint(3, (2, 4)), torch.tensor([4, 2])
    filled = fill(model, (tokens, lengths), seed=0, step=0)
    found, _ = error_loss(model, made, filled)
    total = 0.0
    for row, length in enumerate((4, 2)):
        part = filled.tokens[row : row + 1, :length]
        hidden = network.trunk(part, torch.tensor([length]))
        logits = made(hidden, torch.tensor([length]))[0]
        wrong = (part != tokens[row, :length])[0].double()
        total += float(-(wrong * F.logsigmoid(logits) + (1 - wrong) * F.logsigmoid(-logits)).sum())
    assert float(found) == pytest.approx(total / 6, rel=1e-9)


def test_area_under_curve_counts_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(5, (40,), generator=generator).double()
    positive = torch.rand(40, generator=generator) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    by_hand = ((pairs > 0).double() + (pairs == 0).double() / 2).mean()
    assert area_under_curve(scores, positive) == pytest.approx(float(by_hand))
    assert area_under_curve(torch.arange(4.0), torch.tensor([False, False, True, True])) == 1
    assert math.isnan(area_under_curve(scores, torch.ones(40, dtype=torch.bool)))


def repeated(step: int) -> torch.Tensor:
    """Rows of one symbol: a token is wrong if it differs from most others."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(4, (32, 1), generator=generator).expand(32, 8).contiguous()


def test_it_learns_which_tokens_do_not_belong() -> None:
    """The untrained model draws anything; the head sees that a token differs from its row."""
    torch.manual_seed(1)
    model = specmask.wrap(tiny_network(vocab_size=4, length=8, width=16, dtype=torch.float32))
    validation = torch.cat([repeated(10**6 + k) for k in range(16)])  # one of 32 rows says little
    config = ErrorTraining(steps=150, lr=0.01, warmup=5)
    rows: list[dict[str, float]] = []
    made = train_error_head(
        model, repeated, config, validation=validation, heads=2, on_step=rows.append
    )
    last = rows[-1]
    base = last["validation_wrong"]
    entropy = -base * math.log(base) - (1 - base) * math.log(1 - base)
    assert last["validation_loss"] < 0.75 * entropy
    assert last["validation_auc"] > 0.82  # 0.86 on these rows
    assert last["validation_auc"] > last["validation_confidence_auc"] + 0.1
    assert validate(model, made, validation)["auc"] == last["validation_auc"]
    assert all(value.grad is None for value in model.network.parameters())  # type: ignore[attr-defined]


def test_a_stopped_training_goes_on_to_the_same_head(tmp_path: Path) -> None:
    model = specmask.wrap(tiny_network(vocab_size=4, length=8, width=16, dtype=torch.float32))

    def run(out: Path, steps: int, resume: bool = False) -> ErrorHead:
        config = ErrorTraining(steps=steps, lr=0.01, save_every=2, eval_every=2)
        return train_error_head(
            model, repeated, config, validation=repeated(9), heads=2, out=out, resume=resume
        )

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "cut", 3)
    refuse(lambda: run(tmp_path / "cut", 5), "resume it")
    resumed = run(tmp_path / "cut", 5, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    log = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log[1:]] == [1, 2, 3, 4, 5]
    loaded = load_error_head(tmp_path / "cut" / "guide")
    assert torch.equal(loaded.logit.weight, resumed.logit.weight)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"warmup": -1}, "warmup"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], expected: str) -> None:
    refuse(lambda: ErrorTraining(**settings), expected)  # type: ignore[arg-type]


def test_folders_of_another_guide_are_refused(tmp_path: Path) -> None:
    save_guide(tmp_path / "head", head().float())
    refuse(lambda: load_policy(tmp_path / "head"), "'error-head'", UnmaskingPolicy.kind)
    loaded = load_error_head(tmp_path / "head")
    assert settings_of(Star(score="learned", error_head=loaded))["error_head"].startswith("head@")
    assert settings_of(Star())["error_head"] is None


# ---------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = tiny_network(vocab_size=4, length=8, width=16, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer("abc "))
    (tmp_path / "text.txt").write_text("abc cab bca " * 40)
    return tmp_path / "model"


def test_from_text_to_samples(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("--steps", 4, "--batch-size", 4, "--heads", 2, "--eval-every", 2)
    assert command("error-head", folder, "--data", tmp_path / "text.txt", "--out", out, *words) == 0
    said = capsys.readouterr().err
    assert said.count("AUC") == 2
    assert f"--error-head {out / 'guide'}" in said
    usual = ("sample", folder, "--sampler", "star", "--score", "learned", "--num", 2, "--steps", 3)
    assert command(*usual, "--error-head", out / "guide") == 0
    made = Star(3, score="learned", error_head=load_error_head(out / "guide"))
    drawn = specmask.sample(specmask.load(folder), made, num=2)
    shown = capsys.readouterr().out
    assert all(text in shown for text in drawn.text or [])


def test_from_sequences(tmp_path: Path) -> None:
    symbols = "ACDEFGHIKLMNPQRSTVWY"
    network = tiny_network(vocab_size=20, length=12, width=16, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer(symbols))
    fasta = tmp_path / "rows.fasta"
    fasta.write_text("".join(f">{n}\n{symbols[n : 2 * n + 3]}\n" for n in range(1, 9)))
    words = ("--steps", 2, "--batch-size", 4, "--heads", 2, "--out", tmp_path / "run")
    assert command("error-head", tmp_path / "model", "--data", fasta, *words) == 0
    assert load_error_head(tmp_path / "run" / "guide").config.hidden == 16


def test_bad_input_is_refused(folder: Path, tmp_path: Path, refused: Refused) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "run"
    usual = ("error-head", folder, "--out", out)
    assert "none.txt" in refused(*usual, "--data", tmp_path / "none.txt")
    assert "--length 9" in refused(*usual, "--data", text, "--length", 9)
    short = tmp_path / "short.txt"
    short.write_text("abc abc abc")
    assert "expected 24" in refused(*usual, "--data", short)
    assert "heads" in refused(*usual, "--data", text, "--heads", 3)
    assert "batch" in refused(*usual, "--data", text, "--batch-size", 0)
    assert "resume" in " ".join(_again(folder, text, out, refused))


def _again(folder: Path, text: Path, out: Path, refused: Refused) -> list[str]:
    words = ("--data", text, "--out", out, "--steps", 2, "--batch-size", 2, "--heads", 2)
    assert command("error-head", folder, *words) == 0
    return [refused("error-head", folder, *words)]
