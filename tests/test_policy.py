"""The learned unmasking policy: its decisions, their probabilities, and that it learns."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import specmask
from oracle import Chain, tiny_network
from refusal import Refused, command, refuse
from specmask import LearnedPolicy
from specmask.bench.run import fingerprint, settings_of
from specmask.categorical import Purpose, draw, log_probabilities
from specmask.data.tokenizers import character_tokenizer
from specmask.models.guides import (
    PolicyConfig,
    UnmaskingPolicy,
    load_guide,
    load_policy,
    save_guide,
)
from specmask.samplers.base import Uniforms
from specmask.training.policy import (
    Decisions,
    PolicyTraining,
    advantages,
    log_probability,
    rollout,
    train_policy,
)

SMALL = PolicyConfig(width=8, heads=2, mlp_hidden=8)


def policy(seed: int = 0, scale: float = 0.7) -> UnmaskingPolicy:
    """Float64 weights that make every input matter."""
    made = UnmaskingPolicy(SMALL).double()
    generator = torch.Generator().manual_seed(seed)
    for value in made.parameters():
        torch.nn.init.normal_(value, std=scale, generator=generator)
    return made.eval()


def test_the_published_size() -> None:
    size = sum(p.numel() for p in UnmaskingPolicy().parameters())
    assert 200_000 < size < 300_000


def test_padding_is_not_read() -> None:
    made = policy()
    confidence = torch.rand(2, 9, dtype=torch.float64)
    masked = torch.rand(2, 9) < 0.5
    lengths = torch.tensor([9, 4])
    masked[1, 4:] = False
    together = made(confidence, masked, lengths)
    alone = made(confidence[1:, :4], masked[1:, :4], lengths[1:])
    torch.testing.assert_close(together[1:, :4], alone, rtol=1e-12, atol=1e-12)
    confidence[~masked] = 0.123  # a known position has no confidence to read
    torch.testing.assert_close(made(confidence, masked, lengths)[0], together[0])


# ------------------------------------------------------------------------------------- decisions


@torch.no_grad()
@pytest.mark.parametrize(("scale", "block"), [(1.0, 0), (0.3, 0), (2.0, 3)])
def test_decisions_are_the_rule_pass_by_pass(scale: float, block: int) -> None:
    """At batch 1, written out: coins for the masked positions, the surest one if none falls."""
    network = tiny_network(vocab_size=5, length=8)
    made = policy(1)
    sampler = LearnedPolicy(made, scale, block)
    fallbacks = 0
    for row in range(12):
        frames = list(specmask.stream(specmask.wrap(network), sampler, num=1, seed=7, rows=[row]))
        tokens, uniforms = frames[0].tokens.clone(), Uniforms(7)
        for step, frame in enumerate(frames[1:]):
            masked = tokens == network.mask_id
            everywhere = torch.arange(8)[None]
            hidden = network.trunk(tokens, torch.tensor([8]))
            probability = log_probabilities(network.draft_logits(hidden, everywhere)).exp()
            logits = made(probability.amax(-1), masked, torch.tensor([8]))[0] / scale
            rows, counter = torch.tensor([row]), torch.tensor([step])
            coins = uniforms(rows, everywhere, Purpose.SELECT, counter)[0]
            drafts = draw(probability, uniforms(rows, everywhere, Purpose.DRAFT, counter))
            allowed = masked[0].nonzero()[:, 0].tolist()
            if block:
                allowed = [d for d in allowed if d // block == allowed[0] // block]
            chosen = [d for d in allowed if float(coins[d]) < float(logits[d].sigmoid())]
            if not chosen:
                chosen, fallbacks = [max(allowed, key=lambda d: float(logits[d]))], fallbacks + 1
            tokens[0, chosen] = drafts[0, chosen]
            assert torch.equal(frame.tokens, tokens)
    assert fallbacks > 3


@pytest.mark.parametrize("block", [0, 2])
def test_probabilities_of_all_decisions_sum_to_one(block: int) -> None:
    """Over every non-empty set of the masked positions, each as often as the rule draws it."""
    made = policy(2)
    masked = torch.tensor([[True, False, True, True, True]])
    confidence = torch.rand(1, 5, dtype=torch.float64)
    lengths = torch.tensor([5])
    allowed = [0] if block else [0, 2, 3, 4]
    sets = [s for s in product((False, True), repeat=len(allowed)) if any(s)]
    chosen = torch.zeros(len(sets), 5, dtype=torch.bool)
    chosen[:, allowed] = torch.tensor(sets)
    seen = Decisions(
        torch.arange(len(sets)),
        *(value.expand(len(sets), -1) for value in (confidence, masked)),
        lengths.expand(len(sets)),
        chosen,
    )
    found = log_probability(made, seen, 0.8, block).exp().detach()
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    sigma = (made(confidence, masked, lengths)[0].detach() / 0.8).sigmoid()[allowed]
    surest = int(sigma.argmax())
    for k, bits in enumerate(sets):
        each = math.prod(float(s if b else 1 - s) for s, b in zip(sigma, bits, strict=True))
        if sum(bits) == 1 and bits[surest]:
            each += math.prod(float(1 - s) for s in sigma)
        assert float(found[k]) == pytest.approx(each, rel=1e-10)


def test_a_rollout_tells_every_decision() -> None:
    """What was revealed, pass by pass, adds up to each row, and the inputs are the policy's."""
    network = tiny_network(vocab_size=4, length=6)
    model, sampler = specmask.wrap(network), LearnedPolicy(policy(3))
    canvas = torch.full((5, 6), network.mask_id)
    canvas[1, 2] = 1
    lengths = torch.tensor([6, 6, 4, 6, 1])
    out, seen = rollout(model, sampler, canvas, lengths, seed=3, first=10, batch_size=2)
    again = specmask.sample(
        model, sampler, canvas=canvas, lengths=lengths, seed=3, rows=range(10, 15)
    )
    assert torch.equal(out.tokens, again.tokens)
    for row in range(5):
        mine = seen.sample == row
        assert int(mine.sum()) == int(out.trunk_passes[row])
        inside = torch.arange(6) < lengths[row]
        assert torch.equal(seen.chosen[mine].sum(0).bool(), inside & (canvas[row] == 4))
        assert int(seen.chosen[mine].sum()) == int((inside & (canvas[row] == 4)).sum())
        assert not bool((seen.chosen & ~seen.masked).any())
    assert not list(policy().named_buffers())
    assert not sampler.policy._forward_hooks  # type: ignore[union-attr]


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    """E[A·∇ log π] over rollouts is ∇ E[A], here by enumeration of the passes of a row of two."""
    network = tiny_network(vocab_size=3, length=2)
    made = policy(4)
    parameter = made.logit.bias
    canvas = torch.full((4000, 2), network.mask_id)
    model = specmask.wrap(network)
    lengths = torch.full((4000,), 2)
    out, seen = rollout(
        model, LearnedPolicy(made), canvas, lengths, seed=1, first=0, batch_size=4000
    )
    gain = 2.0 - out.trunk_passes.double()  # 1 in one pass, 0 in two
    (estimated,) = torch.autograd.grad(
        (log_probability(made, seen) * gain[seen.sample]).sum() / 4000, parameter
    )
    hidden = network.trunk(canvas[:1], lengths[:1])
    top = log_probabilities(network.draft_logits(hidden, torch.tensor([[0, 1]]))).exp().amax(-1)
    sigma = made(top, torch.ones(1, 2, dtype=torch.bool), lengths[:1]).sigmoid()
    (exact,) = torch.autograd.grad(sigma.prod(), parameter)
    assert float(estimated) == pytest.approx(float(exact), abs=0.02)
    assert abs(float(exact)) > 0.1


