import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may wait for a hub

import shape_checks

shape_checks.install()  # before depthscope is imported

import json
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny_model

from depthscope.data.corpus import Corpus
from depthscope.models.load import load
from depthscope.models.model import Model

pytest_plugins = ["faults"]
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
def short_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of twelve documents of the embedded text, from books apart, cut short."""
    path = tmp_path_factory.mktemp("text") / "short.jsonl"
    lines = [json.dumps({"text": text[:3500]}) for text in list(Corpus().documents())[::15]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five documents of some windows each: little to read, so that a short study is mostly measuring."""
    path = tmp_path_factory.mktemp("text") / "few.jsonl"
    lines = [json.dumps({"text": text[:400]}) for text in islice(Corpus().documents(), 5)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def gpt2() -> Model:
    return load("bookshelf-gpt2")
