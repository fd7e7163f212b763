"""The two laws of the network see what they may see, and the sampling path equals the training one.

All of it in float64 and for one and two head layers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import specmask
from oracle import masked, perturb, tiny_network
from specmask import (
    FullWindow,
    HybridConfig,
    HybridTransformer,
    PlainTransformer,
    Speculative,
    UserError,
)
from specmask.models.hybrid import build
from specmask.models.protocol import Verifier, has_head

VOCAB, LENGTH, ROWS = 7, 9, 6
heads = pytest.mark.parametrize("head_layers", [1, 2])


def network_of(head_layers: int, **settings: float) -> HybridTransformer:
    return tiny_network(
        head_layers, vocab_size=VOCAB, length=LENGTH, width=16, scale=0.4, seed=3, **settings
    )


def rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, orders and revealed counts from 0 to D − 1."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    order = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(ROWS)])
    return tokens, order, torch.tensor([0, LENGTH - 1, 3, 5, 1, 7])


def both_logits(
    network: HybridTransformer,
    tokens: Tensor,
    order: Tensor,
    revealed: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draft and target logits (B, L, V) in rank order from the training path."""
    seen = masked(tokens, order, revealed, network.mask_id)
    with torch.inference_mode():
        draft, target = network.features(seen, tokens, order, lengths)
        return network.logits(draft), network.logits(target)


def verify_all(
    network: HybridTransformer, tokens: Tensor, order: Tensor, revealed: Tensor
) -> Tensor:
    """Target logits at ranks revealed..L−1 from the sampling path, zero elsewhere."""
    lengths = torch.full((len(tokens),), tokens.shape[1])
    seen = masked(tokens, order, revealed, network.mask_id)
    ranks = revealed[:, None] + torch.arange(tokens.shape[1])
    ranks = ranks.clamp(max=tokens.shape[1])
    with torch.inference_mode():
        hidden = network.trunk(seen, lengths)
        prefix = network.prefix(hidden, seen, order, revealed)
        logits = network.verify(prefix, ranks, tokens.gather(1, order))
    out = torch.zeros(len(tokens), tokens.shape[1] + 1, VOCAB, dtype=logits.dtype)
    out.scatter_(1, ranks[..., None].expand_as(logits), logits)
    return out[:, :-1]


# ------------------------------------------------------------------------------------------ leak


@heads
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("path", ["features", "verify"])
def test_the_target_of_a_rank_sees_every_earlier_token_and_no_other(
    path: str, residual: bool, head_layers: int
) -> None:
    """Change the token at rank e (not revealed): targets of ranks ≤ e stay, rank e + 1 changes.

    The leak test of method.md §2; guards against a track that reads its own token, and against
    logits put at the position that was read.
    """
    network = network_of(head_layers, residual=residual)
    tokens, order, _ = rows()
    for i in (0, 2, LENGTH - 2):
        revealed = torch.full((ROWS,), i)

        def target(tokens: Tensor, revealed: Tensor = revealed) -> Tensor:
            if path == "verify":
                return verify_all(network, tokens, order, revealed)
            return both_logits(network, tokens, order, revealed)[1]

        before = target(tokens)
        for e in range(i, LENGTH):
            changed = tokens.clone()
            at = order[:, e : e + 1]
            changed.scatter_(1, at, (tokens.gather(1, at) + 1) % VOCAB)
            after = target(changed)
            assert torch.equal(after[:, i : e + 1], before[:, i : e + 1]), (i, e)
            for d in range(e + 1, LENGTH):
                moved = (after[:, d] - before[:, d]).abs().amax(-1)
                assert bool((moved > 1e-9).all()), (i, e, d)


