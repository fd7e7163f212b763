"""Errors a user can cause and mend: one line, what was got, what was expected, the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The command line prints the message alone and exits with code 2."""


def unknown(kind: str, got: str, choices: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest name that is.

    >>> str(unknown("window", "cosin", ["cosine", "full"]))
    "unknown window 'cosin': expected one of cosine, full. Did you mean 'cosine'?"
    """
    names = sorted(choices)
    close = get_close_matches(got, names, n=1)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {got!r}: expected one of {', '.join(names)}{hint}")


def first_line(error: BaseException) -> str:
    """The first line of what another library said, or the kind of its error if it said nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
