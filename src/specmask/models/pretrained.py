"""Pretrained masked language models of Transformers as self-speculative models (paper §5.3)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from specmask.checks import optional_package, whole
from specmask.errors import UserError, first_line, unknown
from specmask.models.checkpoint import TRUNK, Model
from specmask.models.hybrid import DraftNetwork
from specmask.models.pretrained_trunk import (
    Kind,
    PretrainedConfig,
    PretrainedTrunk,
    build_network,
    frame,
)
from specmask.models.vocabulary import Vocabulary, read_vocabulary
from specmask.models.zoo import ZOO


def from_pretrained_trunk(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    kind: Kind = "masked",
    draft_layers: int = 0,
    lora_rank: int = 0,
    head_layers: int = 1,
    residual: bool = True,
    length: int | None = None,
    forbid: Sequence[str] = (),
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Model:
    """A pretrained masked language model as a self-speculative one, with a head not yet trained.

    Args:
        source: name or folder of an `AutoModelForMaskedLM` of Transformers; for the other kinds,
            of an `AutoModelForCausalLM`.
        tokenizer: another name or folder to take the tokenizer from, or a vocab.txt.
        kind: masked; decoder, a left-to-right network that looks both ways (LLaDA);
            shifted-decoder, one whose output at a position predicts the next (Dream).
        draft_layers: new bidirectional blocks before the prediction head, to adapt the draft too.
        lora_rank: rank of the updates inside the pretrained blocks (LoRA), which adapt the draft
            too; needs peft.
        head_layers: causal blocks; 0 makes a model that drafts only.
        residual: see `HybridConfig`.
        length: longest row, at most what the model's positions allow, which is the default.
        forbid: symbols that are never drawn, besides the special ones.
        revision, trust_remote_code: as in Transformers; code that comes with a model is not run
            unless asked.
        seed: of the new weights. device: where the network goes.

    Returns:
        A model whose draft and target are both the pretrained model's prediction, until trained.

    Raises:
        UserError: Transformers is not installed, the source is no such model, its prediction head
            was not saved or does not work position by position, or its tokenizer does not fit.
    """
    if kind not in get_args(Kind):
        raise unknown("kind of trunk", kind, get_args(Kind))
    model = _load(str(source), kind, revision, trust_remote_code)
    vocabulary = read_vocabulary(
        str(source), tokenizer, revision=revision, trust_remote_code=trust_remote_code
    )
    settings = model.config
    size = vocabulary.tokenizer.get_vocab_size()
    if size > settings.vocab_size:
        raise UserError(
            f"the tokenizer has {size} symbols, {source} has {settings.vocab_size}: "
            "they do not belong together"
        )
    width = int(model.get_input_embeddings().embedding_dim)
    config = PretrainedConfig(
        source=str(source),
        revision=revision,
        sha256=weights_digest(model),
        kind=kind,
        vocab_size=settings.vocab_size,
        mask_id=vocabulary.mask,
        pad_id=vocabulary.pad,
        before=vocabulary.before,
        after=vocabulary.after,
        forbidden=_forbidden(vocabulary, settings.vocab_size, forbid),
        length=1,
        width=width,
        heads=_heads(width, int(settings.num_attention_heads)),
        pretrained_layers=int(settings.num_hidden_layers),
        draft_layers=draft_layers,
        lora_rank=lora_rank,
        head_layers=head_layers,
        residual=residual,
        trust_remote_code=trust_remote_code,
    )
    longest = _longest(model, config)
    config = replace(
        config, length=longest if length is None else whole("length", length, 1, longest)
    )
    network = assemble(model, config, seed).to(device)
    return Model(network, vocabulary.tokenizer, Path(source).name)


def assemble(model: Any, config: PretrainedConfig, seed: int = 0) -> DraftNetwork:
    """Put a loaded Transformers model and the new parts of a config together."""
    probe = _probe(config, min(config.length, 5))
    with torch.no_grad():
        model.eval()
        ids, attended = frame(
            probe, torch.tensor([probe.shape[1]]), config.before, config.after, config.pad_id
        )
        expected = model(input_ids=ids, attention_mask=attended).logits
        backbone = getattr(model, model.base_model_prefix)
        embedding = model.get_input_embeddings()
        predictor = _Predictor(model)
        got = predictor(backbone(input_ids=ids, attention_mask=attended)[0])
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{config.source} does not predict each position from its last hidden state alone: "
            "it cannot be a trunk as it is; build a PretrainedTrunk of its parts"
        )
    return build_network(PretrainedTrunk(backbone, predictor, embedding, config), seed)


def load_trunk(
    config: PretrainedConfig, source: str | Path | None = None, seed: int = 0
) -> DraftNetwork:
    """The network of a config on its pretrained model, or on a copy of it found elsewhere.

    Raises:
        UserError: the model is not there, or its weights are not those the head was trained on.
    """
    where = str(source or config.source)
    known = {entry.trunk for entry in ZOO.values()}
    if source is None and where in known and not Path(where).is_dir():
        raise UserError(
            f"the pretrained model {where} does not ship: pass its folder as trunk; the model's "
            "card says where it is to be had"
        )
    revision = config.revision if source is None else None
    model = _load(where, config.kind, revision, config.trust_remote_code)
    _check_digest(model, config, where)
    return assemble(model, config, seed)


def save_trunk(config: PretrainedConfig, model_folder: str | Path) -> None:
    """Put a copy of the pretrained model into a model folder, which then needs nothing else.

    In Transformers' own form, as `trunk/`, where `load` looks first. Mind the licence of the
    pretrained model before you pass the folder on.

    Raises:
        UserError: the pretrained model is not where it was, or not what it was.
    """
    model = _load(config.source, config.kind, config.revision, config.trust_remote_code)
    _check_digest(model, config, config.source)
    folder = Path(model_folder) / TRUNK
    if not folder.exists():
        whole_folder = folder.with_name(f".{TRUNK}.tmp")
        model.save_pretrained(whole_folder)
        whole_folder.rename(folder)


def _check_digest(model: nn.Module, config: PretrainedConfig, where: str) -> None:
    digest = weights_digest(model)
    if digest != config.sha256:
        raise UserError(
            f"{where} is not the model this head was trained on: its weights have sha256 "
            f"{digest[:12]}…, expected {config.sha256[:12]}…; pass its folder as trunk"
        )


def _load(source: str, kind: Kind, revision: str | None, trust_remote_code: bool) -> Any:
    library = optional_package("transformers", "a pretrained trunk needs")
    auto = library.AutoModelForMaskedLM if kind == "masked" else library.AutoModelForCausalLM
    try:
        with _quiet():
            model, info = auto.from_pretrained(
                source,
                revision=revision,
                trust_remote_code=trust_remote_code,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # every family and every missing file fails in its own way
        first = first_line(error)
        if "Unrecognized configuration class" in first:
            raise UserError(
                f"{source} is not a {kind} language model that Transformers knows ({first[:120]}): "
                "expected one of its MaskedLM family; for a decoder that looks both ways pass "
                "kind='decoder' or 'shifted-decoder'"
            ) from None
        raise UserError(
            f"{source} does not load ({first[:200]}): expected the name or the folder of a "
            "pretrained model; without a network, pass a folder"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} weights of a {kind} language model, e.g. "
            f"{missing[0]!r}: its prediction head was not saved, and a random one cannot draft"
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers reports superfluous weights as warnings; missing ones are our error."""
    from transformers.utils import logging as messages

    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()


