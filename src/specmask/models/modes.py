"""Ways to run a network that is not trained any more: bfloat16, compiled, int8.

What is promised to the last bit elsewhere, that a row's tokens do not depend on the rows beside it,
is promised of an eager float32 network on a CPU alone. bfloat16 and compiled products may round a
row in another way in a batch of another size; draws, acceptance and laws are float64 in every mode,
of the logits that the mode gives.
"""

from __future__ import annotations

import logging
import shutil
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specmask.errors import UserError, first_line, unknown
from specmask.models.head import Head, HybridPrefix
from specmask.models.hybrid import LOW_RANK, DraftNetwork, HybridNetwork, Trunk
from specmask.models.linear import Int8Linear

DTYPES = ("float32", "bfloat16")
COMPILE = (False, True, "graphs")
QUANTIZE = ("int8",)

Compile = bool | Literal["graphs"]
"""False, True, or "graphs": compiled, and played back as CUDA graphs."""

COMPILES = "the first pass of every kind is compiled, which takes a while (up to minutes)"
"""What to tell people before they wait; kinds are few, whatever the numbers of rows."""

_log = logging.getLogger(__name__)


def check_modes(
    device: str | torch.device = "cpu",
    *,
    dtype: str = "float32",
    compile: Compile = False,
    quantize: str | None = None,
) -> None:
    """Raise UserError for modes that there are not, or not on this device or not together."""
    kind = torch.device(device).type
    if dtype not in DTYPES:
        raise unknown("dtype", str(dtype), DTYPES)
    if compile not in COMPILE:
        raise unknown("compile", str(compile), map(str, COMPILE))
    if quantize is not None and quantize not in QUANTIZE:
        raise unknown("quantize", str(quantize), QUANTIZE)
    if quantize is not None:
        if kind != "cpu":
            raise UserError(
                f"quantize={quantize!r} on {kind}: its products are made for CPUs alone; use "
                "dtype='bfloat16' there, or device='cpu'"
            )
        for name, value, plain in (("dtype", dtype, "float32"), ("compile", compile, False)):
            if value != plain:
                raise UserError(
                    f"quantize={quantize!r} with {name}={value!r}: the int8 products run eagerly, "
                    "from and to float32; leave one of the two out"
                )
    if compile == "graphs" and kind != "cuda":
        raise UserError(
            f"compile='graphs' on {kind}: CUDA graphs need a CUDA device; use compile=True"
        )
    if compile:
        _check_compiler(kind)


def prepare(
    network: DraftNetwork,
    *,
    dtype: str = "float32",
    compile: Compile = False,
    quantize: str | None = None,
) -> DraftNetwork:
    """The network made ready to sample and score in a mode, in place; put it on its device before.

    Args:
        network: in float32. It is put in eval mode.
        dtype: "bfloat16" rounds all weights but the embedding and the unembedding, and computes
            hidden states in bfloat16: half the memory, and faster where the machine has such
            products. Features are unembedded in float32, so logits have no coarser steps than the
            features themselves.
        compile: True compiles passes without gradients with `torch.compile`. The trunk is one
            graph for all numbers of rows, made once for a single row and once for more, with and
            without padding, and for a new length; a verify pass is one for all windows, made once
            for a single row and once for more. Of a pretrained trunk the model's own pass is
            compiled, and what of it is no graph runs as it is. "graphs" (CUDA, mode
            "reduce-overhead", not on a pretrained trunk) also records CUDA graphs of trunk passes,
            one for each power of two of rows, to which rows are padded: meant for passes so short
            that launching kernels takes the time; no speed of it is measured here. The first pass
            of each kind takes long, told at level INFO of logging before.
        quantize: "int8" (CPU) rounds the weights of the trunk's linear maps to 8 bits, by output
            channel, and their inputs anew in each pass, by row and position, so that no row's
            numbers depend on another's. Head, embedding and unembedding stay float32. It is no
            faster at 160 channels (docs/performance/modes.md).

    bfloat16 and int8 are lossy: samples and laws are those of another network nearby. On 8 rows of
    128 that a network of 6 + 1 layers drew, int8 moves its exact bits per character by +0.0014
    (draft) and +0.0010 (target), bfloat16 by 0.0002 (docs/performance/modes.md, by
    `specmask.bench.modes`).

    Returns:
        The network.

    Raises:
        UserError: see `check_modes`; a network of somebody else's; one that is prepared already or
            not in float32; a pretrained trunk that is to be recorded as graphs, or has low-rank
            updates and is to be int8.
    """
    if not isinstance(network, DraftNetwork):
        raise UserError(
            f"{type(network).__name__}: expected a HybridTransformer or a network on a pretrained "
            "trunk; others are cast and compiled by their own means"
        )
    first = next(network.parameters())
    check_modes(first.device, dtype=dtype, compile=compile, quantize=quantize)
    _check_network(network, first.dtype, dtype, compile, quantize)
    network.eval()
    if dtype == "bfloat16":
        _to_bfloat16(network)
    if quantize == "int8":
        for part in _blocks(network.trunk):
            _to_int8(part)
    if compile:
        own = isinstance(network.trunk, Trunk)
        network.trunk.compiled = CompiledPass(compile == "graphs") if own else CompiledBackbone()
        if isinstance(network, HybridNetwork):
            network.head.compiled = CompiledWindow()
        _log.info(COMPILES)
    network.rounded = quantize or (dtype if dtype != "float32" else None)
    return network