# -------------------------------------------------------------------------------------- training


def test_advantages_by_hand() -> None:
    reward = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.5, 0.5])
    passes = torch.tensor([1, 3, 1, 5, 2, 2])
    free = torch.full((6,), 5)
    worth, total = advantages(reward, passes, free, 1.0, 2)
    assert total.tolist() == pytest.approx([1, 0.6, 0, 0.4, 0.4, 0.4])
    half = 1 / math.sqrt(2)
    assert worth.tolist() == pytest.approx([half, -half, -half, half, 0, 0])
    assert advantages(reward, passes, free, 0.0, 2)[1].tolist() == pytest.approx(reward.tolist())


def constant(tokens: Tensor, lengths: Tensor) -> Tensor:
    return torch.ones(len(tokens))


def test_it_learns_to_be_fast_where_quality_is_free() -> None:
    model = specmask.wrap(tiny_network(vocab_size=3, length=8, dtype=torch.float32))
    config = PolicyTraining(steps=25, groups=4, lr=0.03, compute=2.0)
    rows: list[dict[str, float]] = []
    made = train_policy(model, constant, config, sizes=SMALL, on_step=rows.append)
    before = sum(row["passes"] for row in rows[:3]) / 3
    out = specmask.sample(model, LearnedPolicy(made), num=64, seed=9)
    assert before > 2.5
    assert float(out.trunk_passes.float().mean()) < 1.3
    assert rows[-1]["seconds_left"] == 0
    assert not made.training


