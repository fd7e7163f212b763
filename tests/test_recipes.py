"""Recipes: the sizes they promise, and that each says how it is run."""

from __future__ import annotations

import inspect

import pytest
import torch

from specmask.errors import UserError
from specmask.models.hybrid import HybridTransformer
from specmask.recipes import RECIPES, recipe

PARAMETERS = {
    "text8-small": 15_664_640,
    "text8": 143_960_064,
    "openwebtext": 154_225_152,
    "prose-small": 3_148_608,
    "characters": 2_050_720,  # at the 256 symbols that stand for those of the file
}


def parameters(name: str) -> int:
    """Counted on the meta device, where a network of any size costs nothing."""
    with torch.device("meta"):
        network = HybridTransformer(recipe(name).network)
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_recipe_has_a_count() -> None:
    assert PARAMETERS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_parameters(name: str) -> None:
    assert parameters(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["text8", "openwebtext"])
def test_the_papers_networks_have_about_150_million_parameters(name: str) -> None:
    network = recipe(name).network
    assert parameters(name) == pytest.approx(150e6, rel=0.08)
    assert (network.trunk_layers, network.head_layers, network.width) == (11, 1, 768)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_docstring_states_command_and_time(name: str) -> None:
    said = inspect.getdoc(RECIPES[name]) or ""
    assert f"Command: specmask train {name} --" in said
    assert "Time: " in said


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_docstring_states_the_count(name: str) -> None:
    """In its first line, to the digits that it gives."""
    said = (inspect.getdoc(RECIPES[name]) or "").split("\n\n")[0].split()
    number = said[said.index("M") - 1]
    digits = len(number.partition(".")[2])
    assert number == f"{parameters(name) / 1e6:.{digits}f}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_by_its_name(name: str) -> None:
    plan = recipe(name)
    assert plan.name == name
    assert plan.corpus in ("text8", "characters", "subwords")
    assert plan.corpus != "text8" or plan.network.vocab_size == 27


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'text8-small'"):
        recipe("text8-smal")
