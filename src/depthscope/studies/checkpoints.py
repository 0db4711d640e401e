"""The checkpoints of a training run as studies of a series: revisions of a hub's model, or folders in a folder.

Imports no torch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depthscope.data.corpus import Corpus
from depthscope.errors import DepthscopeError, ModelError
from depthscope.printable import listed, shown
from depthscope.schema.declaration import check_text
from depthscope.studies.planned import Planned, check_planned, directory_name

ALL = "all"
LONGEST_REVISION = 255


def checkpoint_studies(
    model: str,
    revisions: Sequence[str],
    text: Corpus,
    *,
    loading: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    text_name: str | None = None,
) -> list[Planned]:
    """A study of each checkpoint of `model`, all on the same text with the same settings.

    `model` is a folder that has a folder for each checkpoint, whose names are the revisions (`all`: every one, in the order of
    the numbers in their names), or a Hugging Face id with revisions there. Raises DepthscopeError for names that are not there.
    """
    names = list(dict.fromkeys(revisions))
    for one in names:
        check_text("--revisions", one, LONGEST_REVISION)
    folder = Path(model).expanduser()
    local = folder.is_dir()
    if local:
        names = _in_folder(folder, names)
    elif ALL in names:
        raise ModelError(
            f"--revisions {ALL} is for a folder of checkpoints: name those of {model}, such as step1000,step2000"
        )
    if not names:
        raise DepthscopeError(f"--revisions names no checkpoint of {model}: expected some, such as step1000,step2000")
    return [
        Planned(
            name=directory_name(name or model, one, text_name),
            model=str(Path(model) / one) if local else model,
            revision=None if local else one,
            text=text,
            loading=dict(loading or {}),
            settings=dict(settings or {}),
            trained=model,
            checkpoint=one,
        )
        for one in names
    ]


def revision_studies(
    model: str, revisions: Sequence[str], text: Corpus, loading: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Planned]:
    """The studies of `depthscope study MODEL --revisions …`, checked."""
    planned = checkpoint_studies(model, revisions, text, loading=loading, settings=settings)
    check_planned(planned)
    return planned


def _in_folder(folder: Path, names: Sequence[str]) -> list[str]:
    there = sorted(
        (entry.name for entry in folder.iterdir() if entry.is_dir() and (entry / "config.json").exists()), key=_numbered
    )
    if not there:
        what = "is one model" if (folder / "config.json").exists() else "has none"
        raise ModelError(
            f"{folder} {what}: --revisions expects a folder with a folder for each checkpoint, each with config.json and "
            "weights"
        )
    if ALL in names:
        return there
    if lacking := [name for name in names if name not in there]:
        raise ModelError(f"{folder} has no checkpoint {shown(lacking[0])}: expected some of {listed(there)}")
    return list(names)


def _numbered(name: str) -> list[tuple[int, int, str]]:
    """A key by which step2 comes before step10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
