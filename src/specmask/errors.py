"""Errors a user can cause and mend: one line, what was got, what was expected, the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
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


def exit_code(command: Callable[[], object]) -> int:
    """Run a command; what went wrong is one line on stderr.

    Returns:
        0 done, 2 bad input, 130 interrupted, 141 nobody reads on.
    """
    try:
        command()
    except UserError as error:
        print(f"specmask: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read us has enough, as `head` does: no error, and no word
        return 128 + 13  # what a shell reports of a program that SIGPIPE ended
    except OSError as error:  # a full disk, a folder without permission, a file in the way
        print(f"specmask: {error.strerror or error}: {error.filename or 'output'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("specmask: interrupted", file=sys.stderr)
        return 130
    return 0