@heads
def test_the_draft_sees_revealed_tokens_alone(head_layers: int) -> None:
    network = network_of(head_layers)
    tokens, order, revealed = rows()
    before, _ = both_logits(network, tokens, order, revealed)
    hidden_rank = torch.arange(LENGTH) >= revealed[:, None]
    other = (tokens + 1) % VOCAB
    hidden = torch.zeros_like(hidden_rank).scatter(1, order, hidden_rank)
    after, _ = both_logits(network, torch.where(hidden, other, tokens), order, revealed)
    assert torch.equal(after, before)
    after, _ = both_logits(network, torch.where(hidden, tokens, other), order, revealed)
    some = revealed > 0
    assert bool(((after - before).abs().amax((1, 2))[some] > 1e-9).all())


def test_the_draft_does_not_depend_on_the_order() -> None:
    network = network_of(1)
    tokens, order, _ = rows()
    revealed = torch.zeros(ROWS, dtype=torch.int64)
    first, _ = both_logits(network, tokens, order, revealed)
    second, _ = both_logits(network, tokens, order.flip(1), revealed)
    torch.testing.assert_close(first, second.flip(1), rtol=0, atol=1e-12)


@heads
def test_the_residual_is_the_trunk_at_the_predicted_position(head_layers: int) -> None:
    """With the head's output matrix zero, the target of each rank is its own draft."""
    network = network_of(head_layers)
    network.head.norm.load_state_dict(network.trunk.norm.state_dict())
    torch.nn.init.zeros_(network.head.out.weight)
    tokens, order, revealed = rows()
    draft, target = both_logits(network, tokens, order, revealed)
    assert torch.equal(draft, target)


# ------------------------------------------------------------------------------- verify = features


@heads
@pytest.mark.parametrize("tied", [True, False])
def test_verify_equals_features_for_ragged_prefixes(head_layers: int, tied: bool) -> None:
    """Rows that know 0, 1, … D − 1 ranks in one batch; what is not known is never read."""
    network = network_of(head_layers, tie_embeddings=tied)
    tokens, order, revealed = rows()
    got = verify_all(network, tokens, order, revealed)
    _, expected = both_logits(network, tokens, order, revealed)
    inside = torch.arange(LENGTH) >= revealed[:, None]
    torch.testing.assert_close(got[inside], expected[inside], rtol=0, atol=1e-12)


@heads
def test_draft_logits_equal_features_where_asked(head_layers: int) -> None:
    network = network_of(head_layers)
    tokens, order, revealed = rows()
    seen = masked(tokens, order, revealed, network.mask_id)
    draft, _ = both_logits(network, tokens, order, revealed)
    ranks = torch.tensor([[4, 0, 8, 4]]).expand(ROWS, -1)
    with torch.inference_mode():
        hidden = network.trunk(seen, torch.full((ROWS,), LENGTH))
        got = network.draft_logits(hidden, order.gather(1, ranks))
    assert got.shape == (ROWS, 4, VOCAB)
    expected = draft.gather(1, ranks[..., None].expand_as(got))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@heads
def test_later_rounds_reuse_the_keys_of_earlier_ones(head_layers: int) -> None:
    """Three rounds as the sampler makes them: a window is verified, cut somewhere, the token at
    the cut replaced, rows drop out, and the rest goes on from the rank behind it.

    Guards against keys of rejected drafts that a later round still sees.
    """
    network = network_of(head_layers)
    tokens, order, revealed = rows()
    revealed = revealed.clamp(max=2)
    seen = masked(tokens, order, revealed, network.mask_id)
    ranked = tokens.gather(1, order)
    generator = torch.Generator().manual_seed(8)
    with torch.inference_mode():
        hidden = network.trunk(seen, torch.full((ROWS,), LENGTH))
        prefix = network.prefix(hidden, seen, order, revealed)
        start = revealed.clone()
        for number in range(3):
            now = prefix.rows
            width = int((LENGTH - start).max())
            ranks = (start[:, None] + torch.arange(width)).clamp(max=LENGTH)
            got = network.verify(prefix, ranks, ranked[now])
            full = torch.zeros_like(tokens).scatter(1, order, ranked)
            _, expected = both_logits(network, full, order, revealed)
            for k, b in enumerate(now.tolist()):
                inside = ranks[k] < LENGTH
                assert bool(inside.any())
                torch.testing.assert_close(
                    got[k, inside], expected[b, ranks[k, inside]], rtol=0, atol=1e-12
                )
            cut = start + torch.tensor([0, 1, 2, 1, 0, 2])[: len(start)]
            # The rejected draft at the cut and, to be sure, all behind it are replaced.
            for k, b in enumerate(now.tolist()):
                count = LENGTH - int(cut[k])
                ranked[b, int(cut[k]) :] = torch.randint(VOCAB, (count,), generator=generator)
            keep = torch.arange(len(now))[(torch.arange(len(now)) != number)]
            prefix, start = prefix.take(keep), cut[keep] + 1
            assert torch.equal(prefix.rows, now[keep])


