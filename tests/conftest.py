import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may wait for a hub

from collections.abc import Callable
from functools import cache

import pytest
import torch
from families import FAMILIES, tiny_model

from depthscope.models.load import load
from depthscope.models.model import Model

torch.set_num_threads(1)  # tests run side by side; their tensors are small


@cache
def _tiny(family: str) -> Model:
    return load(tiny_model(family))


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Model:
    """A tiny random model of every family in turn."""
    return _tiny(request.param)


@pytest.fixture
def tiny_of() -> Callable[[str], Model]:
    """A tiny random model of the family asked for."""
    return _tiny


@pytest.fixture(scope="session", params=["bookshelf-gpt2", "bookshelf-neox"])
def shelf(request: pytest.FixtureRequest) -> Model:
    """Both embedded trained models in turn."""
    return load(request.param)


@pytest.fixture(scope="session")
def gpt2() -> Model:
    return load("bookshelf-gpt2")
