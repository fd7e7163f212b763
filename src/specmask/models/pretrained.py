"""A pretrained masked language model as trunk, and a new causal head on it (paper §5.3).

The trunk's hidden states, its own prediction head, its positions, its padding and its special
symbols are left as they are. What is new: optional bidirectional blocks between the two, which
adapt the draft, and the causal head. All of it starts as the identity, so that at step 0 both laws
are the pretrained model's.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from specmask.checks import optional_package, whole
from specmask.errors import UserError, first_line, unknown
from specmask.models.blocks import Blocks, padding_mask, rotary_angles, unit
from specmask.models.checkpoint import Model
from specmask.models.hybrid import DraftNetwork, Head, HybridNetwork, initialise
from specmask.models.vocabulary import Vocabulary, read_vocabulary

Kind = Literal["masked", "decoder", "shifted-decoder"]


@dataclass(frozen=True)
class PretrainedConfig:
    """What a network on a pretrained trunk is made of.

    Raises:
        UserError: negative or fractional sizes, an unknown kind.
    """

    source: str
    """Name or folder of the pretrained model."""
    revision: str | None
    """Its revision, where the source is a name."""
    sha256: str
    """Digest of its weights: another model of the same shape is refused."""
    kind: Kind
    """masked; decoder: a left-to-right network that looks both ways (LLaDA); shifted-decoder: one
    whose output at a position predicts the next one (Dream)."""
    vocab_size: int
    """Symbols of the model, special ones included."""
    mask_id: int
    """Its mask."""
    pad_id: int
    """What stands beyond a row's end."""
    before: tuple[int, ...]
    """Symbols the model expects before a row."""
    after: tuple[int, ...]
    """Symbols it expects after it."""
    forbidden: tuple[int, ...]
    """Symbols that are never drawn."""
    length: int
    """Longest row, in tokens, what stands around it not counted."""
    width: int
    """Channels of its hidden states."""
    heads: int
    """Attention heads of the new blocks."""
    pretrained_layers: int
    """Its blocks."""
    draft_layers: int = 0
    """New bidirectional blocks before its prediction head."""
    head_layers: int = 1
    """Causal blocks; 0 makes a model that drafts only."""
    residual: bool = True
    """Add the trunk's output at the predicted position to the head's (paper, Table 1)."""
    trust_remote_code: bool = False
    """Run the code that comes with the pretrained model."""

    def __post_init__(self) -> None:
        for name in ("before", "after", "forbidden"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("vocab_size", "length", "width", "heads", "pretrained_layers"):
            whole(name, getattr(self, name), 1)
        for name in ("draft_layers", "head_layers"):
            whole(name, getattr(self, name), 0, 64)
        if self.kind not in get_args(Kind):
            raise unknown("kind of trunk", self.kind, get_args(Kind))

    @property
    def hidden(self) -> int:
        """Channels inside the new MLPs: 8/3·width rounded up to 64."""
        return -(-8 * self.width // 3 // 64) * 64

    @property
    def trunk_layers(self) -> int:
        """Blocks of a trunk pass, as NFE counts them."""
        return self.pretrained_layers + self.draft_layers


# ----------------------------------------------------------------------------------------- trunk


class DraftBlocks(nn.Module):
    """Bidirectional blocks that move a pretrained trunk's hidden states; at first by nothing."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pairs = width // heads // 2
        self.blocks = Blocks(layers, width, heads, hidden)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, L, C) → (B, L, C); the change is measured in hidden's own root mean square."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        angles, x = rotary_angles(positions[None], self.pairs), unit(hidden)
        mask = padding_mask(hidden.shape[1], lengths)
        for block in self.blocks:
            x = block(x, angles, mask)
        return hidden + hidden.square().mean(-1, keepdim=True).sqrt() * self.out(unit(x))


class PretrainedTrunk(nn.Module):
    """A masked language model of somebody else's, as a trunk.

    Args:
        backbone: (input_ids, attention_mask) → an output whose first item is (B, L, C).
        predictor: (B, K, C) hidden states → (B, K, V) logits, each by itself.
        embedding: (…) ids → (…, C).
        config: its sizes and symbols.
    """

    def __init__(
        self,
        backbone: nn.Module,
        predictor: nn.Module,
        embedding: nn.Module,
        config: PretrainedConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.predictor, self.embedding = backbone, predictor, embedding
        self.draft: DraftBlocks | None = None
        if config.draft_layers:
            self.draft = DraftBlocks(config.draft_layers, config.width, config.heads, config.hidden)
        forbidden = torch.zeros(config.vocab_size, dtype=torch.bool)
        forbidden[list(config.forbidden)] = True
        self.register_buffer("forbidden", forbidden, persistent=False)

    @property
    def frozen(self) -> bool:
        """Whether no weight of the pretrained model is trained."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L) tokens → (B, L, C): the model's last hidden states, adapted."""
        # Where the pretrained model is frozen, nothing of its pass is kept for a gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self._hidden(tokens, lengths)
        return hidden if self.draft is None else self.draft(hidden, lengths)

    def _hidden(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        config, (rows, longest) = self.config, tokens.shape
        sizes = tokens.new_full((rows,), longest) if lengths is None else lengths
        ids, attended = frame(tokens, sizes, config.before, config.after, config.pad_id)
        if config.kind == "masked":
            hidden = self.backbone(input_ids=ids, attention_mask=attended)[0]
        else:  # a mask of four axes replaces the causal one
            dtype = next(self.backbone.parameters()).dtype
            mask = torch.zeros(attended.shape, dtype=dtype, device=ids.device)
            mask = mask.masked_fill(attended == 0, torch.finfo(dtype).min)[:, None, None]
            mask = mask.expand(-1, 1, ids.shape[1], -1)
            hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        if config.kind == "shifted-decoder":
            hidden = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
        return hidden[:, len(config.before) : len(config.before) + longest]

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) tokens → (..., C), the model's own input embeddings."""
        return self.embedding(tokens)

    def norm(self, hidden: Tensor) -> Tensor:
        """Nothing: the model's prediction head has norms of its own."""
        return hidden

    def symbols(self, normed: Tensor) -> Tensor:
        """(..., C) → (..., V) logits of the model's own prediction head; −∞ where forbidden."""
        logits = self.predictor(normed.reshape(1, -1, normed.shape[-1]))
        logits = logits[..., : self.config.vocab_size].masked_fill(self.forbidden, -torch.inf)
        return logits.reshape(*normed.shape[:-1], -1)


def frame(
    tokens: Tensor, lengths: Tensor, before: Sequence[int], after: Sequence[int], pad: int
) -> tuple[Tensor, Tensor]:
    """Rows as the pretrained model expects them, and its attention mask, both (B, L + frame)."""
    rows, longest = tokens.shape
    device = tokens.device
    inside = torch.arange(longest, device=device) < lengths[:, None]
    ids = torch.cat(
        (
            torch.tensor(before, dtype=torch.int64, device=device).expand(rows, -1),
            tokens.masked_fill(~inside, pad),
            torch.full((rows, len(after)), pad, device=device),
        ),
        dim=1,
    )
    ends = len(before) + lengths
    for k, symbol in enumerate(after):
        ids.scatter_(1, (ends + k)[:, None], symbol)
    whole_length = torch.arange(ids.shape[1], device=device)
    return ids, (whole_length < (ends + len(after))[:, None]).long()


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


# --------------------------------------------------------------------------------------- network


def build_network(trunk: PretrainedTrunk, seed: int = 0) -> DraftNetwork:
    """A network on a pretrained trunk, its new parts fresh: both laws are the pretrained model's.

    The pretrained weights are frozen; call `requires_grad_` on them to train them too.
    """
    config = trunk.config
    sizes: dict[str, Any] = {
        "config": config,
        "vocab_size": config.vocab_size,
        "mask_id": config.mask_id,
        "length": config.length,
        "trunk_layers": config.trunk_layers,
    }
    network: DraftNetwork
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if trunk.draft is not None:
            initialise(trunk.draft, depth=config.draft_layers)
            nn.init.zeros_(trunk.draft.out.weight)
        if config.head_layers:
            head = Head(
                *(config.width, config.heads, config.head_layers, config.hidden),
                residual=config.residual,
                norm=False,
            )
            initialise(head, depth=config.head_layers)
            network = HybridNetwork(trunk, head, **sizes)
        else:
            network = DraftNetwork(trunk, **sizes)
    network.freeze_trunk()
    return network.eval()


def from_pretrained_trunk(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    kind: Kind = "masked",
    draft_layers: int = 0,
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
    revision = config.revision if source is None else None
    model = _load(where, config.kind, revision, config.trust_remote_code)
    digest = weights_digest(model)
    if digest != config.sha256:
        raise UserError(
            f"{where} is not the model this head was trained on: its weights have sha256 "
            f"{digest[:12]}…, expected {config.sha256[:12]}…; pass its folder as trunk"
        )
    return assemble(model, config, seed)


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
