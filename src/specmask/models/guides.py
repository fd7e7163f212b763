"""Small networks beside the model that tell a sampler where to look, and their folders."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specmask.checks import whole
from specmask.errors import UserError, first_line
from specmask.models.blocks import Blocks, RMSNorm, padding_mask, row_turns, unit
from specmask.models.checkpoint import CONFIG, WEIGHTS, file_sha256, write_folder
from specmask.models.protocol import Denoiser


@dataclass(frozen=True)
class PolicyConfig:
    """Sizes of an `UnmaskingPolicy`; published: one block, 128 wide, 2 heads, 300 k parameters."""

    width: int = 128
    """Channels, a multiple of 2·heads."""
    heads: int = 2
    """Attention heads."""
    mlp_hidden: int = 512
    """Channels inside the gated MLP."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "mlp_hidden"):
            whole(name, getattr(self, name), 1)
        if self.width % (2 * self.heads):
            raise UserError(
                f"width={self.width}, heads={self.heads}: expected a multiple of {2 * self.heads}"
            )


@dataclass(frozen=True)
class ErrorHeadConfig:
    """Sizes of an `ErrorHead`: one block at the width of the hidden states it reads."""

    hidden: int
    """Channels of the trunk's hidden states."""
    heads: int = 4
    """Attention heads."""
    mlp_hidden: int = 512
    """Channels inside the gated MLP."""

    def __post_init__(self) -> None:
        for name in ("hidden", "heads", "mlp_hidden"):
            whole(name, getattr(self, name), 1)
        if self.hidden % (2 * self.heads):
            raise UserError(
                f"hidden={self.hidden}, heads={self.heads}: expected a multiple of {2 * self.heads}"
            )


class Guide(nn.Module):
    """What guides share: a config, and the name of the folder they came from."""

    kind: ClassVar[str]
    config_type: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = self.kind

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def layers_of(self, network: Denoiser) -> float:
        """What a pass costs, in layers of the network: by parameters, all but its embeddings.

        A network that is no torch module counts a whole layer.
        """
        if not isinstance(network, nn.Module):
            return 1.0
        tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
        size = sum(p.numel() for p in network.parameters() if id(p) not in tables)
        own = sum(p.numel() for p in self.parameters())
        return own / size * (network.trunk_layers + network.head_layers)


