"""Pretrained trunks: parity with the original model, exact laws, and what is refused.

Every model is made here from a config, with random weights: nothing is downloaded.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import specmask
from refusal import refuse
from specmask import Ancestral, AnyOrder, CosineWindow, FullWindow, Speculative, UserError
from specmask.models.checkpoint import Model
from specmask.models.hybrid import LOW_RANK, DraftNetwork, HybridNetwork, is_new
from specmask.models.pretrained import from_pretrained_trunk
from specmask.models.pretrained_trunk import PretrainedConfig, PretrainedTrunk, build_network
from specmask.models.zoo import zoo_folder
from specmask.training import optimizers
from specmask.training.config import TrainConfig
from specmask.training.loss import loss_terms

transformers = pytest.importorskip("transformers")

SYMBOLS = "ABCDEFGHIJ"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYMBOLS]
PAD, _, CLS, SEP, MASK = range(5)
SIZES = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 24, "pad_token_id": PAD}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    **SIZES,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**BERT),
    "roberta": lambda: transformers.RobertaConfig(**BERT),
    "esm-rotary": lambda: transformers.EsmConfig(
        **BERT, mask_token_id=MASK, position_embedding_type="rotary", token_dropout=True
    ),
    "esm-absolute": lambda: transformers.EsmConfig(
        **BERT, mask_token_id=MASK, position_embedding_type="absolute"
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **BERT, bos_token_id=CLS, eos_token_id=SEP, cls_token_id=CLS, sep_token_id=SEP
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=32, **SIZES
    ),
}
# Positions that each family spends on what is not a row: the frame, and RoBERTa's offset.
LONGEST = dict.fromkeys(FAMILIES, 22) | {"roberta": 21, "esm-rotary": 21, "esm-absolute": 21}
every_family = pytest.mark.parametrize("family", FAMILIES)


def vocabulary(folder: Path, names: list[str] = VOCABULARY) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def original(folder: Path, family: str) -> Any:
    """A random model of a family, saved in `folder`, with weights that tell symbols apart."""
    torch.manual_seed(3)
    model = transformers.AutoModelForMaskedLM.from_config(FAMILIES[family]())
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    return model


def adapted(folder: Path, **settings: Any) -> Model:
    return from_pretrained_trunk(folder, tokenizer=folder / "vocab.txt", **settings)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    original(tmp_path, "bert")
    vocabulary(tmp_path)
    return tmp_path


def shake(network: DraftNetwork, std: float = 0.3, seed: int = 0) -> None:
    """Random weights in all new parts, so that draft, target and original differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_new(name) and parameter.ndim == 2:
                parameter.normal_(0, std, generator=generator)


def rows(count: int, length: int, seed: int = 0) -> Tensor:
    """Random rows, a third of them masked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, len(VOCABULARY), (count, length), generator=generator)
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < 0.33, MASK)


# ---------------------------------------------------------------------------------------- parity


@every_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_drafts_are_the_originals_logits(
    tmp_path: Path, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    """At chosen positions of padded rows, each against the original on that row alone."""
    reference = original(tmp_path, family).to(dtype)
    vocabulary(tmp_path)
    network = adapted(tmp_path).network
    assert isinstance(network, DraftNetwork)
    network.to(dtype)
    assert network.length == LONGEST[family]
    assert (network.vocab_size, network.mask_id, network.trunk_layers) == (len(VOCABULARY), MASK, 2)
    tokens, lengths = rows(4, LONGEST[family]), torch.tensor([7, LONGEST[family], 1, 12])
    positions = torch.tensor([[6, 0, 3], [20, 2, 11], [0, 0, 0], [11, 4, 8]])
    with torch.no_grad():
        got = network.draft_logits(network.trunk(tokens, lengths), positions)
        for b, size in enumerate(lengths.tolist()):
            row = torch.cat((torch.tensor([CLS]), tokens[b, :size], torch.tensor([SEP])))
            ids = row[None]
            expected = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 1:]
            expected = expected[positions[b]]
            difference = (got[b] - expected)[:, 5:].abs().max()
            assert difference <= tolerance * expected.abs().max()
    assert bool((got[..., :5] == -torch.inf).all())


@every_family
def test_padded_and_unpadded_rows_are_equal(tmp_path: Path, family: str) -> None:
    original(tmp_path, family)
    vocabulary(tmp_path)
    network: Any = adapted(tmp_path, draft_layers=1).network.double()  # type: ignore[attr-defined]
    shake(network)
    tokens = rows(3, 12)
    with torch.no_grad():
        short = network.trunk(tokens[:, :8])
        padded = network.trunk(tokens, torch.full((3,), 8))[:, :8]
    torch.testing.assert_close(short, padded, rtol=0, atol=1e-12)


class LooksBothWays:
    """A left-to-right network of Transformers, asked with a mask that hides nothing."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(1)
        config = transformers.LlamaConfig(**BERT, bos_token_id=CLS, eos_token_id=SEP)
        self.model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in self.model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
        self.model.save_pretrained(folder)
        self.model.double()

    def __call__(self, ids: Tensor) -> Tensor:
        nothing_hidden = torch.zeros(1, 1, ids.shape[1], ids.shape[1], dtype=torch.float64)
        return self.model(input_ids=ids, attention_mask=nothing_hidden).logits


