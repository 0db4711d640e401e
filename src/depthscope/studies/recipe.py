"""A recipe: models and texts of a series in a TOML file. Imports no torch.

    tokens = 20_000                      # options of `depthscope study` for all studies
    experiments = ["sweep", "lens"]

    [[models]]
    model = "bookshelf-gpt2"

    [[models]]
    model = "checkpoints"
    revisions = ["all"]
    dtype = "float32"

    [[texts]]                            # bookshelf without any
    data = "notes/*.txt"
    window = 128

Each model is studied on each text. An option of a model overrides that of a text, which overrides that of all.
"""

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.errors import DepthscopeError
from depthscope.printable import first_line, printable, shown
from depthscope.studies.checkpoints import checkpoint_studies
from depthscope.studies.planned import LOADING, READING, Planned, check_planned, directory_name
from depthscope.studies.settings import study_options
from depthscope.untrusted import MIB, read_bounded

MODELS, TEXTS = "models", "texts"
OF_MODEL = ("model", "name", "revision", "revisions")
OF_TEXT = ("data", "name")
FLAGS = ("chat", "pack")


def read_recipe(path: str | Path) -> list[Planned]:
    """The studies of a recipe, in order, checked. Raises DepthscopeError with the file and what is wrong in it."""
    raw = read_bounded(Path(path), DepthscopeError, MIB)
    where = printable(path)
    try:
        content = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise DepthscopeError(f"{where} is not TOML: {first_line(error)}") from error
    try:
        planned = planned_from(content)
        check_planned(planned)
    except DepthscopeError as error:
        raise DepthscopeError(f"{where}: {error}") from error
    return planned


def planned_from(content: Mapping[str, Any]) -> list[Planned]:
    """The studies of a recipe from its values. Raises DepthscopeError for keys and values that a recipe cannot have."""
    shared = _known("a recipe", content, (MODELS, TEXTS, *_options()))
    models = [_known("a model", one, (*OF_MODEL, *_options())) for one in _tables(shared.pop(MODELS, None), MODELS)]
    texts = [_known("a text", one, (*OF_TEXT, *_options())) for one in _tables(shared.pop(TEXTS, [{}]), TEXTS)]
    return [
        one
        for model, text in product(models, texts)
        for one in _studies(model, text, shared, several_texts=len(texts) > 1)
    ]


def _studies(
    model: Mapping[str, Any], text: Mapping[str, Any], shared: Mapping[str, Any], *, several_texts: bool
) -> Iterable[Planned]:
    source, data = model.get("model"), text.get("data", BOOKSHELF)
    named = [("name", one["name"]) for one in (model, text) if "name" in one]
    for name, value in (("model", source), ("data", data), *named):
        if not isinstance(value, str) or not value:
            raise DepthscopeError(f"{name} is {shown(value)}: expected text")
    assert isinstance(source, str)
    if "revision" in model and "revisions" in model:
        raise DepthscopeError(f"{source} has revision and revisions: expected one of them")
    given = {**shared, **_options_of(text, OF_TEXT), **_options_of(model, OF_MODEL)}
    reading = {name: _read(name, given.pop(name)) for name in READING if name in given}
    loading = {name: _text(name, given.pop(name)) for name in LOADING if name in given}
    corpus = Corpus(source=data, tokens=given.pop("tokens", None), **reading)
    text_name = text.get("name", data if several_texts else None)
    if "revisions" in model:
        revisions = model["revisions"]
        names = [revisions] if isinstance(revisions, str) else revisions
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise DepthscopeError(f"revisions is {shown(revisions)}: expected a list of names")
        return checkpoint_studies(
            source, names, corpus, loading=loading, settings=given, name=model.get("name"), text_name=text_name
        )
    revision = None if "revision" not in model else _text("revision", model["revision"])
    name = directory_name(model.get("name", source), revision, text_name)
    return [Planned(name=name, model=source, revision=revision, text=corpus, loading=loading, settings=given)]


def _options() -> tuple[str, ...]:
    return ("tokens", *READING, *LOADING, *study_options())


def _options_of(table: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in own}


def _tables(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DepthscopeError(f"it has no {name}: expected at least one table [[{name}]]")
    return value


def _known(what: str, table: Any, names: Iterable[str]) -> dict[str, Any]:
    """A table with keys as Python writes them. Raises DepthscopeError for an unknown one."""
    if not isinstance(table, Mapping):
        raise DepthscopeError(f"{what} is {shown(table)}: expected a table")
    found = {key.replace("-", "_"): value for key, value in table.items()}
    expected = list(dict.fromkeys(names))
    if unknown := next((key for key in found if key not in expected), None):
        near = get_close_matches(unknown, expected, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DepthscopeError(f"{what} has no key {unknown[:100]}{hint}: expected some of {', '.join(expected)}")
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DepthscopeError(f"{name} is {shown(value)}: expected text")
    return value


def _read(name: str, value: Any) -> Any:
    """An option of a text, of its type. Raises DepthscopeError for another."""
    if name in FLAGS:
        if not isinstance(value, bool):
            raise DepthscopeError(f"{name} is {shown(value)}: expected true or false")
        return value
    return _text(name, value)