def _check_network(
    network: DraftNetwork, own: torch.dtype, dtype: str, compile: Compile, quantize: str | None
) -> None:
    if (dtype, bool(compile), quantize) == ("float32", False, None):
        return
    if network.rounded or getattr(network.trunk, "compiled", None) is not None:
        raise UserError("the network is prepared already: load it again to choose another mode")
    if (dtype != "float32" or quantize) and own != torch.float32:
        raise UserError(f"the network is in {own}: expected float32; call network.float() first")
    if compile == "graphs" and not isinstance(network.trunk, Trunk):
        raise UserError(
            "compile='graphs' on a pretrained trunk: its passes are code of Transformers, which "
            "may not be one graph to record; use compile=True"
        )
    if quantize and any(LOW_RANK in name for name, _ in network.named_parameters()):
        raise UserError(
            f"quantize={quantize!r} with low-rank updates (LoRA): peft needs the weights beside "
            "them as they are; use dtype='bfloat16', or leave quantize out"
        )


def _blocks(trunk: nn.Module) -> list[nn.Module]:
    """The trunk without its embedding and its unembedding."""
    if isinstance(trunk, Trunk):
        return [trunk.blocks]
    return [part for part in (trunk.backbone, trunk.draft) if isinstance(part, nn.Module)]


# -------------------------------------------------------------------------------------- bfloat16


class InFloat32(nn.Module):
    """A pretrained model's prediction head, which computes in float32 whatever it is given."""

    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, K, C) → (B, K, V)."""
        result: Tensor = self.predictor(hidden.float())
        return result


def _to_bfloat16(network: DraftNetwork) -> None:
    trunk: Any = network.trunk
    if isinstance(trunk, Trunk):
        parts = [trunk.blocks, trunk.norm]
    else:  # the prediction head may share its matrix with the embedding, which is rounded
        trunk.predictor = InFloat32(deepcopy(trunk.predictor))
        parts = [*_blocks(trunk), trunk.embedding]
    for part in (*parts, getattr(network, "head", nn.Identity())):
        for weight in part.parameters():  # no buffers: they hold angles of positions
            weight.data = weight.data.to(torch.bfloat16)


# ------------------------------------------------------------------------------------------ int8


def _to_int8(module: nn.Module) -> None:
    """Replace every linear map inside a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _to_int8(child)


# -------------------------------------------------------------------------------------- compiled


