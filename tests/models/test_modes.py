"""Modes: bfloat16, compiled and int8 networks draw from the law they state, near the plain one.

Each χ² fails by chance with odds `FALSE_ALARM`; seeds are fixed.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._inductor import cpp_builder

import specmask
from oracle import FALSE_ALARM, all_orders, all_rows, chi_square, code, tiny_network
from refusal import refuse
from specmask.bench.known_chain import KnownChain
from specmask.models.head import Head
from specmask.models.hybrid import HybridTransformer, Trunk
from specmask.models.linear import Int8Linear, Linear
from specmask.models.modes import (
    CompiledBackbone,
    CompiledPass,
    CompiledWindow,
    check_modes,
    prepare,
)

VOCAB, LENGTH = 3, 5
ROWS = all_rows(VOCAB, LENGTH)
SAMPLER = specmask.Speculative(specmask.CosineWindow(0.35), rounds=2)


def float_network(**sizes: Any) -> HybridTransformer:
    return tiny_network(dtype=torch.float32, **sizes)


def law(network: HybridTransformer, batch_size: int = 64) -> torch.Tensor:
    """(243,) log-probabilities of all rows, left to right."""
    order = all_orders(LENGTH)[0].expand_as(ROWS)
    return specmask.log_prob(specmask.wrap(network), ROWS, order, SAMPLER, batch_size=batch_size)


def divergence(plain: torch.Tensor, own: torch.Tensor) -> float:
    """Nats that another law costs on rows of the plain one."""
    return float((plain.exp() * (plain - own)).sum())


def drawn(network: HybridTransformer, number: int) -> torch.Tensor:
    """(243,) counts of rows drawn left to right."""
    sampler = specmask.Speculative(SAMPLER.window, SAMPLER.rounds, order="left-to-right")
    out = specmask.sample(
        specmask.wrap(network), sampler, num=number, length=LENGTH, batch_size=10_000
    )
    return torch.bincount(code(out.tokens, VOCAB), minlength=len(ROWS))


# -------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_unembeds_in_float32() -> None:
    """Guards against logits in steps of 1/16, which make far tokens equally likely."""
    network = prepare(float_network(), dtype="bfloat16")
    tokens, lengths = ROWS[:4], torch.full((4,), LENGTH)
    hidden = network.trunk(tokens, lengths)
    prefix = network.prefix(hidden, tokens, tokens.argsort(1), lengths - 2)
    last = torch.full((4, 1), LENGTH - 2)
    assert hidden.dtype == prefix.keys[0].dtype == torch.bfloat16
    for logits in (network.draft_logits(hidden, last), network.verify(prefix, last, tokens)):
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())
    for features in network.features(tokens, tokens, tokens.argsort(1)):  # of training
        assert features.dtype == torch.bfloat16
    assert {name for name, p in network.named_parameters() if p.dtype == torch.float32} == {
        "trunk.embed.weight"
    }


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_samples_from_its_law(tied: bool) -> None:
    """Near the float32 law but not it; rounding by batch size moves the total by well below 1 %."""
    plain = law(float_network(tie_embeddings=tied))
    network = prepare(float_network(tie_embeddings=tied), dtype="bfloat16")
    own = law(network)
    assert abs(float(own.exp().sum()) - 1) < 0.01
    assert 1e-6 < divergence(plain, own) < 0.01
    assert chi_square(drawn(network, 20_000), own.exp()) > FALSE_ALARM


# ------------------------------------------------------------------------------------------ int8


@torch.no_grad()
def test_int8_products_are_rounded_products_and_each_row_is_its_own() -> None:
    """An output errs by the roundings of both sides; a row has the same bits in every company."""
    layer, x = Linear(160, 96), torch.randn(1100, 160)
    x[7] *= 1000  # would take the others' steps away if all rows had one scale
    x[8] = 0
    quantized = Int8Linear(layer)
    got, exact = quantized(x), layer(x)
    spread = (x.norm(dim=1) * layer.weight.norm(dim=1).mean())[:, None]
    assert ((got - exact).abs() <= 0.03 * spread + 1e-6).all()
    assert not torch.equal(got, exact)
    assert torch.equal(got[8], layer.bias.expand_as(got[8]))
    for rows in (1, 2, 3, 17, 500, 512, 1000):
        assert torch.equal(quantized(x[:rows]), got[:rows])
    assert torch.equal(quantized(x.view(11, 100, 160)), got.view(11, 100, 96))


def test_int8_has_an_exact_law_of_its_own() -> None:
    """Σ_x p(x) = 1 as tightly as float32 allows: every conditional is a function of its row."""
    plain = law(float_network())
    network = prepare(float_network(), quantize="int8")
    own = law(network)
    assert abs(float(own.exp().sum()) - 1) < 1e-5
    assert torch.equal(own, law(network, batch_size=7))
    assert 1e-6 < divergence(plain, own) < 0.01
    assert chi_square(drawn(network, 20_000), own.exp()) > FALSE_ALARM


def test_int8_moves_the_shipped_models_bits_by_little() -> None:
    """Bits per character of 2 rows of 48 that the float32 model drew, in a random order.

    Guards against a scale of the wrong axis, which costs whole bits.
    """
    plain, other = specmask.load("text8-small"), specmask.load("text8-small", quantize="int8")
    out = specmask.sample(plain, num=2, length=48, seed=3)
    for source in ("draft", "target"):
        bits = [
            -float(
                specmask.log_prob(model, out.tokens, out.order, specmask.AnyOrder(source)).mean()
            )
            / (48 * math.log(2))
            for model in (plain, other)
        ]
        assert bits[0] != bits[1]
        assert abs(bits[0] - bits[1]) < 0.02, (source, bits)


def test_int8_is_the_trunks_alone() -> None:
    network = prepare(float_network(), quantize="int8")
    maps = {name: type(part) for name, part in network.named_modules() if name.endswith("query")}
    assert maps == {
        "trunk.blocks.0.query": Int8Linear,
        "trunk.blocks.1.query": Int8Linear,
        "head.blocks.0.query": Linear,
    }
    assert not any(isinstance(p, nn.Linear) for p in network.trunk.blocks.modules())


# -------------------------------------------------------------------------------------- compiled


def traced(network: HybridTransformer) -> CompileCounter:
    """The network, its passes traced as for compilation but run as they are; counts the graphs."""
    counter = CompileCounter()
    compiled = CompiledPass()
    compiled._run = torch.compile(Trunk.hidden, fullgraph=True, backend=counter)
    network.trunk.compiled = compiled
    return counter


def test_one_graph_serves_all_numbers_of_rows() -> None:
    """Guards against a graph a batch size, as rows finish one by one; each takes seconds to make.

    `fullgraph` raises where the padding check or another look at numbers breaks a graph.
    """
    torch._dynamo.reset()
    network, plain = float_network(length=6), float_network(length=6)
    counter = traced(network)
    full, ragged = torch.full((9,), 6), torch.tensor([6, 2, 3, 4, 5, 6, 1, 2, 3])
    rows = all_rows(4, 6)[::300][:9]

    @torch.no_grad()
    def passes(numbers: range, lengths: torch.Tensor) -> int:
        for count in numbers:
            expected = plain.trunk(rows[:count], lengths[:count])
            torch.testing.assert_close(network.trunk(rows[:count], lengths[:count]), expected)
        return counter.frame_count

    assert passes(range(9, 1, -1), full) == 1
    assert passes(range(1, 2), full) == 2
    assert passes(range(9, 1, -1), ragged) == 3
    assert passes(range(1, 10), full) == 3
    specmask.sample(specmask.wrap(network), num=5, length=6)
    assert counter.frame_count == 3
    network.trunk(rows, full).sum().backward()  # as it is, with gradients
    assert counter.frame_count == 3


@torch.no_grad()
def test_one_graph_of_the_head_serves_all_windows() -> None:
    """Features are the eager ones for all rows, widths and revealed ranks, in later rounds too.

    Guards against a graph a width, and against keys and values that a graph keeps to itself.
    """
    torch._dynamo.reset()
    networks = [float_network(length=16) for _ in range(2)]
    counter = CompileCounter()
    compiled = CompiledWindow()
    compiled._run = torch.compile(Head.window, fullgraph=True, backend=counter)
    networks[0].head.compiled = compiled
    tokens = torch.randint(VOCAB, (5, 16), generator=torch.Generator().manual_seed(1))
    order = torch.argsort(tokens, dim=1, stable=True)

    def features(network: HybridTransformer, rows: int, known: int, width: int) -> torch.Tensor:
        hidden = network.trunk(tokens[:rows], torch.full((rows,), 16))
        full = torch.full((rows,), known)
        prefix = network.prefix(hidden, tokens[:rows], order[:rows], full)
        ranked = tokens.gather(1, order)[:rows]
        ranks = torch.arange(known, known + width).expand(rows, width)
        first = network.target_features(prefix, ranks, ranked)
        if known + width < 16:  # a later round of other rows
            rows = max(1, rows - 1)
            later = torch.full((rows, 1), known + width)
            prefix = prefix.take(torch.arange(rows))
            return torch.cat(
                (first[:rows], network.target_features(prefix, later, ranked[:rows])), 1
            )
        return first

    for rows in (5, 4, 2, 1):
        for known, width in ((3, 5), (8, 4), (1, 1), (10, 6), (15, 1)):
            got, expected = (features(network, rows, known, width) for network in networks)
            torch.testing.assert_close(got, expected)
    assert counter.frame_count == 2  # a single row, and more


@torch.no_grad()
def test_padded_rows_are_cut_off_and_copies_have_their_own_weights() -> None:
    network = float_network()
    compiled = CompiledPass(graphs=True)
    seen: list[int] = []

    def run(trunk: Trunk, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen.append(len(tokens))
        return trunk.hidden(tokens, mask)

    compiled._run = run
    network.trunk.compiled = compiled
    plain = float_network()
    for count in (1, 2, 3, 5, 8, 11):
        lengths = torch.full((count,), LENGTH)
        lengths[0] = 2
        got, expected = (one.trunk(ROWS[:count], lengths) for one in (network, plain))
        torch.testing.assert_close(got, expected)
    assert seen == [1, 2, 4, 8, 8, 16]
    torch._dynamo.reset()
    traced(network)
    network.head.compiled = CompiledWindow()
    other = copy.deepcopy(network)
    assert other.head.compiled is not network.head.compiled
    assert other.trunk.compiled is not network.trunk.compiled
    other.trunk.compiled._run = network.trunk.compiled._run
    other.trunk.embed.weight.mul_(-1)
    full = torch.full((3,), LENGTH)
    assert not torch.equal(other.trunk(ROWS[:3], full), network.trunk(ROWS[:3], full))


@pytest.mark.slow
def test_compiled_networks_sample_from_the_law() -> None:
    """χ² of compiled samples against the float64 network's enumerated law."""
    try:
        check_modes(compile=True)
    except specmask.UserError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    exact = law(tiny_network())
    network = prepare(float_network(), compile=True)
    torch.testing.assert_close(law(network), exact, rtol=0, atol=1e-4)
    assert chi_square(drawn(network, 50_000), exact.exp()) > FALSE_ALARM
    assert set(network.state_dict()) == set(float_network().state_dict())


