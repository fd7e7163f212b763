"""Commands, and what every refusal of bad input owes its reader."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specmask import UserError, cli


def refuse(action: Callable[[], object], *expected: str) -> None:
    """`action` raises a UserError of one line that holds all the `expected` words."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 500
    for word in expected:
        assert word in message


def command(*argv: object) -> int:
    """Exit code of `specmask ARGV`; tyro leaves by SystemExit."""
    try:
        return cli.main([str(word) for word in argv])
    except SystemExit as leaving:
        return int(leaving.code or 0)


Refused = Callable[..., str]
"""Runs a command that must fail, and returns what it said; see `conftest.refused`."""
