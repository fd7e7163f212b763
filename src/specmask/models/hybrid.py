"""The self-speculative network: bidirectional trunk that drafts, causal head that verifies.

Paper: *Self-Speculative Masked Diffusions*, arXiv 2510.03929, §3; method.md §2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from specmask.errors import UserError
from specmask.models.blocks import (
    Block,
    Blocks,
    RMSNorm,
    padding_mask,
    pick,
    row_turns,
    unit,
)
from specmask.models.head import Head, HybridPrefix, gather
from specmask.models.linear import Linear, PackedWeight


@dataclass(frozen=True)
class HybridConfig:
    """Sizes of a `HybridTransformer`.

    Raises:
        UserError: a size below 1, a width that the heads do not divide into fours, or a dropout
            outside [0, 1).
    """

    vocab_size: int
    """Data symbols V; the mask is one more."""
    length: int
    """Longest row, in tokens."""
    width: int
    """Channels, divisible by 4·heads (two rotations share a head)."""
    heads: int
    """Attention heads."""
    trunk_layers: int
    """Bidirectional blocks L_nc."""
    head_layers: int = 1
    """Causal blocks L_c; 0 makes a plain masked-diffusion network (`PlainTransformer`)."""
    mlp_hidden: int | None = None
    """Hidden channels of the gated MLP; None is 8/3·width rounded up to 64, which gives it the
    parameters of a plain MLP of 4·width."""
    residual: bool = True
    """Add the trunk's output at the predicted position to the head's (paper, Table 1)."""
    tie_embeddings: bool = True
    """Unembed with the embedding matrix."""
    dropout: float = 0.0
    """Probability, from 0 to below 1, that training drops a channel of what an attention or an MLP
    adds to the residual stream."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("vocab_size", "length", "width", "heads", "trunk_layers"), 1)
        for name, low in (least | {"head_layers": 0}).items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise UserError(
                    f"{name}={getattr(self, name)}: expected a whole number, at least {low}"
                )
        if self.mlp_hidden is not None and self.mlp_hidden < 1:
            raise UserError(f"mlp_hidden={self.mlp_hidden}: expected at least 1, or None")
        if self.width % (4 * self.heads):
            raise UserError(
                f"width={self.width} with heads={self.heads}: expected a width divisible by "
                f"4·heads = {4 * self.heads}"
            )
        if isinstance(self.dropout, bool) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout}: expected at least 0 and below 1")

    @property
    def hidden(self) -> int:
        """Channels inside the MLP."""
        return self.mlp_hidden or -(-8 * self.width // 3 // 64) * 64


# ----------------------------------------------------------------------------------------- parts


class TrunkModule(Protocol):
    """What a network needs of its trunk, whoever trained it."""

    def __call__(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L) tokens → hidden (B, L, C)."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) tokens → (..., C)."""
        ...

    def norm(self, hidden: Tensor) -> Tensor:
        """Hidden → what `symbols` reads."""
        ...

    def symbols(self, normed: Tensor) -> Tensor:
        """(..., C) → (..., V) logits."""
        ...


class Trunk(nn.Module):
    """Bidirectional blocks over positions, the mask symbol where nothing is revealed."""

    compiled: Callable[[Trunk, Tensor, Tensor | None], Tensor] | None = None
    """`hidden` for passes without gradients, where `modes.prepare` has compiled it."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.pairs = config.width // config.heads // 2
        self.embed = nn.Embedding(config.vocab_size + 1, config.width)
        self.blocks = Blocks(
            config.trunk_layers, config.width, config.heads, config.hidden, config.dropout
        )
        self.norm = RMSNorm(config.width, eps=1e-6)
        self.unembed = (
            None if config.tie_embeddings else Linear(config.width, config.vocab_size, bias=False)
        )
        self.vocab_size = config.vocab_size
        self._unembedding = PackedWeight()  # of tied embeddings

    def forward(
        self, tokens: Int64[Tensor, "rows length"], lengths: Int64[Tensor, "rows"] | None = None
    ) -> Float[Tensor, "rows length width"]:
        """Hidden states of one trunk pass; positions at or beyond `lengths` are not attended to.

        At unit mean square: the residual stream grows to a hundred times the embeddings, and would
        drown the token in what the head reads and the head's correction in what it adds to.
        """
        mask = padding_mask(tokens.shape[1], lengths, tokens.device)
        if self.compiled is not None and not torch.is_grad_enabled():
            return self.compiled(self, tokens, mask)
        return self.hidden(tokens, mask)

    def hidden(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L) tokens, mask of `padding_mask` → (B, L, C): the pass itself, which looks at no
        number, so that it can be one graph."""
        by = row_turns(tokens.shape[1], self.pairs, tokens.device)
        x = self.embed(tokens).to(self.norm.weight.dtype)  # the blocks', which may be bfloat16
        for block in self.blocks:
            x = block(x, by, mask)
        return unit(x)

    def symbols(self, normed: Tensor) -> Tensor:
        """Normalised (..., C) → (..., V) logits. The mask has no logit, so it is never drawn."""
        normed = normed.to(self.embed.weight.dtype)  # float32 where the blocks are in bfloat16
        if self.unembed is not None:
            return self.unembed(normed)
        return self._unembedding.linear(normed, self.embed.weight[: self.vocab_size])


# --------------------------------------------------------------------------------------- network


LOW_RANK = ".lora_"
"""In the name of a weight that peft put beside a pretrained one."""


def is_new(name: str) -> bool:
    """Whether a weight, by its name, is new on a pretrained trunk."""
    return name.startswith(("head.", "trunk.draft.")) or LOW_RANK in name


def named_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with each shared tensor once, under its first name."""
    names: dict[int, str] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}


class DraftNetwork(nn.Module):
    """A trunk alone: it drafts, and nothing verifies. `config` says what it is made of."""

    config: Any
    trunk: Any  # a module that is a TrunkModule
    rounded: str | None = None
    """What `modes.prepare` has rounded the weights to; such a network is not saved."""

    def __init__(
        self,
        trunk: nn.Module,
        *,
        config: Any,
        vocab_size: int,
        mask_id: int,
        length: int,
        trunk_layers: int,
    ) -> None:
        super().__init__()
        self.config, self.trunk = config, trunk
        self.vocab_size, self.mask_id, self.length = vocab_size, mask_id, length
        self.trunk_layers, self.head_layers = trunk_layers, 0

    def freeze_trunk(self) -> None:
        """Leave the trunk as it is: what stays to be trained is new on it."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_new(name))

    def checkpoint_activations(self) -> None:
        """Keep each block's input alone for the backward pass, which computes the rest again.

        Loss and gradients are the same; a step needs far less memory and up to a third more time.

        Raises:
            UserError: a pretrained trunk that is trained and cannot do it.
        """
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True
        if (pretrained := getattr(self.trunk, "checkpoint_activations", None)) is not None:
            pretrained()

    def own_state(self) -> dict[str, Tensor]:
        """The weights that are ours to save: all but those of a frozen pretrained trunk."""
        state = named_once(self.state_dict(keep_vars=True))
        if getattr(self.trunk, "frozen", False):
            state = {name: tensor for name, tensor in state.items() if is_new(name)}
        return state

    def features(
        self,
        masked: Tensor,
        tokens: Tensor,
        order: Tensor,
        lengths: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `HybridNetwork.features`, without a target."""
        hidden = gather(self.trunk(masked, lengths), order)
        return self.trunk.norm(hidden if scored is None else pick(hidden, scored)), None

    def logits(self, features: Tensor) -> Tensor:
        """(..., C) normalised features → (..., V) logits."""
        return self.trunk.symbols(features)

    def draft_features(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """(B, L, C), (B, K) → (B, K, C), which `logits` unembeds."""
        return self.trunk.norm(gather(hidden, positions))

    def draft_logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """(B, L, C), (B, K) → (B, K, V): unembedding at the asked positions only."""
        return self.logits(self.draft_features(hidden, positions))


class HybridNetwork(DraftNetwork):
    """A trunk that drafts and a causal head that verifies: one network, two laws."""

    def __init__(
        self,
        trunk: nn.Module,
        head: Head,
        *,
        config: Any,
        vocab_size: int,
        mask_id: int,
        length: int,
        trunk_layers: int,
    ) -> None:
        super().__init__(
            trunk,
            config=config,
            vocab_size=vocab_size,
            mask_id=mask_id,
            length=length,
            trunk_layers=trunk_layers,
        )
        self.head = head
        self.head_layers = len(head.blocks)

    # ------------------------------------------------------------------------------ training

    def features(
        self,
        masked: Tensor,
        tokens: Tensor,
        order: Tensor,
        lengths: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both laws' normalised features at every rank, the head fed real tokens (method.md §3).

        Args:
            masked: (B, L) the trunk's input. tokens: (B, L) the real row. order: (B, L) σ.
            lengths: (B,) or None for rows of full length.
            scored: (2, n) rows and ranks that are asked for, each once, or None for all.

        Returns:
            draft and target features, each (B, L, C) in rank order, or (n, C); `logits` turns them
            into logits, at as many ranks as the caller needs.
        """
        hidden = gather(self.trunk(masked, lengths), order)
        # Padding stands at the last ranks, so the causal mask hides it from every real track.
        tracks = self.head.all_tracks(
            *(tokens.gather(1, order), self.trunk.embed, max(self.vocab_size, self.mask_id + 1)),
            *(hidden, order),
        )
        x, last = tracks.x, self.head_layers - 1
        for layer, block in enumerate(self.head.blocks):
            # Of the ranks that are known, only keys and values matter to the last block.
            at = scored if layer == last else None
            x = block(x, tracks.turn_keys, None, tracks.turn_queries, causal=True, at=at)
        here = hidden if scored is None else pick(hidden, scored)
        return self.trunk.norm(here), self.head.predict(x, here)

    # ------------------------------------------------------------------------------ sampling

    def prefix(
        self, hidden: Tensor, tokens: Tensor, order: Tensor, revealed: Tensor
    ) -> HybridPrefix:
        """Keys and values of the tracks of ranks < revealed, once per trunk pass."""
        rows = torch.arange(len(hidden), device=hidden.device)
        prefix = HybridPrefix(gather(hidden, order), order, [], [], rows)
        if known := int(revealed.max()):
            ranks = torch.arange(known, device=hidden.device).expand(len(rows), known)
            self.head.remember(prefix, ranks, *self._tracks(prefix, ranks, tokens.gather(1, order)))
        return prefix

    def target_features(
        self,
        prefix: HybridPrefix,
        ranks: Int64[Tensor, "rows ranks"],
        drafts: Int64[Tensor, "rows length"],
    ) -> Float[Tensor, "rows ranks width"]:
        """What `logits` unembeds, of the window's tracks alone; see `Verifier.verify`."""
        embedded, mask = self._tracks(prefix, ranks, drafts)
        # Where nothing is revealed yet there is nothing to store into, and it is made eagerly.
        if self.head.compiled is None or torch.is_grad_enabled() or not prefix.keys:
            return self.head.window(prefix, ranks, embedded, mask)
        return self.head.compiled(self.head, prefix, ranks, embedded, mask)

    def verify(
        self,
        prefix: HybridPrefix,
        ranks: Int64[Tensor, "rows ranks"],
        drafts: Int64[Tensor, "rows length"],
    ) -> Float[Tensor, "rows ranks vocab"]:
        """Target logits of the window's tracks alone; see `Verifier.verify`."""
        return self.logits(self.target_features(prefix, ranks, drafts))

    def _tracks(
        self, prefix: HybridPrefix, ranks: Tensor, drafts: Tensor
    ) -> tuple[Float[Tensor, "rows ranks width"], Bool[Tensor, "rows 1 ranks reach"]]:
        """What the tracks of (B, K) ranks read: the embedded token of the rank before, and which
        ranks they see."""
        before = (ranks.clamp(max=drafts.shape[1] - 1) - 1).clamp(min=0)
        embedded = self.trunk.embed(drafts.gather(1, before)).to(prefix.hidden.dtype)
        # A row's first rank is at most the reach, so nobody need look how far they go.
        prefix.reach = min(prefix.reach + ranks.shape[1], drafts.shape[1])
        seen = torch.arange(prefix.reach, device=ranks.device) <= ranks[..., None]
        return embedded, seen[:, None]


class HybridTransformer(HybridNetwork):
    """The paper's network: one transformer, trained from scratch, with both laws.

    At initialisation the head's output is zero, so with the residual the target equals the draft.
    """

    config: HybridConfig
    trunk: Trunk

    def __init__(self, config: HybridConfig) -> None:
        if config.head_layers == 0:
            raise UserError(
                "head_layers=0: a HybridTransformer has a causal head; expected at least 1, or "
                "PlainTransformer, which has none"
            )
        super().__init__(
            Trunk(config),
            Head(
                *(config.width, config.heads, config.head_layers, config.hidden),
                residual=config.residual,
                dropout=config.dropout,
            ),
            config=config,
            vocab_size=config.vocab_size,
            mask_id=config.vocab_size,
            length=config.length,
            trunk_layers=config.trunk_layers,
        )
        initialise(self, depth=config.trunk_layers + config.head_layers)


class PlainTransformer(DraftNetwork):
    """Masked diffusion as it is without the paper: all blocks draft, and nothing verifies."""

    config: HybridConfig
    trunk: Trunk

    def __init__(self, config: HybridConfig) -> None:
        if config.head_layers != 0:
            raise UserError(f"head_layers={config.head_layers}: a PlainTransformer has none")
        super().__init__(
            Trunk(config),
            config=config,
            vocab_size=config.vocab_size,
            mask_id=config.vocab_size,
            length=config.length,
            trunk_layers=config.trunk_layers,
        )
        initialise(self, depth=config.trunk_layers)


def build(config: HybridConfig) -> HybridTransformer | PlainTransformer:
    """A fresh network of these sizes, with a head if they have one."""
    return HybridTransformer(config) if config.head_layers else PlainTransformer(config)


def initialise(module: nn.Module, depth: int) -> None:
    """Fresh weights for the trunk's and head's parts in a module; `depth` blocks stand in a row."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
    for part in module.modules():
        if isinstance(part, Head):
            nn.init.normal_(part.start, std=0.02)
    # Residual branches start small, so that depth does not grow the variance (GPT-2).
    for part in module.modules():
        if isinstance(part, Block):
            nn.init.normal_(part.attention_out.weight, std=0.02 / (2 * depth) ** 0.5)
            nn.init.normal_(part.mlp_out.weight, std=0.02 / (2 * depth) ** 0.5)
    for part in module.modules():
        if isinstance(part, Head) and part.residual:
            nn.init.zeros_(part.out.weight)