class CompiledPass:
    """A trunk pass through `torch.compile`: (trunk, (B, L) tokens, mask or None) → (B, L, C).

    The trunk is an argument, so that a copy of a network computes with its own weights.
    """

    def __init__(self, graphs: bool = False) -> None:
        self.graphs = graphs
        self._run = torch.compile(
            Trunk.hidden, fullgraph=True, mode="reduce-overhead" if graphs else None
        )

    def __call__(self, trunk: Trunk, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Hidden states, as `Trunk.hidden`."""
        rows = len(tokens)
        if self.graphs:  # a graph is recorded for every number of rows: let these be few
            more = (1 << (rows - 1).bit_length()) - rows
            tokens, mask = _pad_rows(tokens, more), None if mask is None else _pad_rows(mask, more)
        else:
            tokens = tokens.clone()  # a mark stays on its tensor
        # One row is a kind of its own to the compiler; all other numbers share a graph.
        if len(tokens) > 1:
            for given in (tokens, mask):
                if given is not None:
                    torch._dynamo.mark_dynamic(given, 0)
        # The limit is one for all networks of a process, and beyond it there is no eager way here.
        with torch._dynamo.config.patch(recompile_limit=64):
            if not self.graphs:
                return self._run(trunk, tokens, mask)
            torch.compiler.cudagraph_mark_step_begin()
            return self._run(trunk, tokens, mask)[:rows].clone()  # the next pass writes there

    def __reduce__(self) -> tuple[type[CompiledPass], tuple[bool]]:
        return CompiledPass, (self.graphs,)  # compiled code is neither copied nor saved


class CompiledWindow:
    """A verify pass through `torch.compile`: the arguments and result of `Head.window`.

    One graph for a single row and one for more, whatever the width of the window and how much is
    revealed.
    """

    def __init__(self) -> None:
        self._run = torch.compile(Head.window, fullgraph=True)

    def __call__(
        self, head: Head, prefix: HybridPrefix, ranks: Tensor, embedded: Tensor, mask: Tensor
    ) -> Tensor:
        """Features (B, K, C), as `Head.window`."""
        width, ranks = ranks.shape[1], ranks.contiguous()  # other strides are another kind
        if width == 1:  # would be a kind of its own
            ranks = F.pad(ranks, (0, 1), value=prefix.order.shape[1])
            embedded, mask = F.pad(embedded, (0, 0, 0, 1)), F.pad(mask, (0, 0, 0, 1), value=True)
        rows = () if len(ranks) == 1 else (0,)
        for given, axes in (
            *((ranks, (1,)), (embedded, (1,)), (mask, (2, 3))),
            *((kept, ()) for kept in (prefix.hidden, prefix.order, *prefix.keys, *prefix.values)),
        ):
            for axis in (*rows, *axes):
                torch._dynamo.maybe_mark_dynamic(given, axis)
        with torch._dynamo.config.patch(recompile_limit=64):
            return self._run(head, prefix, ranks, embedded, mask)[:, :width]

    def __reduce__(self) -> tuple[type[CompiledWindow], tuple[()]]:
        return CompiledWindow, ()


class CompiledBackbone:
    """A pretrained model's pass through `torch.compile`: (model, its arguments) → its output.

    The code is somebody else's: what of it is no graph runs as it is.
    """

    def __init__(self) -> None:
        self._run = torch.compile(nn.Module.__call__)

    def __call__(
        self, backbone: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, **settings: Any
    ) -> Any:
        """The output for (B, L) ids and a mask of B rows, as the model's own."""
        if len(input_ids) > 1:  # a single row is a kind of its own
            for given in (input_ids, attention_mask):
                torch._dynamo.maybe_mark_dynamic(given, 0)
        with torch._dynamo.config.patch(recompile_limit=64):
            return self._run(
                backbone, input_ids=input_ids, attention_mask=attention_mask, **settings
            )

    def __reduce__(self) -> tuple[type[CompiledBackbone], tuple[()]]:
        return CompiledBackbone, ()


def _pad_rows(x: Tensor, more: int) -> Tensor:
    """(B, ...) with its first row `more` times again at the end; always a copy."""
    return torch.cat((x, x[:1].expand(more, *x.shape[1:])))


def _check_compiler(kind: str) -> None:
    """Raise UserError where `torch.compile` lacks what it builds code with."""
    if kind not in ("cpu", "cuda"):
        raise UserError(f"compile on {kind}: expected device cpu or cuda; leave compile out")
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(
            f"compile needs a C++ compiler, and there is none ({first_line(error)}): install g++ "
            "or clang++, name it in the variable CXX, or leave compile out"
        ) from None
    if kind == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton() or not any(map(shutil.which, ("cc", "gcc", "clang"))):
            raise UserError(
                "compile on cuda needs Triton and a C compiler, and one is missing: pip install "
                "triton, install gcc, or leave compile out"
            )
