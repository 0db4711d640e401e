"""SERIES/series.json: the studies of a series, in order, and the steps of training. Imports no torch."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from depthscope.schema.stored import ALWAYS, Entry, EntryError, StoredFile

SERIES = "series"
"""The kind of the file's seal."""
MOST_STUDIES = 1_000
"""Studies of a series: the checkpoints of a training run are a few hundred."""
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Names of studies, which are those of their directories."""
STEP = re.compile(r"step[-_ ]?(\d{1,18})", re.IGNORECASE)
LAST_NUMBER = re.compile(r"(\d{1,18})(?!.*\d)")


def training_step(checkpoint: str) -> int | None:
    """The step of training that a checkpoint's name states: the number after `step`, or else the last whole number in it.

    `step1000`, `stage1-step1000-tokens5B` and `checkpoint-1000` are all step 1000; None for a name without a number.
    """
    found = STEP.search(checkpoint) or LAST_NUMBER.search(checkpoint)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEntry(Entry):
    """One study of a series."""

    name: str
    """Its directory below SERIES/runs."""
    model: str
    revision: str | None
    text: str
    """The source of its text."""
    request: dict[str, Any]
    """What was asked for: how the model is loaded and the text is read, and the settings."""
    trained: str | None = None
    """The model whose checkpoints the series has, for one of them."""
    checkpoint: str | None = None
    """The checkpoint's name."""
    sources: str | None = None
    """A fingerprint of the files that were read; None where it is not known without reading them."""
    finished: bool = False
    failed: str | None = None
    """Why the study could not be done."""

    @property
    def step(self) -> int | None:
        """The checkpoint's step of training."""
        return None if self.checkpoint is None else training_step(self.checkpoint)

    def check(self, at: str) -> None:
        """The name can be that of a directory."""
        if not FOLDER_NAME.fullmatch(self.name):
            raise EntryError(f"{at}.name: expected letters, digits, dots, hyphens and _, got {self.name[:60]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEntry(StoredFile):
    """The content of SERIES/series.json."""

    format: ClassVar[int] = 1
    sealed_from: ClassVar[int] = 0
    remedy: ClassVar[str] = "Delete it and give the command that made the series again: finished studies are kept"

    members: list[MemberEntry] = field(default_factory=list, metadata=ALWAYS)

    def check(self, at: str) -> None:
        """Every study has a directory of its own."""
        names = [member.name for member in self.members]
        if len(set(names)) < len(names) or len(names) > MOST_STUDIES:
            raise EntryError(f"members: expected at most {MOST_STUDIES:,}, each with another name")
