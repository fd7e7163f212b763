"""Options and settings of the whole suite."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--gpu", action="store_true", help="also run the tests marked gpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for name, reason in (("slow", "needs --slow"), ("gpu", "needs --gpu and a CUDA device")):
        wanted = config.getoption(f"--{name}")
        if wanted and (name != "gpu" or torch.cuda.is_available()):
            continue
        for item in items:
            if name in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Networks made in a test have the same weights in every run and in every order of tests."""
    torch.manual_seed(0)