@pytest.mark.parametrize("kind", ["decoder", "shifted-decoder"])
def test_decoders_that_look_both_ways(tmp_path: Path, kind: Any) -> None:
    """LLaDA's output at a position is about that position, Dream's about the next one."""
    reference = LooksBothWays(tmp_path)
    vocabulary(tmp_path)
    network: Any = adapted(tmp_path, kind=kind).network.double()  # type: ignore[attr-defined]
    tokens = rows(2, 9, seed=4)
    ids = torch.cat((torch.full((2, 1), CLS), tokens, torch.full((2, 1), SEP)), 1)
    with torch.no_grad():
        got = network.draft_logits(network.trunk(tokens), torch.arange(9).expand(2, -1))
        padded = network.draft_logits(
            network.trunk(torch.nn.functional.pad(tokens, (0, 4)), torch.full((2,), 9)),
            torch.arange(9).expand(2, -1),
        )
        full = torch.cat([reference(row[None]) for row in ids])
        changed = ids.clone()
        changed[:, -2] = 5 + (changed[:, -2] % 10)
        sees_the_end = (reference(changed[:1]) - full[:1])[0, 1].abs().max()
    expected = full[:, 1:10] if kind == "decoder" else full[:, 0:9]
    torch.testing.assert_close(got[..., 5:], expected[..., 5:], rtol=0, atol=1e-12)
    torch.testing.assert_close(padded, got, rtol=0, atol=1e-12)
    assert sees_the_end > 1e-6  # the reference itself is not causal


