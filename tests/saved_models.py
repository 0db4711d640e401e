"""Saved tiny models with a tokenizer, and short studies of them that can be interrupted."""

import json
import shutil
from pathlib import Path
from typing import Any

from families import tiny_model

from depthscope.data.corpus import Corpus
from depthscope.models.load import load
from depthscope.models.located import EMBEDDED
from depthscope.run.store import RunDirectory
from depthscope.studies.run_study import run_study
from depthscope.studies.settings import study_settings

VOCABULARY = 4096
"""As many tokens as the embedded models' tokenizer has."""
TEXT = Corpus(tokens=64)
SETTINGS = {"experiments": ("sweep",), "edits": ("drop",), "window": 16, "unit_tokens": 32}


class InterruptionError(Exception):
    """What ends a study in the middle."""


def save(family: str, folder: Path, **changes: object) -> Path:
    """A tiny model of the family, with the embedded models' tokenizer."""
    tiny_model(family, vocab_size=VOCABULARY, **changes).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "bookshelf-gpt2" / name, folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def study(folder: Path, out: Path, *, units: int | None = None, after: Any = None, **loading: Any) -> RunDirectory:
    """A short sweep, ended after some work units if `units` is given. `after` is called after each unit."""
    done = 0

    def tell(what: str, unit: int, _units: int) -> None:
        nonlocal done
        if what != "sweep" or unit == 0:
            return
        done += 1
        if after is not None:
            after(unit)
        if units is not None and done >= units:
            raise InterruptionError

    model = load(folder, verify=False, **loading)
    return run_study(model, TEXT, out, study_settings(**SETTINGS), tell)


def tables(run: Path) -> dict[str, bytes]:
    """The bytes of every table and shard of a run."""
    files = sorted([*run.glob("tables/*.parquet"), *run.glob("shards/*/*.parquet")])
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}