class UnmaskingPolicy(Guide):
    """Which masked positions to reveal, from the draft's confidence alone (arXiv 2512.09106).

    One transformer block reads, at every position, the largest probability of the draft (1 where a
    token is known), whether it is masked, and the share of the row that is; it gives a logit.
    """

    kind = "unmasking-policy"
    config_type = PolicyConfig

    def __init__(self, config: PolicyConfig | None = None) -> None:
        config = PolicyConfig() if config is None else config
        super().__init__(config)
        self.read = nn.Linear(3, config.width)
        self.blocks = Blocks(1, config.width, config.heads, config.mlp_hidden)
        self.norm = RMSNorm(config.width, eps=1e-6)
        self.logit = nn.Linear(config.width, 1)
        # Half of the masked positions at first; what differs between them is to be learned.
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(
        self,
        confidence: Float[Tensor, "rows length"],
        masked: Bool[Tensor, "rows length"],
        lengths: Tensor,
    ) -> Float[Tensor, "rows length"]:
        """Logits of revealing each position.

        Args:
            confidence: (B, L) in 0..1, of masked positions; others do not matter.
            masked: (B, L). lengths: (B,) tokens of each row; what lies beyond is not read.
        """
        share = masked.sum(1, keepdim=True) / lengths[:, None]
        inputs = torch.stack(
            (torch.where(masked, confidence, 1), masked, share.expand(masked.shape)), -1
        )
        length = masked.shape[1]
        by = row_turns(length, self.config.width // self.config.heads // 2, masked.device)
        x = self.read(inputs.to(self.read.weight.dtype))
        for block in self.blocks:
            x = block(x, by, padding_mask(length, lengths, x.device))
        return self.logit(self.norm(x))[..., 0]


class ErrorHead(Guide):
    """How likely each token of a filled row is wrong (g_φ of G-Star, arXiv 2510.08369).

    One bidirectional block on the frozen trunk's hidden states of the row with all of its tokens
    filled in; it is not told which of them were drawn last. The paper found one block nearly as
    good as a network of twelve.
    """

    kind = "error-head"
    config_type = ErrorHeadConfig

    def __init__(self, config: ErrorHeadConfig) -> None:
        super().__init__(config)
        self.blocks = Blocks(1, config.hidden, config.heads, config.mlp_hidden)
        self.norm = RMSNorm(config.hidden, eps=1e-6)
        self.logit = nn.Linear(config.hidden, 1)
        nn.init.zeros_(self.logit.weight)

    def forward(
        self, hidden: Float[Tensor, "rows length hidden"], lengths: Tensor
    ) -> Float[Tensor, "rows length"]:
        """(B, L, C) hidden states of filled rows of (B,) lengths → logits that a token is wrong."""
        length = hidden.shape[1]
        by = row_turns(length, self.config.hidden // self.config.heads // 2, hidden.device)
        x = unit(hidden.to(self.logit.weight.dtype))
        for block in self.blocks:
            x = block(x, by, padding_mask(length, lengths, x.device))
        return self.logit(self.norm(x))[..., 0]


def hidden_width(network: Denoiser) -> int:
    """Channels of a trunk's hidden states, read off a pass over one token."""
    on = next(iter(network.parameters())).device if isinstance(network, nn.Module) else "cpu"
    with torch.no_grad():
        token = torch.zeros(1, 1, dtype=torch.int64, device=on)
        return network.trunk(token, torch.ones(1, dtype=torch.int64, device=on)).shape[-1]


# ----------------------------------------------------------------------------------------- folders

G = TypeVar("G", bound=Guide)


def save_guide(folder: str | Path, guide: Guide, overwrite: bool = False) -> None:
    """Write a guide's folder: config.json and model.safetensors, whole or not at all.

    Raises:
        UserError: the folder exists; a weight is not finite; the disk is full.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in guide.state_dict().items()}
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{folder}: {name} is not finite: the training went wrong")

    def write_config(path: Path) -> None:
        about = {
            "guide": guide.kind,
            "config": asdict(guide.config),
            "sha256": file_sha256(path.parent / WEIGHTS),
        }
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    files = {WEIGHTS: lambda path: save_file(state, path), CONFIG: write_config}
    write_folder(Path(folder), files, overwrite=overwrite)


def load_guide(folder: str | Path, kind: type[G], device: str | torch.device = "cpu") -> G:
    """A guide of that kind from its folder, in eval mode.

    Raises:
        UserError: no such folder, another kind of guide, a damaged file.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} holds no {CONFIG}: expected the folder of a trained {kind.kind}")
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = about.get("guide")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path / CONFIG} is not a JSON object ({error}): it is damaged") from None
    if found != kind.kind:
        what = "no guide" if found is None else f"guide {found!r}"
        raise UserError(f"{path} holds {what}: expected the folder of a trained {kind.kind}")
    known = {item.name for item in fields(kind.config_type)}
    sizes = about.get("config")
    if not isinstance(sizes, dict) or set(sizes) != known:
        raise UserError(f"{path / CONFIG}: expected a config of {', '.join(sorted(known))}")
    weights = path / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != about.get("sha256"):
        raise UserError(f"{weights} is missing or damaged: copy the folder again")
    guide = kind(kind.config_type(**sizes))
    try:
        guide.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{weights} does not fit its config ({first_line(error)})") from None
    guide.name = path.resolve().name
    return guide.to(device).eval()


def load_policy(folder: str | Path) -> UnmaskingPolicy:
    """An `UnmaskingPolicy` from its folder; see `load_guide`."""
    return load_guide(folder, UnmaskingPolicy)


def load_error_head(folder: str | Path) -> ErrorHead:
    """An `ErrorHead` from its folder; see `load_guide`."""
    return load_guide(folder, ErrorHead)
