"""Generative perplexity: how likely another language model, the judge, finds generated text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specmask.checks import optional_package
from specmask.errors import UserError
from specmask.metrics.entropy import unigram_entropy
from specmask.metrics.estimate import Estimate, ratio


@dataclass(frozen=True)
class JudgeReport:
    """What a judge says of texts, beside what a sampler that flatters it cannot hide.

    perplexity: exp of `nll`, ≥ 1. nll: nats per token of the judge, weighted by tokens. entropy:
    `unigram_entropy` of the texts' own tokens, in nats; low where perplexity is low because a text
    repeats itself. texts_nll: (texts,) nats per token of each text. texts_tokens: (texts,) tokens
    of each that were scored.
    """

    perplexity: Estimate
    nll: Estimate
    entropy: Estimate
    texts_nll: tuple[float, ...]
    texts_tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Judge:
    """A causal language model of Transformers and its tokenizer."""

    model: Any
    tokenizer: Any


def load_judge(
    name_or_folder: str | Path,
    gguf_file: str | None = None,
    device: str | torch.device = "cpu",
) -> Judge:
    """A causal language model of Transformers with its tokenizer, in float32, ready to score.

    Args:
        name_or_folder: a folder, or a name on the Hugging Face Hub, e.g. "gpt2-large".
        gguf_file: the weights' file in that folder, if they are GGUF (needs gguf). Quantised
            weights judge differently: say which you used.
        device: where it computes.

    Raises:
        UserError: Transformers is not installed, there is no such model, or it has no tokenizer.
    """
    transformers = _transformers()
    name = str(name_or_folder)
    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    model = _loaded(
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, **extra
        ),
        f"no causal language model {name!r}",
        "check the name and the connection",
    )
    tokenizer = _loaded(
        lambda: transformers.AutoTokenizer.from_pretrained(name, **extra),
        f"judge {name!r} has no tokenizer",
        "put its tokenizer.json into the folder",
    )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made up, since the files are missing
        raise UserError(
            f"judge {name!r} has no tokenizer: expected one beside the weights; put its "
            "tokenizer.json into the folder"
        )
    return Judge(model.to(device).eval(), tokenizer)


def generative_perplexity(
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]] | Tensor,
    judge: Any,
    tokenizer: Any = None,
    prompt: str = "",
    batch_size: int = 8,
    context: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> JudgeReport:
    """Perplexity of texts under a judge, and their unigram entropy, without which it says little.

    Each text is tokenised anew by the judge's tokenizer. Its tokens are scored from left to right;
    the first is conditioned on the judge's begin-of-text token (the tokenizer's `bos_token`, as
    GPT-2's), or is not scored where there is none. A text longer than the judge's context is scored
    in windows that start every `stride` tokens: each token once, beyond the first window with at
    least context − stride tokens before it and without the begin-of-text token. The perplexity is
    exp(Σ nll / Σ tokens); its standard error, over texts, is by the delta method. A special token
    that a text spells out counts as that token.

    Args:
        texts: what was generated; texts need not be of one length.
        tokens: the same samples as the sampler's own tokens, rows or (B, L), for the entropy.
        judge: what `load_judge` gives, or its name or folder, or a causal model of Transformers.
        tokenizer: of Transformers or tokenizers; needed if `judge` is a model.
        prompt: what the judge reads before each text and does not score, as the tags of a
            conditional model ("[HEAVY][HUMAN]" of IgLM).
        batch_size: windows at a time; the result does not depend on it.
        context: tokens a window holds, at least 2; default and most, those of the judge's
            `max_position_embeddings`; unlimited if its configuration has none.
        stride: from 1 to context − 1; default half the context.
        progress: called with (windows done, windows in all).

    Raises:
        UserError: no texts, a text without a token to score, another number of rows; a judge
            without a tokenizer, that is not causal or gives no finite likelihood; a setting out of
            range.
    """
    if isinstance(texts, str):
        raise UserError("texts: expected a list of strings, got one string")
    if not len(texts):
        raise UserError("no texts: expected at least one to judge")
    if len(tokens) != len(texts):
        raise UserError(
            f"{len(tokens)} rows of tokens for {len(texts)} texts: expected one for each"
        )
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: expected at least 1")
    entropy = unigram_entropy(tokens)
    if isinstance(judge, str | Path):
        judge = load_judge(judge)
    model, tokenizer = _parts(judge, tokenizer)
    context = _context(model, context)
    with _evaluating(model), torch.inference_mode():
        _check_causal(model)
        rows, first = _rows(texts, tokenizer, prompt, model.get_input_embeddings().weight.shape[0])
        if context is None:  # one window holds any text
            context = max(len(row) for row in rows)
            stride = None
        stride = context // 2 if stride is None else stride
        if not 1 <= stride < context:
            raise UserError(f"stride={stride}: expected 1 to {context - 1}, context − 1")
        if first >= context:
            raise UserError(
                f"the prompt takes {first} tokens, the context has {context}: expected room for "
                "the text; shorten the prompt"
            )
        nll = _score(model, rows, first, context, stride, batch_size, progress)
    if not all(map(math.isfinite, nll)):
        k = [math.isfinite(value) for value in nll].index(False)
        raise UserError(
            f"text {k}: the judge's negative log-likelihood is {nll[k]}; load the judge in "
            "float32, as load_judge does"
        )
    counts = [len(row) - first for row in rows]
    mean = ratio(nll, counts)
    perplexity = math.exp(mean.mean)
    return JudgeReport(
        perplexity=Estimate(perplexity, perplexity * mean.standard_error, mean.count),
        nll=mean,
        entropy=entropy,
        texts_nll=tuple(total / count for total, count in zip(nll, counts, strict=True)),
        texts_tokens=tuple(counts),
    )


def _parts(judge: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model and a tokenizer of Transformers."""
    if isinstance(judge, Judge):
        tokenizer = judge.tokenizer if tokenizer is None else tokenizer
        judge = judge.model
    if not (isinstance(judge, torch.nn.Module) and hasattr(judge, "config")):
        raise UserError(
            f"judge is a {type(judge).__name__}: expected a causal model of Transformers, its "
            "folder or its name"
        )
    if tokenizer is None:
        raise UserError("the judge has no tokenizer: pass its own as tokenizer, or use load_judge")
    if isinstance(tokenizer, Tokenizer):
        tokenizer = _transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return judge, tokenizer


