"""The studies of a series before they are run: each a model, a text and settings. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from depthscope.data.corpus import Corpus
from depthscope.edit_registry import registered, sweeps
from depthscope.errors import DepthscopeError
from depthscope.models.named import NAMED
from depthscope.printable import shown
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.schema.lens import LENSES
from depthscope.schema.measures import all_measures
from depthscope.schema.series import FOLDER_NAME, MOST_STUDIES, MemberEntry
from depthscope.studies.settings import StudySettings, study_settings

LOADING = ("dtype", "device", "stream", "unused_tensors", "device_map", "quantize", "adapter")
"""How a model is loaded: options of `depthscope.load`, besides the revision."""
READING = ("special_tokens", "chat", "pack", "cluster")
"""How a text is read: fields of Corpus, besides source and tokens."""
PATHS = ("tuned_lens", "jacobian_lens", "lens_data", "fit_data")
"""Settings that name files."""
MOST_FILES = 100_000
"""Files of a model or text that are looked at to see whether it has changed."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One study of a series."""

    name: str
    """The name of its directory."""
    model: str
    revision: str | None = None
    text: Corpus = field(default_factory=Corpus)
    loading: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As for `study_settings`."""
    trained: str | None = None
    checkpoint: str | None = None
    """For a checkpoint of a training run: the model, and the checkpoint's name."""

    @cached_property
    def checked(self) -> StudySettings:
        """The settings with defaults for the others. Raises DepthscopeError for invalid ones."""
        return study_settings(**self.settings)

    def check(self) -> None:
        """Raise DepthscopeError for what no study could be made of, without loading a model or reading a text."""
        if not FOLDER_NAME.fullmatch(self.name):
            raise DepthscopeError(
                f"the name of a study is {shown(self.name)}: expected letters, digits, dots, hyphens and _, at most 200, "
                "beginning with a letter or digit"
            )
        try:
            _ = self.checked
            self.text.check()
        except DepthscopeError as error:
            raise DepthscopeError(f"study {self.name}: {error}") from error

    @property
    def entry(self) -> MemberEntry:
        """What the series records about the study."""
        text = {name: value for name, value in asdict(self.text).items() if name != "texts"}
        request = {
            "model": self.model,
            "revision": self.revision,
            "loading": dict(self.loading),
            "text": text | ({"texts": _digest(self.text.texts)} if self.text.texts else {}),
            "settings": asdict(self.checked),
        }
        return MemberEntry(
            name=self.name,
            model=self.model,
            revision=self.revision,
            text=self.text.source,
            request=json.loads(json.dumps(request)),  # as read from a file: lists instead of tuples
            trained=self.trained,
            checkpoint=self.checkpoint,
        )

    def sources(self) -> str | None:
        """A fingerprint of the program's version and of the model's and the text's files, by name, size and time.

        None where that does not say whether a number would change: with a model or text on a hub, which may have changed
        there, with files that settings name, and with edits, measures or lenses that the user has registered.
        """
        if self._reads_more():
            return None
        found: list[Any] = [version("depthscope")]
        for place in filter(None, (self.model, self.loading.get("adapter"))):
            if (files := _model_files(place)) is None:
                return None
            found.append(files)
        located = self.text.files()
        if located is None or len(located) > MOST_FILES:
            return None
        return _digest([*found, [_state(file) for file in located]])

    def _reads_more(self) -> bool:
        named = any(self.checked.options.get(name) for name in PATHS)
        built_in = [*(registered(name).built_in for name in sweeps()), *(one.built_in for one in all_measures())]
        return named or not all(built_in) or bool(EXPERIMENTS.added or LENSES.added)


def check_planned(planned: Sequence[Planned]) -> None:
    """Raise DepthscopeError unless each study is possible and has a directory of its own."""
    if not 1 <= len(planned) <= MOST_STUDIES:
        raise DepthscopeError(f"expected 1 to {MOST_STUDIES:,} studies, got {len(planned):,}")
    seen: dict[str, Planned] = {}
    for one in planned:
        one.check()
        if (other := seen.setdefault(one.name, one)) is not one:
            raise DepthscopeError(
                f"two studies would have the directory runs/{one.name}: {other.model} on {other.text.source}, and {one.model} "
                f"on {one.text.source}. Give one of the models or texts another name"
            )


def directory_name(*parts: str | None) -> str:
    """A study's directory from the names of its model, checkpoint and text; of a path, the last component."""
    named = [
        Path(part.partition("#")[0]).name if part.count("/") != 1 or part[0] in "./~" else part
        for part in parts
        if part
    ]
    slugs = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-.") for part in named]
    return "-".join(filter(None, slugs))[:200] or "study"


def _model_files(model: str) -> list[Any] | None:
    """Name, size and time of a local model's files; the name of an embedded one; None for a model on a hub."""
    if model in NAMED or re.fullmatch(r"bookshelf-[a-z0-9]+", model):
        return [model]
    path = Path(model.partition("#")[0]).expanduser()
    try:
        if path.is_file():
            return [_state(path)]
        return [_state(file) for file in _few(path)] if path.is_dir() else None
    except OSError:
        return None


def _few(folder: Path) -> Iterator[Path]:
    """The files of a model's folder, which are not in folders below it."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    if len(files) > MOST_FILES:
        raise OSError(f"{folder} has more than {MOST_FILES:,} files")
    return iter(files)


def _state(file: Path) -> tuple[str, int, int]:
    there = file.stat()
    return str(file.resolve()), there.st_size, there.st_mtime_ns


def _digest(content: Any) -> str:
    return hashlib.sha256(
        json.dumps(content, ensure_ascii=False, default=str).encode(errors="surrogatepass")
    ).hexdigest()
