"""A masked language model of somebody else's as trunk, and what is new on it.

The pretrained model's weights, its own prediction head, its positions, its padding and its special
symbols are left as they are. What is new: the causal head and, where the draft is adapted too,
bidirectional blocks before the prediction head or low-rank updates inside the model (LoRA). All of
it starts as the identity, so that at step 0 both laws are the pretrained model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from specmask.checks import optional_package, whole
from specmask.errors import UserError, unknown
from specmask.host import upload
from specmask.models.blocks import Blocks, padding_mask, root_mean_square, row_turns, unit
from specmask.models.head import Head
from specmask.models.hybrid import LOW_RANK, DraftNetwork, HybridNetwork, initialise

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
    lora_rank: int = 0
    """Rank of the updates to all linear maps inside the pretrained blocks; 0 for none."""
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
        whole("lora_rank", self.lora_rank, 0, self.width)
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
        by, x = row_turns(hidden.shape[1], self.pairs, hidden.device), unit(hidden)
        mask = padding_mask(hidden.shape[1], lengths, hidden.device)
        for block in self.blocks:
            x = block(x, by, mask)
        return hidden + root_mean_square(hidden) * self.out(unit(x))


class PretrainedTrunk(nn.Module):
    """A masked language model of somebody else's, as a trunk.

    Args:
        backbone: (input_ids, attention_mask) → an output whose first item is (B, L, C).
        predictor: (B, K, C) hidden states → (B, K, V) logits, each by itself.
        embedding: (…) ids → (…, C).
        config: its sizes and symbols.
    """

    compiled: Callable[..., Any] | None = None
    """The backbone for passes without gradients, where `modes.prepare` has compiled it."""

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
        weights = self.backbone.named_parameters()
        return not any(p.requires_grad for name, p in weights if LOW_RANK not in name)

    def checkpoint_activations(self) -> None:
        """Recompute the pretrained blocks in the backward pass, in Transformers' way.

        Nothing of a frozen model's pass is kept anyway.

        Raises:
            UserError: its blocks are trained, and cannot do it.
        """
        parameters = list(self.backbone.named_parameters())
        if not any(p.requires_grad for _, p in parameters):
            return
        if any(LOW_RANK in name for name, _ in parameters):
            # Transformers recomputes in training mode alone, in which dropout is on as well.
            raise UserError(
                "checkpoint_activations with low-rank updates: the pretrained model stays in "
                "evaluation mode, in which Transformers keeps everything; leave one of the two "
                "out, or raise accumulation to need less memory"
            )
        if not getattr(self.backbone, "supports_gradient_checkpointing", False):
            raise UserError(
                f"checkpoint_activations: {self.config.source} ({type(self.backbone).__name__}) "
                "does not support it; leave it out, freeze the trunk, or raise accumulation to "
                "need less memory"
            )
        newer = getattr(self.backbone, "activation_checkpointing_enable", None)  # since 5.20
        enable: Any = newer or self.backbone.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L) tokens → (B, L, C): the model's last hidden states, adapted."""
        # Where nothing inside the pretrained model is trained, nothing of its pass is kept.
        trained = any(p.requires_grad for p in self.backbone.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            hidden = self._hidden(tokens, lengths)
        return hidden if self.draft is None else self.draft(hidden, lengths)

    def _hidden(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        config, (rows, longest) = self.config, tokens.shape
        sizes = tokens.new_full((rows,), longest)
        if lengths is not None:
            (sizes,) = upload(tokens.device, lengths)
        ids, attended = frame(tokens, sizes, config.before, config.after, config.pad_id)
        run: Callable[..., Any] = self.backbone
        if self.compiled is not None and not torch.is_grad_enabled():
            run = partial(self.compiled, self.backbone)
        if config.kind == "masked":
            hidden = run(input_ids=ids, attention_mask=attended)[0]
        else:  # a mask of four axes replaces the causal one
            dtype = next(self.backbone.parameters()).dtype
            mask = torch.zeros(attended.shape, dtype=dtype, device=ids.device)
            mask = mask.masked_fill(attended == 0, torch.finfo(dtype).min)[:, None, None]
            mask = mask.expand(-1, 1, ids.shape[1], -1)
            hidden = run(input_ids=ids, attention_mask=mask, use_cache=False)[0]
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
            *(torch.full((rows, 1), symbol, device=device) for symbol in before),
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
        if config.lora_rank:
            add_low_rank(trunk.backbone, config.lora_rank)
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


def add_low_rank(backbone: nn.Module, rank: int) -> None:
    """Put an update of some rank beside every linear map of a model; at first it adds nothing.

    LoRA (arXiv 2106.09685), by peft.
    """
    library = optional_package("peft", "low-rank updates of a pretrained trunk need")
    maps = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    library.inject_adapter_in_model(
        library.LoraConfig(r=rank, lora_alpha=rank, target_modules=maps), backbone
    )