def _rows(
    texts: Sequence[str], tokenizer: Any, prompt: str, size: int
) -> tuple[list[list[int]], int]:
    """The tokens of each text behind those of the prompt, and how many of a row are not scored."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    begin = getattr(tokenizer, "bos_token_id", None)
    before = [*([] if begin is None else [begin]), *ids(prompt)]
    first = max(1, len(before))  # nothing predicts a row's first token
    rows = []
    for k, text in enumerate(texts):
        row = before + ids(text)
        if len(row) <= first:
            raise UserError(
                f"text {k} ({text[:20]!r}) has no token to score: expected some text; leave it out"
            )
        if max(row) >= size:
            raise UserError(
                f"text {k}: the tokenizer gives id {max(row)}, the judge knows {size} tokens; pass "
                "the judge's own tokenizer"
            )
        rows.append(row)
    return rows, first


def _context(model: Any, context: int | None) -> int | None:
    most = getattr(model.config, "max_position_embeddings", None)
    if context is None:
        return most
    if context < 2 or (most is not None and context > most):
        wanted = "at least 2" if most is None else f"from 2 to {most}"
        raise UserError(f"context={context}: expected a whole number, {wanted}")
    return context


def _windows(length: int, first: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first scored) of each window; every position from `first` is scored once."""
    scored = first
    for start in range(0, length, stride):
        end = min(start + context, length)
        yield start, end, scored
        scored = end
        if end == length:
            return


def _score(
    model: Any,
    rows: Sequence[Sequence[int]],
    first: int,
    context: int,
    stride: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    """Σ nll of each row."""
    windows = [
        (k, *window)
        for k, row in enumerate(rows)
        for window in _windows(len(row), first, context, stride)
    ]
    windows.sort(key=lambda window: window[1] - window[2])  # the longest first, to pad little
    parts: list[list[float]] = [[] for _ in rows]
    for at in range(0, len(windows), batch_size):
        batch = windows[at : at + batch_size]
        pieces = [torch.tensor(rows[k][start:end]) for k, start, end, _ in batch]
        ids = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).to(model.device)
        lengths = torch.tensor([len(piece) for piece in pieces], device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        logits = _logits(model, ids, mask.long())
        for (k, start, end, scored), row_ids, row in zip(batch, ids, logits, strict=True):
            # A row at a time: the log-probabilities of a batch would take as much again.
            targets = row_ids[scored - start : end - start]
            laws = row[scored - start - 1 : end - start - 1].float().log_softmax(-1)
            parts[k].append(-float(laws.gather(-1, targets[:, None]).double().sum()))
        if progress is not None:
            progress(at + len(batch), len(windows))
    return [math.fsum(values) for values in parts]


def _check_causal(model: Any) -> None:
    """A causal model's predictions do not change with the tokens to the right of them."""
    ids = torch.zeros(2, 4, dtype=torch.long, device=model.device)
    ids[1, -1] = 1
    logits = _logits(model, ids, torch.ones_like(ids))[:, :-1]
    tolerance = 100 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if float((logits[0] - logits[1]).abs().max()) > tolerance:
        raise UserError(
            f"{type(model).__name__} is not causal (its predictions change with later tokens): "
            "expected a left-to-right language model, e.g. gpt2"
        )


def _logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    logits = None
    if not getattr(model.config, "is_encoder_decoder", False):
        logits = getattr(model(input_ids=ids, attention_mask=mask), "logits", None)
    if logits is None or logits.shape[:2] != ids.shape:
        raise UserError(
            f"{type(model).__name__} is not causal: expected a model that predicts the next token, "
            "as AutoModelForCausalLM gives"
        )
    return logits


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _transformers() -> Any:
    return optional_package("transformers", "a judge needs")


def _loaded(load: Callable[[], Any], what: str, way_out: str) -> Any:
    try:
        return load()
    except ImportError as error:  # gguf, sentencepiece, …
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: a package is missing ({line}); install it") from error
    except Exception as error:  # the library lets through whatever the net and the files raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what} ({line}): {way_out}") from error