def test_it_learns_to_wait_where_quality_needs_it() -> None:
    """Neighbours of a sticky chain agree only if they are revealed one after the other."""
    chain = Chain(states=2, vocab_size=2, length=6)
    chain.initial = torch.tensor([0.5, 0.5], dtype=torch.float64)
    chain.transition = torch.tensor([[0.99, 0.01], [0.01, 0.99]], dtype=torch.float64)
    chain.emission = torch.tensor([[0.99, 0.01], [0.01, 0.99]], dtype=torch.float64)
    chain._seen = torch.cat((chain.emission, torch.ones(2, 1, dtype=torch.float64)), 1)

    def agree(tokens: Tensor, lengths: Tensor) -> Tensor:
        return (tokens == tokens[:, :1]).all(1).float()

    model = specmask.wrap(chain)
    config = PolicyTraining(steps=40, groups=4, lr=0.03, compute=0.3)
    rows: list[dict[str, float]] = []
    made = train_policy(model, agree, config, sizes=SMALL, on_step=rows.append)
    out = specmask.sample(model, LearnedPolicy(made), num=400, seed=9)
    after = float(agree(out.tokens, out.lengths).mean())
    assert sum(row["reward"] for row in rows[:4]) / 4 < 0.4
    assert after > 0.7
    # The first token tells all others: two passes are enough, and it does not take many more.
    assert float(out.trunk_passes.float().mean()) < 4


def test_the_model_stays_as_it_is_and_keeps_nothing() -> None:
    network = tiny_network(vocab_size=3, length=4, dtype=torch.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_policy(specmask.wrap(network), constant, PolicyTraining(steps=2, lr=0.1), sizes=SMALL)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value.grad is None for value in network.parameters())


