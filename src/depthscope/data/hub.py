"""Data sets through the datasets library: of the hub, streamed, and folders written by `save_to_disk`."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from depthscope.data.fields import Field, Row
from depthscope.errors import DataError
from depthscope.printable import first_line, listed, printable

HUB = "hf:"
HUB_FORM = "hf:NAME[:CONFIG[:SPLIT]][#FIELD]"
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` writes into the folder of a data set, and of a dictionary of splits."""
DEFAULT_SPLIT = "train"


def hub_parts(location: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of hf:NAME[:CONFIG[:SPLIT]]. Raises DataError for another form."""
    name = location.removeprefix(HUB)
    path, *rest = name.split(":")
    if len(rest) > 2 or not path:
        raise DataError(f"cannot read hf:{name}: expected hf:NAME[:CONFIG[:SPLIT]][#FIELD]")
    config, split = [*rest, "", ""][:2]
    return path, config or None, split or DEFAULT_SPLIT


def hub_documents(location: str, field: Field) -> Iterator[Row]:
    """The documents of a data set of the hub, streamed. Raises DataError for one that cannot be read."""
    import datasets  # a second to import, and only needed here

    path, config, split = hub_parts(location)
    try:
        stream: Iterable[Any] = datasets.load_dataset(path, config, split=split, streaming=True)
        for row, record in enumerate(stream):
            yield field.row(record, f"{location}, row {row}")
    except DataError:
        raise
    except Exception as error:  # the library raises dozens of kinds for one user mistake: a name that is not there
        raise DataError(
            f"data set hf:{location.removeprefix(HUB)} cannot be read: {first_line(error)}. Expected {HUB_FORM}"
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any(os.path.exists(folder / name) for name in (SAVED, SAVED_SPLITS))  # noqa: PTH110 (False if it may not be read)


def saved_documents(folder: Path, field: Field) -> Iterator[Row]:
    """The documents of a folder written by `save_to_disk`; of several splits `train`.

    Raises DataError for a folder that cannot be read, a field that is not there, or splits without `train`.
    """
    import datasets

    name = printable(folder)
    _require_regular(folder)
    try:
        stored: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # as above
        raise DataError(f"{name} is a saved data set that cannot be read: {first_line(error)}") from error
    if isinstance(stored, datasets.DatasetDict):
        split = DEFAULT_SPLIT if DEFAULT_SPLIT in stored or len(stored) != 1 else next(iter(stored))
        if split not in stored:
            raise DataError(
                f"{name} holds the splits {listed(stored) or '(none)'} and no {split}: name one as {name}/SPLIT"
            )
        stored = stored[split]
    columns = field.columns(stored.column_names, name)
    try:
        for row, record in enumerate(stored.select_columns(columns)):
            yield field.row(record, f"{name}, row {row}")
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"{name} is a saved data set that cannot be read: {first_line(error)}") from error


def _require_regular(folder: Path) -> None:
    """Raise DataError for a pipe or a device in a folder: the library would open it and wait."""
    for file in folder.rglob("*"):
        if not (os.path.isfile(file) or os.path.isdir(file)):  # noqa: PTH112, PTH113 (False if it may not be asked)
            raise DataError(f"{printable(file)} is not a regular file: expected one, not a pipe or a device")
