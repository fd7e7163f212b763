"""What every refusal of bad input owes its reader."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specmask import UserError


def refuse(action: Callable[[], object], *expected: str) -> None:
    """`action` raises a UserError of one line that holds all the `expected` words."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 500
    for word in expected:
        assert word in message