def test_no_compiler_is_told() -> None:
    for found in (cpp_builder.get_cpp_compiler, cpp_builder.cpp_compiler_search):
        getattr(found, "cache_clear", lambda: None)()  # what torch found before
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        refuse(lambda: prepare(float_network(), compile=True), "C++ compiler", "g++", "CXX")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [True, "graphs"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_on_cuda(mode: bool | str, dtype: str) -> None:
    """Samples by χ² against the enumerated law; a graph's memory is not handed out.

    Guards against hidden states that the next pass overwrites, and rows that padding mixes up.
    """
    torch._dynamo.reset()
    network = prepare(float_network().cuda(), dtype=dtype, compile=mode)
    plain = prepare(float_network().cuda(), dtype=dtype)
    rows = ROWS.cuda()
    with torch.no_grad():
        for count in (1, 3, 5, 8, 5, 100, 3):
            lengths = torch.full((count,), LENGTH, device="cuda")
            one = network.trunk(rows[:count], lengths)
            kept = one.clone()
            network.trunk(rows[-count:], lengths)
            assert torch.equal(one, kept)
            tolerance = {"rtol": 0, "atol": 1e-4 if dtype == "float32" else 0.1}
            torch.testing.assert_close(one, plain.trunk(rows[:count], lengths), **tolerance)
    out = specmask.sample(
        *(specmask.wrap(network), specmask.Speculative(SAMPLER.window, 2, order="left-to-right")),
        **{"num": 20_000, "length": LENGTH, "batch_size": 4096},
    )
    counts = torch.bincount(code(out.tokens.cpu(), VOCAB), minlength=len(ROWS))
    own = law(tiny_network()) if dtype == "float32" else law_on(plain)
    assert chi_square(counts, own.exp()) > FALSE_ALARM


def law_on(network: HybridTransformer) -> torch.Tensor:
    order = all_orders(LENGTH)[0].expand_as(ROWS)
    return specmask.log_prob(specmask.wrap(network), ROWS, order, SAMPLER).cpu()


# ------------------------------------------------------------------------------ pretrained trunks


@pytest.mark.parametrize("mode", [{"dtype": "bfloat16"}, {"quantize": "int8"}])
def test_pretrained_trunks(protein_model: Path, mode: dict[str, Any]) -> None:
    """Cast or quantised: log-probabilities near the plain ones, logits in float32."""
    plain, other = (
        specmask.from_pretrained_trunk(
            protein_model, tokenizer=protein_model / "vocab.txt", draft_layers=1
        )
        for _ in range(2)
    )
    prepare(other.network, **mode)
    out = specmask.sample(plain, num=3, length=8)
    first, second = (
        specmask.log_prob(model, out.tokens, out.order, SAMPLER) for model in (plain, other)
    )
    assert 0 < float((first - second).abs().max()) < 0.5
    hidden = other.network.trunk(out.tokens, out.lengths)
    assert other.network.draft_logits(hidden, out.order).dtype == torch.float32
    specmask.sample(other, num=2, length=6)


def test_a_compiled_pretrained_trunk(protein_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states are the eager ones for all numbers of rows, ragged or not, by two graphs.

    Guards against a graph a batch size. Gradients go through the model as it is.
    """
    torch._dynamo.reset()
    plain, other = (
        specmask.from_pretrained_trunk(protein_model, tokenizer=protein_model / "vocab.txt")
        for _ in range(2)
    )
    counter, network = CompileCounter(), other.network
    network.trunk.compiled = compiled = CompiledBackbone()
    compiled._run = torch.compile(nn.Module.__call__, backend=counter)
    tokens = torch.randint(5, 20, (5, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for rows in (5, 4, 3, 2, 1):
            for lengths in (torch.full((rows,), 9), torch.arange(9, 9 - rows, -1)):
                got, expected = (
                    one.network.trunk(tokens[:rows], lengths) for one in (other, plain)
                )
                torch.testing.assert_close(got, expected)
    assert 0 < counter.frame_count <= 2
    before = counter.frame_count
    network.trunk(tokens[:2], torch.full((2,), 9))
    assert counter.frame_count == before
    assert copy.deepcopy(network).trunk.compiled is not compiled
    monkeypatch.setattr("specmask.models.modes.check_modes", lambda *_, **__: None)
    refuse(lambda: prepare(plain.network, compile="graphs"), "graphs", "Transformers", "True")


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        ({"dtype": "bf16"}, ("unknown dtype 'bf16'", "Did you mean 'bfloat16'")),
        ({"dtype": torch.bfloat16}, ("unknown dtype", "bfloat16")),
        ({"compile": "graph"}, ("unknown compile 'graph'", "Did you mean 'graphs'")),
        ({"compile": "graphs"}, ("CUDA", "compile=True")),
        ({"quantize": "int4"}, ("unknown quantize 'int4'", "int8")),
        ({"quantize": "int8", "dtype": "bfloat16"}, ("int8", "dtype='bfloat16'", "leave one")),
        ({"quantize": "int8", "compile": True}, ("int8", "compile=True", "leave one")),
        ({"quantize": "int8", "compile": "graphs"}, ("int8", "compile='graphs'", "leave one")),
    ],
)
def test_refused(modes: dict[str, Any], words: tuple[str, ...]) -> None:
    refuse(lambda: specmask.load("nothing", **modes), *words)
    refuse(lambda: prepare(float_network(), **modes), *words)


def test_refused_by_device() -> None:
    refuse(lambda: check_modes("cuda", quantize="int8"), "int8", "cuda", "bfloat16")
    refuse(lambda: check_modes("mps", quantize="int8"), "int8", "mps", "bfloat16")
    refuse(lambda: check_modes("mps", compile=True), "compile on mps", "cpu or cuda")


def test_networks_refused(tmp_path: Path) -> None:
    refuse(lambda: prepare(KnownChain(), dtype="bfloat16"), "KnownChain", "HybridTransformer")  # type: ignore[arg-type]
    refuse(lambda: prepare(tiny_network(), dtype="bfloat16"), "float64", "float()")
    refuse(lambda: prepare(tiny_network(), quantize="int8"), "float64", "float()")
    for mode in ({"dtype": "bfloat16"}, {"quantize": "int8"}):
        network = prepare(float_network(), **mode)
        refuse(lambda n=network: prepare(n, dtype="bfloat16"), "prepared already", "load it again")
        refuse(lambda n=network: specmask.save(tmp_path / "m", n), "rounded", "float32")
        assert not (tmp_path / "m").exists()
    assert prepare(float_network()).rounded is None


def test_load_gives_the_mode() -> None:
    network = specmask.load("text8-small", dtype="bfloat16").network
    assert isinstance(network, HybridTransformer)
    assert network.rounded == "bfloat16"
    assert network.head.out.weight.dtype == torch.bfloat16
    assert specmask.load("text8-small").network.rounded is None  # type: ignore[attr-defined]