class DiffusionTransformer(nn.Module):
    """A small MDLM-style DiT: no frame, no classifier token, a constant time, adaptive norms."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, width)
        self.time = nn.Parameter(torch.randn(3, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        x = self.embeddings(input_ids)
        shift, scale, gate = self.time
        y = self.norm(x) * (1 + scale) + shift
        y, _ = self.attention(y, y, y, key_padding_mask=attention_mask == 0)
        return (x + gate * y,)


def test_a_trunk_of_parts() -> None:
    """What Transformers does not know by name is a trunk all the same."""
    torch.manual_seed(0)
    dit = DiffusionTransformer(6, 16).double().eval()
    config = PretrainedConfig(
        *("dit", None, "", "masked", 6, 5, 5, (), (), (5,), 8, 16, 2, 1), head_layers=1
    )
    network: Any = build_network(PretrainedTrunk(dit, dit.out, dit.embeddings, config)).double()
    tokens = torch.tensor([[0, 5, 2, 5, 4, 1, 5, 3]])
    with torch.no_grad():
        expected = dit.out(dit(tokens, torch.ones_like(tokens))[0])
        got = network.draft_logits(network.trunk(tokens), torch.arange(8)[None])
    torch.testing.assert_close(got[..., :5], expected[..., :5], rtol=0, atol=1e-12)
    out = specmask.sample(specmask.wrap(network), Speculative(FullWindow(), 2), num=3, length=8)
    assert bool((out.tokens < 5).all())


# ---------------------------------------------------------------------------------- at step zero


@pytest.mark.parametrize("draft", [{}, {"draft_layers": 2}, {"lora_rank": 3}])
@pytest.mark.parametrize("head_layers", [1, 2])
def test_both_laws_begin_as_the_originals(
    bert: Path, draft: dict[str, int], head_layers: int
) -> None:
    network: Any = adapted(bert, head_layers=head_layers, **draft).network
    plain: Any = adapted(bert, head_layers=0).network
    network.double(), plain.double()
    assert isinstance(network, HybridNetwork)
    tokens = rows(3, 9).clamp(min=5)
    order = torch.stack([torch.randperm(9) for _ in range(3)])
    with torch.no_grad():
        masked = tokens.masked_fill(torch.rand(3, 9) < 0.5, MASK)
        draft, target = network.features(masked, tokens, order)
        alone, nothing = plain.features(masked, tokens, order)
    assert nothing is None
    torch.testing.assert_close(draft, target, rtol=0, atol=0)
    torch.testing.assert_close(draft, alone, rtol=0, atol=0)


def test_at_step_zero_every_draft_is_accepted(bert: Path) -> None:
    sampler = Speculative(FullWindow(), rounds=1, first="verify")
    out = specmask.sample(adapted(bert), sampler, num=64, length=20)
    assert int(out.rejected.sum()) == 0
    assert out.trunk_passes.tolist() == [1] * 64


def test_the_layers_of_a_pass(bert: Path) -> None:
    network = adapted(bert, draft_layers=3, head_layers=2).network
    assert (network.trunk_layers, network.head_layers) == (5, 2)
    assert adapted(bert, head_layers=0).network.head_layers == 0


# ------------------------------------------------------------------------------------- exactness

FEW = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "X", "Y", "Z"]
LENGTH = 5
ALL_ROWS = 5 + torch.tensor(list(itertools.product(range(3), repeat=LENGTH)))
FALSE_ALARM = 1e-6


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Three symbols, five positions; all new parts random."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(5)
    config = transformers.BertConfig(**{**BERT, "vocab_size": 8, "pad_token_id": 0})
    model = transformers.AutoModelForMaskedLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    vocabulary(folder, FEW)
    built = adapted(folder, draft_layers=1)
    shake(built.network.double(), std=0.5)  # type: ignore[attr-defined]
    return built


LAWS = {
    f"{type(window).__name__}-{rounds}-{first}": Speculative(window, rounds, first)  # type: ignore[arg-type]
    for window in (FullWindow(), CosineWindow(0.4))
    for rounds in (1, 2, 8)
    for first in ("verify", "accept")
} | {
    "tempered": Speculative(FullWindow(), 2, temperature=0.7, top_p=0.9),
    "ancestral": Ancestral(steps=3, counts="fixed"),
    "any-order": AnyOrder(),
    "target": AnyOrder(source="target"),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_sums_to_one(toy: Model, name: str) -> None:
    """Over all 243 rows of the allowed symbols: special ones are never drawn."""
    order = torch.tensor([3, 0, 4, 1, 2]).expand(len(ALL_ROWS), -1)
    log_p = specmask.log_prob(toy, ALL_ROWS, order, LAWS[name])
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "FullWindow-2-accept",
        pytest.param("CosineWindow-8-verify", marks=pytest.mark.slow),
        "ancestral",
    ],
)
def test_samples_follow_the_law(toy: Model, name: str) -> None:
    """χ² of 5e4 samples over (first position of σ, row); false alarm 1e-6."""
    from scipy.stats import chi2

    count = 50_000
    out = specmask.sample(toy, LAWS[name], num=count, length=LENGTH, seed=1, batch_size=5000)
    orders = torch.tensor(list(itertools.permutations(range(LENGTH))))
    p = torch.zeros(len(ALL_ROWS), dtype=torch.float64)
    for order in orders:
        every = order.expand(len(ALL_ROWS), -1)
        p += specmask.log_prob(toy, ALL_ROWS, every, LAWS[name], batch_size=2000).exp()
    p /= len(orders)
    index = ((out.tokens - 5) * 3 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    seen = torch.bincount(index, minlength=len(ALL_ROWS)).double()
    statistic = float(((seen - count * p) ** 2 / (count * p)).sum())
    assert chi2.sf(statistic, len(ALL_ROWS) - 1) > FALSE_ALARM
    assert int(out.rejected.sum()) > 0 or name == "ancestral"


def test_any_order_is_the_originals_own_masked_prediction(bert: Path) -> None:
    """Peer check, position by position, by masking and asking the original itself."""
    reference = transformers.AutoModelForMaskedLM.from_pretrained(bert).eval().double()
    model = adapted(bert)
    model.network.double()  # type: ignore[attr-defined]
    tokens = rows(2, 7, seed=9).clamp(min=5)
    order = torch.tensor([[4, 0, 6, 2, 1, 5, 3], [0, 1, 2, 3, 4, 5, 6]])
    expected = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        ids = torch.tensor([[CLS, *[MASK] * 7, SEP]])
        for position in order[b].tolist():
            with torch.no_grad():
                logits = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            allowed = logits[0, position + 1, 5:].log_softmax(-1)
            expected[b] += allowed[tokens[b, position] - 5]
            ids[0, position + 1] = tokens[b, position]
    got = specmask.log_prob(model, tokens, order, AnyOrder())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_a_forbidden_symbol_has_no_probability(bert: Path) -> None:
    model = adapted(bert, forbid=["B"])
    tokens = torch.tensor([[5, 7, 8], [5, 6, 8], [5, CLS, 8]])
    order = torch.arange(3).expand(3, -1)
    for sampler in (AnyOrder(), Speculative(FullWindow()), Ancestral(steps=2, counts="fixed")):
        log_p = specmask.log_prob(model, tokens, order, sampler)
        assert bool(log_p[0].isfinite())
        assert log_p[1:].tolist() == [-math.inf] * 2
    given = specmask.log_prob(model, tokens, torch.tensor([[1, 0, 2]] * 3), AnyOrder(), given=1)
    assert bool(given.isfinite().all())  # as part of the canvas it may stand
    out = specmask.sample(model, AnyOrder(), num=64, length=6)
    assert bool((out.tokens >= 5).all())
    assert not bool((out.tokens == 6).any())


def test_given_positions_stay(bert: Path) -> None:
    canvas = torch.tensor([[5, MASK, 7, MASK], [MASK, 9, 9, MASK]])
    out = specmask.sample(adapted(bert), Speculative(FullWindow()), canvas=canvas)
    assert torch.equal(out.tokens[canvas != MASK], canvas[canvas != MASK])
    assert not bool((out.tokens == MASK).any())


# -------------------------------------------------------------------------------------- training


def loss(network: DraftNetwork) -> Tensor:
    tokens = rows(4, 9, seed=2).clamp(min=5)
    order = torch.stack([torch.randperm(9) for _ in range(4)])
    lengths = torch.tensor([9, 5, 9, 7])
    order = torch.stack([o[o.argsort(stable=True)] for o in order])
    order = torch.arange(9).expand(4, -1)
    return loss_terms(network, tokens, order, torch.tensor([0, 2, 5, 6]), lengths).total


def test_low_rank_updates_move_the_draft_and_leave_the_trunk(bert: Path) -> None:
    """Every linear map of the pretrained blocks gets one; the first step already moves the draft,
    and the weights they stand beside get no gradient."""
    network: Any = adapted(bert, lora_rank=2).network
    updates = {n for n, _ in network.named_parameters() if LOW_RANK in n}
    assert len(updates) == 2 * 6 * BERT["num_hidden_layers"]  # query, key, value, out, two of MLP
    before = network.trunk(rows(2, 6)).detach()
    loss(network).backward()
    assert network.trunk.frozen
    trained = {n for n, p in network.named_parameters() if p.grad is not None}
    assert updates < trained
    assert all(is_new(name) for name in trained)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    assert not torch.equal(network.trunk(rows(2, 6)), before)


def test_low_rank_updates_are_not_for_muon(bert: Path) -> None:
    """It would give their product full rank and full size from the first step."""
    network = adapted(bert, lora_rank=2).network
    config = TrainConfig(steps=1, batch_size=1, warmup=0, optimizer="muon", frozen_trunk=True)
    groups = optimizers.build(network, config)  # type: ignore[arg-type]
    names = {o: [n for g in groups[o].param_groups for n in g["names"]] for o in groups}
    assert names["muon"]
    assert not any(LOW_RANK in name for name in names["muon"])
    assert any(LOW_RANK in name for name in names["adamw"])


@pytest.mark.parametrize("draft_layers", [0, 1])
def test_a_frozen_trunk_keeps_nothing_for_gradients(bert: Path, draft_layers: int) -> None:
    """No gradient, and no tensor saved for one, in the whole pass through the pretrained model."""
    network: Any = adapted(bert, draft_layers=draft_layers).network
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = network.trunk(rows(2, 6))
        assert bool(saved) == bool(draft_layers)  # the new blocks keep what is theirs
    assert hidden.requires_grad == bool(draft_layers)
    loss(network).backward()
    with_gradient = {n for n, p in network.named_parameters() if p.grad is not None}
    own = {name for name, _ in network.named_parameters() if is_new(name)}
    assert with_gradient <= own
    assert "head.out.weight" in with_gradient
    assert ("trunk.draft.out.weight" in with_gradient) == bool(draft_layers)


def test_a_trunk_can_be_trained_too(bert: Path) -> None:
    network: Any = adapted(bert).network
    network.trunk.requires_grad_(True)
    assert not network.trunk.frozen
    loss(network).backward()
    assert network.trunk.embedding.weight.grad is not None
    assert any(n.startswith("trunk.backbone") for n in network.own_state())


def test_a_network_without_a_head_learns_its_draft_alone(bert: Path) -> None:
    network = adapted(bert, head_layers=0, draft_layers=1).network
    assert isinstance(network, DraftNetwork)
    total = loss(network)
    total.backward()
    assert bool(total.isfinite())
    with pytest.raises(UserError, match="causal head"):
        specmask.sample(specmask.wrap(network), Speculative(), num=1)
    out = specmask.sample(specmask.wrap(network), Ancestral(steps=4), num=3, length=8)
    assert bool((out.tokens >= 5).all())


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "settings",
    [{}, {"draft_layers": 1}, {"draft_layers": 1, "head_layers": 0}, {"lora_rank": 4}],
)
def test_round_trip(bert: Path, tmp_path: Path, settings: dict[str, int]) -> None:
    model = adapted(bert, **settings)
    shake(model.network)  # type: ignore[arg-type]
    specmask.save(tmp_path / "saved", model.network, model.tokenizer)  # type: ignore[arg-type]
    again = specmask.load(tmp_path / "saved")
    assert again.network.config == model.network.config  # type: ignore[attr-defined]
    sampler = Ancestral(steps=3) if "head_layers" in settings else Speculative(CosineWindow(0.4))
    first = specmask.sample(model, sampler, num=8, length=12)
    second = specmask.sample(again, sampler, num=8, length=12)
    assert torch.equal(first.tokens, second.tokens)
    assert first.text == second.text
    assert first.text is not None
    assert all(set(text) <= set(SYMBOLS) and len(text) == 12 for text in first.text)


@pytest.mark.parametrize("draft", [{"draft_layers": 1}, {"lora_rank": 4}])
def test_the_folder_holds_no_third_party_weight(
    bert: Path, tmp_path: Path, draft: dict[str, int]
) -> None:
    from safetensors.torch import load_file

    model = adapted(bert, **draft)
    specmask.save(tmp_path / "saved", model.network, model.tokenizer)  # type: ignore[arg-type]
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert all(is_new(name) for name in names)
    assert any(not name.startswith("head.") for name in names)


def test_a_trunk_that_moved_is_found_by_hand(bert: Path, tmp_path: Path) -> None:
    model = adapted(bert)
    specmask.save(tmp_path / "saved", model.network, model.tokenizer)  # type: ignore[arg-type]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bert / name).rename(moved / name)
    refuse(lambda: specmask.load(tmp_path / "saved"), "does not load")
    assert specmask.load(tmp_path / "saved", trunk=moved).network.length == 22


def test_another_model_of_the_same_shape_is_refused(bert: Path, tmp_path: Path) -> None:
    model = adapted(bert)
    specmask.save(tmp_path / "saved", model.network, model.tokenizer)  # type: ignore[arg-type]
    torch.manual_seed(99)
    other = transformers.AutoModelForMaskedLM.from_config(FAMILIES["bert"]())
    other.save_pretrained(tmp_path / "other")
    refuse(
        lambda: specmask.load(tmp_path / "saved", trunk=tmp_path / "other"),
        "not the model this head was trained on",
    )


# ---------------------------------------------------------------------------------- what is refused


def test_not_a_masked_language_model(tmp_path: Path) -> None:
    LooksBothWays(tmp_path)
    vocabulary(tmp_path)
    refuse(lambda: adapted(tmp_path), "not a masked language model", "kind='decoder'")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    vocabulary(tmp_path)
    refuse(lambda: adapted(tmp_path), "does not load")


def test_a_model_without_its_prediction_head(tmp_path: Path) -> None:
    transformers.BertModel(FAMILIES["bert"]()).save_pretrained(tmp_path)
    vocabulary(tmp_path)
    refuse(lambda: adapted(tmp_path), "lacks", "prediction head was not saved")


def test_no_tokenizer(bert: Path) -> None:
    (bert / "vocab.txt").unlink()
    refuse(lambda: from_pretrained_trunk(bert), "no tokenizer")
    refuse(lambda: from_pretrained_trunk(bert, tokenizer=bert / "voc.txt"), "no vocabulary")


def test_a_vocabulary_that_is_too_large(bert: Path) -> None:
    vocabulary(bert, [*VOCABULARY, "Q"])
    refuse(lambda: adapted(bert), "16 symbols", "15")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (VOCABULARY[:4] + VOCABULARY[5:], "[MASK]"),
        (VOCABULARY[:2] + VOCABULARY[3:], "[CLS]"),
        ([*VOCABULARY[:-1], "A"], "distinct"),
        ([*VOCABULARY[:-1], "word"], "single characters"),
    ],
)
def test_a_vocabulary_that_will_not_do(bert: Path, names: list[str], expected: str) -> None:
    vocabulary(bert, names)
    refuse(lambda: adapted(bert), expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"length": 23}, "length=23"),
        ({"length": 0}, "length=0"),
        ({"head_layers": -1}, "head_layers=-1"),
        ({"draft_layers": 1.5}, "draft_layers=1.5"),
        ({"lora_rank": -1}, "lora_rank=-1"),
        ({"lora_rank": 10_000}, "lora_rank=10000"),
        ({"kind": "maskd"}, "Did you mean 'masked'"),
        ({"forbid": ["Z"]}, "'Z'"),
        ({"forbid": list(SYMBOLS)}, "every symbol"),
    ],
)
def test_settings_are_checked(bert: Path, settings: dict[str, Any], expected: str) -> None:
    refuse(lambda: adapted(bert, **settings), expected)


def test_a_row_that_is_too_long(bert: Path) -> None:
    model = adapted(bert)
    refuse(lambda: specmask.sample(model, AnyOrder(), num=1, length=23), "length=23")


def test_a_damaged_config_is_refused(bert: Path, tmp_path: Path) -> None:
    model = adapted(bert)
    specmask.save(tmp_path / "saved", model.network)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["network"]["residual"] = False
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    refuse(lambda: specmask.load(tmp_path / "saved"), "not those it was saved with")


def test_the_shipped_head_asks_for_the_model_it_stands_on() -> None:
    folder = zoo_folder("antibody")
    refuse(lambda: specmask.load("antibody"), "AntiBERTy", "as trunk", "card")
    assert (folder / "model.safetensors").stat().st_size < 16e6
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["target_nll"] < log[-1]["draft_nll"] - 0.03