@heads
def test_padding_changes_nothing(head_layers: int) -> None:
    """Rows of 9, 4, 1, 6, … tokens: both paths equal the unpadded row's, whatever padding holds."""
    network = network_of(head_layers)
    tokens, _, _ = rows()
    lengths = torch.tensor([9, 4, 1, 6, 5, 8])
    generator = torch.Generator().manual_seed(2)
    order = torch.stack(
        [
            torch.cat((torch.randperm(int(n), generator=generator), torch.arange(int(n), LENGTH)))
            for n in lengths
        ]
    )
    revealed = torch.tensor([4, 0, 0, 5, 2, 1])
    for junk in (0, 3, network.mask_id):
        padding = torch.arange(LENGTH) >= lengths[:, None]
        padded = tokens.masked_fill(padding, junk)
        seen = torch.where(padding, junk, masked(padded, order, revealed, network.mask_id))
        with torch.inference_mode():
            features = network.features(seen, padded, order, lengths)
            draft, target = (network.logits(x) for x in features)
            hidden = network.trunk(seen, lengths)
            prefix = network.prefix(hidden, seen, order, revealed)
            ranks = revealed[:, None] + torch.arange(LENGTH)
            ranks = ranks.masked_fill(ranks >= lengths[:, None], LENGTH)
            verified = network.verify(prefix, ranks, padded.gather(1, order))
        for b, n in enumerate(lengths.tolist()):
            row = (x[b : b + 1, :n] for x in (tokens, order))
            alone = both_logits(network, *row, revealed[b : b + 1])
            for got, expected in zip((draft, target), alone, strict=True):
                torch.testing.assert_close(got[b, :n], expected[0], rtol=0, atol=1e-12)
            free = n - int(revealed[b])
            torch.testing.assert_close(
                verified[b, :free], alone[1][0, int(revealed[b]) :], rtol=0, atol=1e-12
            )


# ------------------------------------------------------------------------------------ fresh network


@heads
def test_a_fresh_network_never_rejects(head_layers: int) -> None:
    """At initialisation target = draft, so a full window takes one trunk and one verify pass."""
    torch.manual_seed(0)
    config = HybridConfig(VOCAB, 16, 16, 2, 2, head_layers)
    network = HybridTransformer(config)
    model = specmask.wrap(network)
    out = specmask.sample(model, Speculative(FullWindow()), num=64)
    assert out.rejected.tolist() == [0] * 64
    assert out.accepted.tolist() == [16] * 64
    assert out.trunk_passes.tolist() == [1] * 64
    assert out.verify_passes.tolist() == [1] * 64
    assert float(perturbed_rejections(network)) > 0  # and the same network can reject


def perturbed_rejections(network: HybridTransformer) -> Tensor:
    model = specmask.wrap(perturb(network, 0.3, 0))
    return specmask.sample(model, Speculative(FullWindow()), num=64).rejected.sum()


def test_names_of_parameters_say_trunk_or_head() -> None:
    network = network_of(2, tie_embeddings=False)
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"trunk", "head"}


