"""Checks that every floor needs: whole numbers, devices, packages; before any work is done."""

from __future__ import annotations

import importlib
import operator
import resource
import sys
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from specmask.errors import UserError


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is a whole number from `low` to `high`.

    Raises:
        UserError: it is not.
    """
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = operator.index(value)  # takes NumPy's and torch's integers, no float
    except (TypeError, RuntimeError):
        raise UserError(f"{name}={value!r}: expected a whole number, {wanted}") from None
    if number < low or (high is not None and number > high):
        raise UserError(f"{name}={number}: expected a whole number, {wanted}")
    return number


def is_number(value: Any) -> bool:
    """Whether a setting is a real number; NumPy's count, True and False do not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_seed(seed: Any) -> int:
    """A seed names all random numbers of a call: 0 ≤ seed < 2⁶⁴."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise UserError(f"seed={seed!r}: expected a whole number, 0 <= seed < 2**64")
    return seed


def check_device(device: str | torch.device) -> None:
    """Raise UserError for a device on which torch cannot compute here."""
    try:  # a tensor alone proves nothing: meta makes those too
        (torch.ones(1, device=device) + 1).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"device {device}: torch cannot compute there ({reason})") from None


def optional_package(name: str, who: str, extra: str | None = "pretrained") -> Any:
    """A package, or a module of one, that only some inputs need; `who` needs it.

    `extra` names the extra of ours that has it; None is for a package that none has.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        install = package if extra is None else f"'specmask[{extra}]'"
        raise UserError(f"{who} the package {package}: pip install {install}") from None


def optional(name: str, value: Any, kind: type, way: str) -> None:
    """Raise UserError for a value that is neither None nor of a kind; `way` says how to get one."""
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name}={value!r}: expected {way}")


def whole_numbers(
    name: str,
    values: Iterable[int] | Tensor,
    count: int,
    low: int,
    high: Tensor | int,
    device: torch.device,
) -> Int64[Tensor, "count"]:
    """One whole number per row, each from `low` to `high` (a number, or one per row).

    Raises:
        UserError: another count, fractions, or a number out of range.
    """
    highest = int(high.max()) if isinstance(high, Tensor) else high
    wanted = f"expected {count} whole numbers from {low} to {highest}"
    try:
        listed = values if isinstance(values, Tensor) else torch.tensor(list(values))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name}={values!r}: {wanted}") from None
    fractions = listed.is_floating_point() and listed.numel() > 0  # an empty list is float
    if fractions or listed.is_complex() or listed.dtype == torch.bool or listed.shape != (count,):
        raise UserError(f"{name}={_short(listed)}: {wanted}")
    numbers = listed.to(device).long()
    if bool(((numbers < low) | (numbers > high)).any()):
        raise UserError(f"{name}={_short(listed)}: {wanted}")
    return numbers


def token_rows(name: str, tokens: Any, longest: int) -> Int64[Tensor, "rows length"]:
    """(B, L) whole numbers, 1 ≤ L ≤ `longest`.

    Raises:
        UserError: no tensor, another shape or type, no rows, or rows that are too long.
    """
    if not isinstance(tokens, Tensor):
        raise UserError(
            f"{name} is a {type(tokens).__name__}: expected a tensor of whole numbers of shape "
            "(rows, length)"
        )
    whole_type = not (tokens.is_floating_point() or tokens.is_complex())
    if tokens.ndim != 2 or not whole_type or tokens.dtype == torch.bool or not tokens.numel():
        raise UserError(
            f"{name} of shape {tuple(tokens.shape)} and type {tokens.dtype}: expected whole "
            "numbers of shape (rows, length)"
        )
    if tokens.shape[1] > longest:
        raise UserError(
            f"{name} has rows of {tokens.shape[1]} tokens: the model takes at most {longest}"
        )
    return tokens.long()


def _short(values: Tensor) -> str:
    numbers = values.flatten().tolist()
    shown = ", ".join(str(number) for number in numbers[:8])
    return f"[{shown}, …]" if len(numbers) > 8 else f"[{shown}]"


def peak_memory() -> int:
    """Bytes this process has had at most: of the GPU, where it used one, or else of memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