def test_a_stopped_training_goes_on_to_the_same_policy(tmp_path: Path) -> None:
    model = specmask.wrap(tiny_network(vocab_size=3, length=6, dtype=torch.float32))

    def train(out: Path, steps: int, resume: bool = False) -> UnmaskingPolicy:
        config = PolicyTraining(steps=steps, groups=2, lr=0.05, save_every=2, updates=2)
        return train_policy(model, constant, config, sizes=SMALL, out=out, resume=resume)

    whole = train(tmp_path / "whole", 5)
    train(tmp_path / "cut", 3)
    refuse(lambda: train(tmp_path / "cut", 5), "resume it")
    resumed = train(tmp_path / "cut", 5, resume=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    runs = ("whole", "cut")
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines()[1:] for run in runs]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0]] == [1, 2, 3, 4, 5]
    loaded = load_policy(tmp_path / "cut" / "guide")
    assert torch.equal(loaded.logit.bias, resumed.logit.bias)
    other = PolicyTraining(steps=9, groups=2, lr=0.01, updates=2)
    refuse(
        lambda: train_policy(
            model, constant, other, sizes=SMALL, out=tmp_path / "cut", resume=True
        ),
        "lr=0.05",
    )


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (lambda tokens, lengths: torch.ones(3), "(3,)"),
        (lambda tokens, lengths: 1.0, "float"),
        (lambda tokens, lengths: torch.full((len(tokens),), float("nan")), "not finite"),
        (lambda tokens, lengths: -torch.ones(len(tokens)), "below 0"),
    ],
)
def test_rewards_are_checked(reward: object, expected: str) -> None:
    model = specmask.wrap(tiny_network(vocab_size=3, length=4))
    refuse(
        lambda: train_policy(model, reward, PolicyTraining(steps=1), sizes=SMALL),  # type: ignore[arg-type]
        expected,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "steps"),
        ({"group_size": 1}, "group_size"),
        ({"lr": 0.0}, "lr"),
        ({"clip": -1.0}, "clip"),
        ({"compute": -0.5}, "compute"),
        ({"temperature": -1.0}, "temperature"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], expected: str) -> None:
    refuse(lambda: PolicyTraining(**settings), expected)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------- folders


def test_a_folder_gives_the_policy_back(tmp_path: Path) -> None:
    made = policy(5).float()
    save_guide(tmp_path / "guide", made)
    loaded = load_policy(tmp_path / "guide")
    for a, b in zip(made.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
    assert settings_of(LearnedPolicy(loaded))["policy"] == f"guide@{fingerprint(loaded)[:8]}"
    refuse(lambda: save_guide(tmp_path / "guide", made), "exists")
    with torch.no_grad():
        made.logit.bias.fill_(math.nan)
    refuse(lambda: save_guide(tmp_path / "other", made), "not finite")


def test_folders_that_are_no_policy_are_refused(tmp_path: Path) -> None:
    network = tiny_network(dtype=torch.float32)
    specmask.save(tmp_path / "model", network)
    refuse(lambda: load_policy(tmp_path / "none"), "none", "unmasking-policy")
    refuse(lambda: load_policy(tmp_path / "model"), "no guide")
    save_guide(tmp_path / "guide", policy().float())
    weights = tmp_path / "guide" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refuse(lambda: load_guide(tmp_path / "guide", UnmaskingPolicy), "damaged")
    (tmp_path / "guide" / "config.json").write_text("[]")
    refuse(lambda: load_policy(tmp_path / "guide"), "damaged")
    (tmp_path / "guide" / "config.json").write_text(
        '{"guide": "unmasking-policy", "config": {"width": 8}}'
    )
    refuse(lambda: load_policy(tmp_path / "guide"), "heads")


def test_sampling_without_a_policy_is_refused() -> None:
    model = specmask.wrap(tiny_network())
    refuse(lambda: specmask.sample(model, LearnedPolicy(), num=1), "train_policy")


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    network = tiny_network(vocab_size=3, length=6, dtype=torch.float32)
    specmask.save(tmp_path / "model", network, character_tokenizer("abc"))
    save_guide(tmp_path / "guide", policy(6).float())
    usual = ("sample", tmp_path / "model", "--sampler", "policy")
    assert command(*usual, "--policy", tmp_path / "guide", "--num", 3, "--seed", 1) == 0
    made = LearnedPolicy(load_policy(tmp_path / "guide"))
    drawn = specmask.sample(specmask.load(tmp_path / "model"), made, num=3, seed=1)
    shown = capsys.readouterr().out
    assert all(text in shown for text in drawn.text or [])
    assert "train_policy" in refused(*usual)
    assert "none" in refused(*usual, "--policy", tmp_path / "none")
