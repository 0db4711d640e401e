"""Runs on this machine: list, progress and figures. Only reads files."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import plotly.graph_objects as go
import polars as pl

from depthscope.errors import DepthscopeError, RunError
from depthscope.explore import markup
from depthscope.explore.figures import dressed
from depthscope.report.figures import figure, figures
from depthscope.report.section import Kind
from depthscope.run.store import MANIFEST, STAGES, RunDirectory

DEEPEST = 3
"""Depth of the search for runs below the start folder."""
MOST = 200
"""Most runs listed."""
MOST_ENTRIES = 10_000
"""Most entries of a folder that are looked at."""
BROKEN = (
    DepthscopeError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    pl.exceptions.PolarsError,
)
"""What reading a foreign or damaged directory can raise."""
CHOSEN = "chosen"
"""The CSS class of the selected run."""
NOT_A_RUN = {".git", ".venv", "node_modules", "__pycache__", "shards", "tables"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Shards of one experiment; `units` is None if the total is unknown."""

    experiment: str
    stored: int
    units: int | None
    finished: bool


class Runs:
    """The runs in and below a folder. A run is named by its relative path; other paths are not opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The runs that exist now, most recently changed first."""
        found = sorted(_found(self.folder, DEEPEST), key=lambda path: -_changed(path / MANIFEST))
        return [str(path.relative_to(self.folder)) for path in found[:MOST]]

    def path(self, name: str | None) -> Path:
        """The path of a run. Raises RunError if no run has the name."""
        if not name or name not in self.names():
            raise RunError(f"run {name!r} no longer exists here" if name else "no run is selected")
        return self.folder / name

    def open(self, name: str | None) -> RunDirectory:
        """Open a run by its name. Raises RunError with the reason if it cannot be read, or holds a link out of the folder."""
        path = self.path(name)
        _require_own(path, self.folder.resolve())
        return RunDirectory.reading(path)

    def first(self) -> str | None:
        """The initially selected run: the most recent one with a figure, or else a readable one, or else any."""
        names = self.names()
        return next((name for name in names if self.figures(name)), None) or next(
            (name for name in names if self._readable(name)), names[0] if names else None
        )

    def overview(self, chosen: str | None = None) -> str:
        """All runs with their state as HTML, damaged ones with the reason; `chosen` is the selected one."""
        names = self.names()
        if not names:
            return markup.message(
                f"There are no runs in {self.folder.resolve().name or self.folder}. "
                "Start one with `depthscope study`; it is listed here as soon as it begins."
            )
        rows = [
            [
                markup.choice(name, markup.escaped(self._title(name)), "show this run", kind=CHOSEN * (name == chosen)),
                *self._row(name),
            ]
            for name in names
        ]
        return markup.table(["run", "model", "text", "state"], rows, "Runs, most recent first", "runs")

    def status(self, name: str | None) -> str:
        """A run's progress as HTML: a bar for each experiment, and what could not be done."""
        try:
            run = self.open(name)
            parts = [f"<p>{markup.escaped(_state(run))}</p>"]
            if not run.complete:
                parts.append(_progress_bars(progress(run)))
            not_done = run.manifest.not_done.items()
            parts += [markup.message(f"{what} could not be done: {why}") for what, why in not_done]
            return "".join(parts)
        except BROKEN as error:
            return markup.message(_why(error), "problem")

    def figures(self, name: str | None) -> list[tuple[str, str]]:
        """(title, name) of the figures a run has data for; empty if it cannot be read."""
        try:
            run = self.open(name)
        except BROKEN:
            return []
        return [(kind.title, kind.name) for kind in figures(run).values() if _has(run, kind)]

    def figure(self, name: str | None, of: str | None) -> tuple[go.Figure | None, str]:
        """A figure of a run, or None and the reason as HTML; no reason if the run cannot be read, which its status reports."""
        try:
            run = self.open(name)
        except BROKEN:
            return None, ""  # its status reports why
        try:
            return dressed(figure(run, of or next(iter(figures())))), ""
        except BROKEN as error:
            return None, markup.message(_why(error), "problem")

    def _readable(self, name: str) -> bool:
        try:
            self.open(name)
        except BROKEN:
            return False
        return True

    def _title(self, name: str) -> str:
        return self.folder.resolve().name if name == "." else name

    def _row(self, name: str) -> list[str]:
        try:
            run = self.open(name)
            cells = [run.settings.subject, run.settings.data or "?", _state(run)]
        except BROKEN as error:
            return [f"<td colspan='3'>{markup.message(_why(error), 'problem')}</td>"]
        return [f"<td>{markup.escaped(cell)}</td>" for cell in cells]