def test_the_mask_has_no_logit() -> None:
    for tied in (True, False):
        network = network_of(1, tie_embeddings=tied)
        tokens, order, revealed = rows()
        draft, target = both_logits(network, tokens, order, revealed)
        assert draft.shape == target.shape == (ROWS, LENGTH, VOCAB)


def test_gradients_reach_every_weight() -> None:
    """Guards against a part that is built but not used."""
    network = network_of(2, tie_embeddings=False)
    tokens, order, revealed = rows()
    seen = masked(tokens, order, revealed, network.mask_id)
    draft, target = network.features(seen, tokens, order)
    (network.logits(draft).square().sum() + network.logits(target).square().sum()).backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"head_layers": -1}, "head_layers=-1: expected a whole number, at least 0"),
        ({"trunk_layers": -1}, "trunk_layers=-1"),
        ({"width": 18}, "divisible by 4·heads = 8"),
        ({"dropout": 1.0}, r"dropout=1\.0: expected at least 0 and below 1"),
        ({"dropout": -0.1}, r"dropout=-0\.1"),
        ({"dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_bad_sizes_are_refused(change: dict[str, float], expected: str) -> None:
    sizes = {"vocab_size": 5, "length": 8, "width": 16, "heads": 2, "trunk_layers": 1}
    with pytest.raises(UserError, match=expected):
        HybridConfig(**{**sizes, **change})


def test_dropout_acts_in_training_alone() -> None:
    """In both parts; and without it, training mode computes the same bits as evaluation."""
    tokens, order, revealed = rows()
    seen = masked(tokens, order, revealed, VOCAB)
    plain, dropped = network_of(1), network_of(1, dropout=0.5)
    expected = plain.eval().features(seen, tokens, order)
    assert all(map(torch.equal, dropped.eval().features(seen, tokens, order), expected))
    assert all(map(torch.equal, plain.train().features(seen, tokens, order), expected))
    draft, target = dropped.train().features(seen, tokens, order)
    assert not torch.allclose(draft, expected[0])
    dropped.trunk.eval()
    draft, target = dropped.features(seen, tokens, order)
    assert torch.equal(draft, expected[0])
    assert not torch.allclose(target, expected[1])


def test_a_plain_transformer_is_a_trunk_alone(tmp_path: Path) -> None:
    """Saved and loaded it has the same law; nothing that needs a head takes it."""
    config = HybridConfig(5, length=8, width=16, heads=2, trunk_layers=2, head_layers=0)
    torch.manual_seed(0)
    plain = build(config)
    assert isinstance(plain, PlainTransformer)
    specmask.save(tmp_path / "model", plain)
    model = specmask.load(tmp_path / "model")
    out = specmask.sample(model, specmask.Ancestral(steps=4, counts="fixed"), num=3, seed=0)
    again = specmask.sample(specmask.wrap(plain), specmask.Ancestral(4, "fixed"), num=3, seed=0)
    assert torch.equal(out.tokens, again.tokens)
    assert out.nfe.tolist() == [4.0] * 3  # a step is a pass of the whole network
    with pytest.raises(UserError, match="causal head"):
        specmask.sample(model, specmask.Speculative(), num=1)
    with pytest.raises(UserError, match=r"head_layers=0.*PlainTransformer"):
        HybridTransformer(config)
    with pytest.raises(UserError, match="head_layers=1: a PlainTransformer has none"):
        PlainTransformer(replace(config, head_layers=1))


def test_a_head_is_found_however_the_trunk_is_held() -> None:
    """Python from 3.12 on looks for a protocol's members where a module's submodules are not."""
    hybrid = tiny_network()
    plain = build(replace(hybrid.config, head_layers=0))

    class Around:
        def __getattr__(self, name: str) -> object:
            return getattr(hybrid, name)

    assert has_head(hybrid)
    assert has_head(Around())  # type: ignore[arg-type]
    assert not has_head(plain)
    with pytest.raises(TypeError):  # so that nobody asks that way
        isinstance(hybrid, Verifier)
