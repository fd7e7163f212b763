from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from specmask.errors import UserError
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.perplexity import Judge, generative_perplexity, load_judge

transformers = pytest.importorskip("transformers")

WORDS = ("<s>", "a", "b", "c", "d", "e", "f", "g")
CONTEXT = 16
TEXTS = (
    "a b c",
    "g",
    "b b b b b b b b",
    "a b c d e f g a b c d e f g a b c d e f g a",
    "e d c b a",
)
TOKENS = tuple(tuple(text.encode()) for text in TEXTS)


def plain_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def begin_tokenizer() -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain_tokenizer(), bos_token="<s>", eos_token="<s>"
    )


def gpt2(**settings: Any) -> Any:
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, **settings
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # far from uniform, so that a wrong shift shows
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def by_hand(model: Any, ids: list[int]) -> list[float]:
    """-log p of each token but the first, each from a forward pass of its own."""
    found = []
    with torch.no_grad():
        for k in range(1, len(ids)):
            law = model(torch.tensor([ids[:k]])).logits[0, -1].double().log_softmax(-1)
            found.append(-float(law[ids[k]]))
    return found


# ------------------------------------------------------------------------------------- the value


def test_the_first_token_is_conditioned_on_the_begin_token() -> None:
    model = gpt2()
    report = generative_perplexity(["a b c"], [[1, 2, 3]], model, begin_tokenizer())
    nll = by_hand(model, [0, 1, 2, 3])
    assert report.texts_tokens == (3,)
    assert report.texts_nll[0] == pytest.approx(sum(nll) / 3, abs=1e-5)
    assert report.perplexity.mean == pytest.approx(math.exp(sum(nll) / 3), rel=1e-5)


def test_without_a_begin_token_the_first_token_is_not_scored() -> None:
    model = gpt2()
    report = generative_perplexity(["a b c"], [[1, 2, 3]], model, plain_tokenizer())
    assert report.texts_tokens == (2,)
    assert report.texts_nll[0] == pytest.approx(sum(by_hand(model, [1, 2, 3])) / 2, abs=1e-5)


@pytest.mark.parametrize("begin", [True, False])
def test_a_prompt_is_read_and_not_scored(begin: bool) -> None:
    model = gpt2()
    tokenizer = begin_tokenizer() if begin else plain_tokenizer()
    report = generative_perplexity(["a b c"], [[1, 2, 3]], model, tokenizer, prompt="g f ")
    nll = by_hand(model, [*([0] if begin else []), 7, 6, 1, 2, 3])[-3:]
    assert report.texts_tokens == (3,)
    assert report.texts_nll[0] == pytest.approx(sum(nll) / 3, abs=1e-5)


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    with pytest.raises(UserError, match="prompt takes 16 tokens, the context has 16"):
        generative_perplexity(["a"], [[1]], gpt2(), plain_tokenizer(), prompt="a " * CONTEXT)


def test_texts_weigh_by_their_tokens_and_the_error_is_the_delta_methods() -> None:
    model = gpt2()
    texts = ["a b c", "g", "e d"]
    report = generative_perplexity(texts, [[1], [1], [1]], model, begin_tokenizer())
    rows = [[0, 1, 2, 3], [0, 7], [0, 5, 4]]
    totals, counts = [sum(by_hand(model, row)) for row in rows], [3, 1, 2]
    mean = sum(totals) / 6
    spread = sum((t - mean * n) ** 2 for t, n in zip(totals, counts, strict=True))
    error = math.sqrt(3 / 2 * spread) / 6
    assert report.nll.mean == pytest.approx(mean, abs=1e-5)
    assert report.nll.standard_error == pytest.approx(error, rel=1e-4)
    assert report.perplexity.mean == pytest.approx(math.exp(mean), rel=1e-5)
    assert report.perplexity.standard_error == pytest.approx(math.exp(mean) * error, rel=1e-4)
    assert report.perplexity.count == 3


def test_long_texts_are_scored_in_windows() -> None:
    model = gpt2()
    ids = [0, *([1, 2, 3, 4, 5, 6, 7] * 3), 1]  # 23 tokens in all
    text = " ".join(WORDS[k] for k in ids[1:])
    report = generative_perplexity([text], [[1]], model, begin_tokenizer(), context=10, stride=4)
    nll = by_hand(model, ids[:10])
    for start, scored, end in ((4, 10, 14), (8, 14, 18), (12, 18, 22), (16, 22, 23)):
        nll += by_hand(model, ids[start:end])[scored - start - 1 :]
    assert len(nll) == report.texts_tokens[0] == 22
    assert report.texts_nll[0] == pytest.approx(sum(nll) / 22, abs=1e-5)


