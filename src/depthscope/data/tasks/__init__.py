"""The tasks that come with depthscope, made from the embedded held-out text, and what to say about names of others.

Each is a task of the lm-evaluation-harness: a YAML file and a .jsonl file with its examples. Imports no harness.
"""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from depthscope.data.lines import lines
from depthscope.errors import DataError
from depthscope.printable import shown

HERE = Path(__file__).parent
LOCAL_TASKS = tuple(sorted(file.stem for file in HERE.glob("*.yaml")))
"""Names of the local tasks, which need no network."""
BY_NAME = ("hellaswag", "arc_easy", "lambada_openai")
"""Tasks of the harness that are often used, for messages."""
MOST_TASK_FILES = 10_000


def local_task(name: str) -> dict[str, Any]:
    """The configuration of a local task for the harness, its examples read from the package."""
    import yaml

    found = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    file = found.pop("dataset_kwargs")["data_files"]["test"]
    del found["dataset_path"]
    # Read here: the library of data sets would copy the examples to its cache, which may not be writable.
    return found | {"custom_dataset": partial(_examples, HERE / file)}


def _examples(path: Path, **_: Any) -> dict[str, Any]:
    import datasets

    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines(path)])}


def unknown_task(name: str, known: Iterable[str]) -> str:
    """What to say about a task that there is none of: similar names, and those that need no network."""
    near = get_close_matches(name, [*known, *LOCAL_TASKS], 5, 0.6)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return (
        f"unknown task {shown(name)}{hint}: expected a local one ({', '.join(LOCAL_TASKS)}) or one of the harness's, such as "
        f"{', '.join(BY_NAME)}"
    )


def check_include(folder: Path, allowed: bool) -> None:
    """Raise DataError unless a folder of the user's own tasks is one, and running what is in it has been allowed."""
    if not folder.is_dir():
        raise DataError(f"--include-path is {shown(str(folder))}: expected a folder with tasks as YAML files")
    if not allowed:
        raise DataError(
            f"--include-path {shown(str(folder))}: tasks from files can run any program on this machine (functions named by "
            "!function, and templates, which the harness does not confine). Read them, then add --allow-task-code"
        )
    files = 0
    for files, _ in enumerate(folder.rglob("*.yaml"), 1):
        if files > MOST_TASK_FILES:
            raise DataError(
                f"{shown(str(folder))} has more than {MOST_TASK_FILES:,} YAML files: expected a folder of tasks"
            )
    if files == 0:
        raise DataError(f"{shown(str(folder))} has no .yaml file: expected a folder with tasks as YAML files")