def weights_digest(model: nn.Module) -> str:
    """sha256 over names and values of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _forbidden(vocabulary: Vocabulary, size: int, forbid: Sequence[str]) -> tuple[int, ...]:
    names: Callable[[str], int | None] = vocabulary.tokenizer.token_to_id
    for name in forbid:
        if names(name) is None:
            raise UserError(f"forbidden symbol {name!r} is not in the model's vocabulary")
    more = {names(name) for name in forbid}
    # A vocabulary padded to a round size has columns that no symbol belongs to.
    unused = set(range(vocabulary.tokenizer.get_vocab_size(), size))
    every = {*vocabulary.special, vocabulary.mask, vocabulary.pad, *more, *unused}
    if len(every) >= size:
        raise UserError("every symbol of the model is forbidden: nothing could be drawn")
    return tuple(sorted(i for i in every if i is not None))


def _heads(width: int, heads: int) -> int:
    """The largest number of heads up to the model's own that the head's two rotations allow."""
    for count in range(heads, 0, -1):
        if width % (4 * count) == 0:
            return count
    raise UserError(f"a width of {width} cannot be a head's: expected a multiple of 4")


def _longest(model: Any, config: PretrainedConfig) -> int:
    """Positions the model has, without those that stand around a row."""
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 0)
    embeddings = getattr(getattr(model, model.base_model_prefix), "embeddings", None)
    if getattr(embeddings, "padding_idx", None) is not None:  # RoBERTa, ESM count from there
        positions -= int(embeddings.padding_idx) + 1  # type: ignore[union-attr]
    longest = positions - len(config.before) - len(config.after)
    if longest < 1:
        raise UserError(f"{config.source} does not say how long its rows may be: pass length")
    return longest


def _probe(config: PretrainedConfig, length: int) -> Tensor:
    """A short row of allowed symbols and masks."""
    allowed = [i for i in range(config.vocab_size) if i not in set(config.forbidden)]
    row = [allowed[k % len(allowed)] for k in range(length)]
    return torch.tensor([[config.mask_id if k % 2 else s for k, s in enumerate(row)]])


# ------------------------------------------------------------------------------- prediction head


class _Predictor(nn.Module):
    """All of a Transformers model behind its base: its own forward, on hidden states we give it.

    So no name of a prediction head need be known, and any model whose head works position by
    position will do.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._given = _Given()
        setattr(model, model.base_model_prefix, self._given)
        self.model = model

    def forward(self, hidden: Tensor) -> Tensor:
        self._given.hidden = hidden
        try:
            ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
            return self.model(input_ids=ids).logits
        finally:
            self._given.hidden = None


class _Given(nn.Module):
    hidden: Tensor | None = None

    def forward(self, *_: object, **__: object) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.hidden)