def progress(run: RunDirectory) -> list[Progress]:
    """The number of stored work units of each experiment, in the manifest's order."""
    finished = run.manifest.finished
    found = []
    for name in run.settings.experiments:
        stored = sum(1 for _ in (run.path / "shards" / name).glob("*.parquet"))
        units = stored if name in finished else _units(run, name)
        found.append(Progress(name, stored, units if units is None or units >= stored else None, name in finished))
    return found


def _has(run: RunDirectory, kind: Kind) -> bool:
    """Whether a run has data for a figure; for one made of several tables, whether it has any of them."""
    if kind.file:
        return (run.path / kind.file).exists()
    try:
        return bool(kind.section(run).panels)
    except BROKEN:
        return False


def _units(run: RunDirectory, name: str) -> int | None:
    """The total number of units of an experiment, if its settings give it or it belongs to the shared pass over the text."""
    settings = run.settings
    units = settings.of(name).get("units")
    if isinstance(units, int):
        return units
    if name == "neurons":
        return run.manifest.model.layers
    if name in OWN_UNITS:
        return None
    tokens, window, per_unit = settings.tokens, settings.window, settings.windows_per_unit
    return math.ceil(tokens / window / per_unit) if tokens and window and per_unit else None


OWN_UNITS = {"heads", "probes"}
"""Experiments whose number of units is not in the manifest."""


def _progress_bars(found: list[Progress]) -> str:
    rows = []
    for one in found:
        share = one.stored / one.units if one.units else 0.0
        said = f"{one.stored} of {one.units}" if one.units is not None else f"{one.stored} stored"
        rows.append(
            f"<li><span class='bar' style='width:{min(share, 1) * 100:.1f}%'></span>"
            f"<span class='token'>{markup.escaped(one.experiment)}</span><span class='value'>{said}</span></li>"
        )
    return f"<p class='under'>Work units stored</p><ol class='bars progress'>{''.join(rows)}</ol>"


def _state(run: RunDirectory) -> str:
    if run.complete:
        return "complete"
    # A folder changes when a shard is added, so the many files of a long run need not be checked.
    places = [run.path / MANIFEST, *(run.path / "shards").glob("*")]
    ago = max(0.0, time.time() - max(_changed(place) for place in places))
    words = f"{ago:.0f} s" if ago < 120 else f"{ago / 60:.0f} min" if ago < 7200 else f"{ago / 3600:.0f} h"
    return f"incomplete, last written {words} ago"


def _why(error: BaseException) -> str:
    if isinstance(error, DepthscopeError):
        return str(error)
    return f"this run is damaged and cannot be shown ({type(error).__name__}: {error})"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _require_own(run: Path, folder: Path) -> None:
    """Raise RunError unless all that is read of a run is a regular file of the explored folder.

    A run may come from a stranger: a link in it would show any file of this machine, and a pipe would never end. Shards are
    only counted.
    """
    for entry in _read(run):
        if entry.is_symlink():
            try:
                place = Path(entry.path).resolve(strict=True)
            except (OSError, RuntimeError) as error:  # RuntimeError: in a circle
                raise RunError(f"{entry.name} of this run is a link that leads nowhere") from error
            if not place.is_relative_to(folder):
                raise RunError(f"{entry.name} of this run is a link out of the folder explored: it is not followed")
        if not (entry.is_file() or entry.is_dir()):
            raise RunError(f"{entry.name} of this run is a pipe or a device: expected a file")


def _read(run: Path) -> Iterator[os.DirEntry[str]]:
    """What is read of a run: its own files, its tables, and the folders of shards."""
    for entry in _all_entries(run):
        if entry.name in (MANIFEST, STAGES, "tables", "shards"):
            yield entry
            if entry.is_dir():
                yield from _all_entries(Path(entry.path))


def _all_entries(folder: Path) -> list[os.DirEntry[str]]:
    found = _entries(folder)
    if len(found) > MOST_ENTRIES:
        raise RunError(f"{folder.name} of this run has more than {MOST_ENTRIES:,} entries: expected fewer")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """A folder's entries, one more than MOST_ENTRIES at most."""
    with os.scandir(folder) as found:
        return list(islice(found, MOST_ENTRIES + 1))


def _found(folder: Path, deep: int) -> Iterator[Path]:
    """Directories with a manifest, without following links. Runs are not nested."""
    try:
        if (folder / MANIFEST).is_file():
            yield folder
            return
        entries = sorted(entry.name for entry in _entries(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in entries if deep else ():
        if name not in NOT_A_RUN and not name.startswith("."):
            yield from _found(folder / name, deep - 1)


def model_of(folder: Path) -> str | None:
    """The model of a run; None if `folder` is not a run or its manifest cannot be read."""
    try:
        return RunDirectory.reading(folder).settings.model
    except BROKEN:
        return None