def test_a_text_as_long_as_the_context_is_one_window() -> None:
    model, ids = gpt2(), [0, *([1, 2, 3, 4, 5] * 3)]
    seen: list[tuple[int, int]] = []
    report = generative_perplexity(
        [" ".join(WORDS[k] for k in ids[1:])],
        [[1]],
        model,
        begin_tokenizer(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 1)]
    assert report.texts_nll[0] == pytest.approx(sum(by_hand(model, ids)) / 15, abs=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model = gpt2()
    one = generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer(), batch_size=1, stride=5)
    many = generative_perplexity(
        TEXTS, TOKENS, model, begin_tokenizer(), batch_size=batch_size, stride=5
    )
    assert many.texts_nll == pytest.approx(one.texts_nll, abs=1e-5)
    assert many.perplexity.mean == pytest.approx(one.perplexity.mean, rel=1e-5)


def test_a_uniform_judge_has_the_perplexity_of_its_vocabulary() -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    report = generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer())
    assert report.perplexity.mean == pytest.approx(len(WORDS), rel=1e-5)
    assert report.perplexity.standard_error == pytest.approx(0, abs=1e-5)


def test_the_entropy_is_that_of_the_tokens_passed() -> None:
    tokens = torch.tensor([[1, 1, 2, 3], [4, 4, 4, 4]])
    report = generative_perplexity(["a b", "c"], tokens, gpt2(), begin_tokenizer())
    assert report.entropy == unigram_entropy(tokens)


def test_dropout_is_off_and_the_mode_is_left_as_it_was() -> None:
    model = gpt2(resid_pdrop=0.5).train()
    reports = [generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer()) for _ in range(2)]
    assert reports[0] == reports[1]
    assert model.training


# --------------------------------------------------------------------------------------- loading


def test_a_judge_from_a_folder(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path)
    begin_tokenizer().save_pretrained(tmp_path)
    judge = load_judge(tmp_path)
    assert isinstance(judge, Judge)
    wanted = generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer())
    assert generative_perplexity(TEXTS, TOKENS, judge) == wanted
    assert generative_perplexity(TEXTS, TOKENS, str(tmp_path)) == wanted


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_judge(tmp_path)


def test_a_folder_that_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no causal language model"):
        load_judge(tmp_path)


def test_transformers_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'specmask\[pretrained\]'"):
        load_judge("gpt2")


# ---------------------------------------------------------------------------------------- errors


def test_a_model_that_sees_the_right_side_is_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    for model in (transformers.BertForMaskedLM(config), transformers.BertModel(config)):
        with pytest.raises(UserError, match="is not causal"):
            generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer())


def test_an_encoder_decoder_is_refused() -> None:
    config = transformers.T5Config(
        vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(UserError, match="is not causal"):
        generative_perplexity(
            TEXTS, TOKENS, transformers.T5ForConditionalGeneration(config), begin_tokenizer()
        )


def test_a_judge_that_gives_no_number_is_refused() -> None:
    model = gpt2()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(math.nan)
    with pytest.raises(UserError, match="text 0: the judge's negative log-likelihood is nan"):
        generative_perplexity(TEXTS, TOKENS, model, begin_tokenizer())


@pytest.mark.parametrize(
    ("texts", "tokens", "message"),
    [
        ([], [], "no texts"),
        ("abc", [[1]], "got one string"),
        (["a", ""], [[1], [1]], r"text 1 \(''\) has no token to score"),
        (["a"], [[1], [2]], "2 rows of tokens for 1 texts"),
        (["a"], [[]], "sample 0"),
    ],
)
def test_texts_that_cannot_be_judged(texts: Any, tokens: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generative_perplexity(texts, tokens, gpt2(), begin_tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"context": 17}, "context=17: expected a whole number, from 2 to 16"),
        ({"context": 1}, "context=1"),
        ({"stride": 0}, "stride=0: expected 1 to 15"),
        ({"stride": 16}, "stride=16: expected 1 to 15"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generative_perplexity(TEXTS, TOKENS, gpt2(), begin_tokenizer(), **settings)


def test_a_model_needs_its_own_tokenizer() -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        generative_perplexity(TEXTS, TOKENS, gpt2())
    larger = Tokenizer(WordLevel({"a": 0, "b": 50}))
    larger.pre_tokenizer = Whitespace()
    with pytest.raises(UserError, match="gives id 50, the judge knows 8 tokens"):
        generative_perplexity(["a b"], [[1]], gpt2(), larger)
    with pytest.raises(UserError, match="judge is a int"):
        generative_perplexity(TEXTS, TOKENS, 3)
