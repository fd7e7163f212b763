"""What commands share: settings of tables as options, and options checked before any work."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeAlias,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

import specmask
from specmask.bench.run import show
from specmask.cli.output import say
from specmask.errors import UserError, unknown
from specmask.models.modes import COMPILES
from specmask.samplers import SAMPLERS, make_sampler
from specmask.samplers.table import WORDS
from specmask.training.config import TrainConfig


def _field_docs(owner: type) -> dict[str, str]:
    """The string that stands below each field of a dataclass, as one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    assert isinstance(tree.body[0], ast.ClassDef)
    body, docs = tree.body[0].body, {}
    for above, below in itertools.pairwise(body):
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr):
            name, text = ast.unparse(above.target), ast.literal_eval(below.value)
            docs[name] = " ".join(text.split())
    return docs


def optional(tables: dict[str, type], skip: frozenset[str] = frozenset()) -> list[Any]:
    """One optional field for every setting that any of the dataclasses has.

    So a sampler that is added to `SAMPLERS` has its settings on the command line at once. A table
    without a name is one that a recipe fills: its own defaults do not hold, and are not told.
    """
    types: dict[str, Any] = {}
    helps: dict[str, list[str]] = {}
    for name, owner in tables.items():
        hints, docs = get_type_hints(owner), _field_docs(owner)
        for item in fields(owner):
            if item.name in skip:
                continue
            hint = hints[item.name]
            word = item.name in WORDS or get_origin(hint) is Literal
            types.setdefault(item.name, str if word else hint)
            default = "" if item.default is MISSING else f" [{show(item.default)}]"
            prefix = f"{name}{default}: " if name else ""
            helps.setdefault(item.name, []).append(f"{prefix}{docs[item.name]}")
    return [
        (name, Annotated[kind | None, _option(kind, helps[name])], field(default=None))
        for name, kind in types.items()
    ]


def _option(kind: Any, helps: list[str]) -> Any:
    """How an optional setting shows in --help: its kind and its tables' defaults, not None."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    name = (kinds[0] if kinds and get_origin(kind) is not tuple else kind).__name__.upper()
    text = "\n".join(dict.fromkeys(helps))
    return tyro.conf.arg(metavar=name, help=text, help_behavior_hint="")


SAMPLER_DEFAULT_HELP = tyro.conf.arg(
    help=f"One of: {', '.join(SAMPLERS)}. Without it and without any setting, what specmask tune "
    "has saved with the model; else speculative, or ancestral for a model without a causal head.",
    help_behavior_hint="",
)

if TYPE_CHECKING:
    SamplerOptions: TypeAlias = Any
else:
    SamplerOptions = make_dataclass("SamplerOptions", optional(SAMPLERS), frozen=True)


@dataclass(frozen=True)
class ModeOptions:
    """How the network runs, as `specmask.load` takes it."""

    dtype: str = "float32"
    """float32, or bfloat16: rounded weights, half the memory, faster where the machine has it."""
    compile: str = "False"
    """True compiles passes, which first takes a while; graphs (CUDA) also records the trunk's."""
    quantize: str | None = None
    """int8 (CPU): 8-bit products in the trunk; lossy, and at 160 channels no
    faster (docs/performance/modes.md)."""

    def settings(self) -> dict[str, Any]:
        """As keywords of `specmask.load`, which checks them."""
        compile = {"true": True, "false": False}.get(self.compile.lower(), self.compile)
        return {"dtype": self.dtype, "compile": compile, "quantize": self.quantize}

    def typed(self) -> str:
        """The options that are not at their default, as one types them, each after a space."""
        defaults = {item.name: item.default for item in fields(self)}
        named = {name: value for name, value in vars(self).items() if value != defaults[name]}
        return "".join(f" --{name} {value}" for name, value in named.items())

    def tell(self) -> None:
        """Say that there is a wait ahead, where there is."""
        if self.settings()["compile"]:
            say(f"compile: {COMPILES}")


def given(options: Any) -> dict[str, Any]:
    """The settings that were named on the command line."""
    return {name: value for name, value in vars(options).items() if value is not None}


def train_config(defaults: TrainConfig, options: Any) -> TrainConfig:
    """The settings of a training: the defaults, but for what was named on the command line.

    A short run warms up for a short while, a tenth of its steps at most, unless it says otherwise.

    Raises:
        UserError: a setting out of range.
    """
    settings = given(options)
    if "steps" in settings:
        settings.setdefault("warmup", min(defaults.warmup, max(settings["steps"] // 10, 0)))
    return replace(defaults, **settings)


def build_sampler(name: str, options: Any) -> specmask.samplers.Sampler:
    """The sampler of that name with the options that were given.

    Raises:
        UserError: unknown name; an option of another sampler; a value out of range.
    """
    key = name.replace("-", "_")
    if key not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    settings = given(options)
    own = {item.name for item in fields(SAMPLERS[key])}
    for option in settings:
        if option not in own:
            raise UserError(
                f"{_flag(option)} is not a setting of sampler {name!r}: it has "
                + ", ".join(_flag(one) for one in sorted(own))
            )
    return make_sampler(key, settings)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_out(path: Path | None, overwrite: bool) -> None:
    """Raise UserError where `--out` cannot be written, or not without `--overwrite`."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: expected a file")
    if path.exists() and not overwrite:
        raise UserError(f"--out {path} exists: choose another file or pass --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")


def check_seed(seed: int) -> None:
    """Raise UserError for a `--seed` out of range."""
    if not 0 <= seed < 1 << 64:
        raise UserError(f"--seed {seed}: expected 0 <= seed < 2**64")


def check_least(low: int, **numbers: int | None) -> None:
    """Raise UserError for an option whose number is too small; None was not given."""
    for name, number in numbers.items():
        if number is not None and number < low:
            raise UserError(f"{_flag(name)} {number}: expected at least {low}")
