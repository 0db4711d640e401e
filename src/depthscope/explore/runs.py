"""Runs on this machine: which there are, how far each has come, and their figures. Reads files only; writes nothing."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import polars as pl

from depthscope.errors import DepthscopeError, RunError
from depthscope.explore import markup
from depthscope.explore.figures import dressed
from depthscope.report.figures import FIGURES, figure
from depthscope.report.section import Kind
from depthscope.run.store import MANIFEST, RunDirectory

DEEPEST = 3
"""Folders below the one started on in which runs are looked for."""
MOST = 200
"""Runs listed at most."""
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
"""What reading a directory that somebody else wrote, or damaged, can raise."""
CHOSEN = "chosen"
"""The style of the run that is shown."""
NOT_A_RUN = {".git", ".venv", "node_modules", "__pycache__", "shards", "tables"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Shards of one experiment; `units` is None where the run does not say how many there will be."""

    experiment: str
    stored: int
    units: int | None
    finished: bool


class Runs:
    """The runs in and under a folder. A run is named by its path below it; other paths are not opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The runs there are now, the one last changed first."""
        found = sorted(_found(self.folder, DEEPEST), key=lambda path: -_changed(path / MANIFEST))
        return [str(path.relative_to(self.folder)) for path in found[:MOST]]

    def path(self, name: str | None) -> Path:
        """Where a run is. Raises RunError for a name that is none of the runs'."""
        if not name or name not in self.names():
            raise RunError(f"there is no run {name!r} here any more" if name else "no run is chosen")
        return self.folder / name

    def open(self, name: str | None) -> RunDirectory:
        """A run by its name. Raises RunError saying why it cannot be read."""
        return RunDirectory.reading(self.path(name))

    def first(self) -> str | None:
        """The run to open with: the one last changed of those with a figure, or else of those that can be read, or of all."""
        names = self.names()
        return next((name for name in names if self.figures(name)), None) or next(
            (name for name in names if self._readable(name)), names[0] if names else None
        )

    def overview(self, chosen: str | None = None) -> str:
        """All runs with their state as HTML, the damaged ones with the reason; `chosen` is the one that is shown below."""
        names = self.names()
        if not names:
            return markup.message(
                f"There are no runs in {self.folder.resolve().name or self.folder}. "
                "`depthscope study` makes one; it is listed here as soon as it begins."
            )
        rows = [
            [
                markup.choice(name, markup.escaped(self._title(name)), "show this run", kind=CHOSEN * (name == chosen)),
                *self._row(name),
            ]
            for name in names
        ]
        return markup.table(["run", "model", "text", "state"], rows, "Runs, the last changed first", "runs")

    def status(self, name: str | None) -> str:
        """How far a run has come, as HTML: a bar for each experiment, and what could not be done."""
        try:
            run = self.open(name)
            parts = [f"<p>{markup.escaped(_state(run))}</p>"]
            if not run.complete:
                parts.append(_progress_bars(progress(run)))
            not_done = run.manifest.get("not_done", {})
            parts += [markup.message(f"{what} could not be done: {why}") for what, why in not_done.items()]
            return "".join(parts)
        except BROKEN as error:
            return markup.message(_why(error), "problem")

    def figures(self, name: str | None) -> list[tuple[str, str]]:
        """(title, name) of the figures a run has something for; none where it cannot be read."""
        try:
            run = self.open(name)
        except BROKEN:
            return []
        return [(kind.title, kind.name) for kind in FIGURES.values() if _has(run, kind)]

    def figure(self, name: str | None, of: str | None) -> tuple[go.Figure | None, str]:
        """A figure of a run, or None and why there is none, as HTML; without a word where the run cannot be read."""
        try:
            run = self.open(name)
        except BROKEN:
            return None, ""  # its status says why
        try:
            return dressed(figure(run, of or next(iter(FIGURES)))), ""
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
            cells = [str(run.settings.get("model", "?")), str(run.settings.get("data", "?")), _state(run)]
        except BROKEN as error:
            return [f"<td colspan='3'>{markup.message(_why(error), 'problem')}</td>"]
        return [f"<td>{markup.escaped(cell)}</td>" for cell in cells]


def progress(run: RunDirectory) -> list[Progress]:
    """How many work units of each experiment are stored, in the order of the manifest."""
    finished = run.manifest.get("finished", [])
    found = []
    for name in run.settings.get("experiments", {}):
        stored = sum(1 for _ in (run.path / "shards" / name).glob("*.parquet"))
        units = stored if name in finished else _units(run, name)
        found.append(Progress(name, stored, units if units is None or units >= stored else None, name in finished))
    return found


def _has(run: RunDirectory, kind: Kind) -> bool:
    """Whether a run has what a figure shows; of one that is made of several tables, whether it has any of them."""
    if kind.file:
        return (run.path / kind.file).exists()
    try:
        return bool(kind.build(run).panels)
    except BROKEN:
        return False


def _units(run: RunDirectory, name: str) -> int | None:
    """How many units an experiment will have: known of the shared pass over the text, and where it says so itself."""
    settings = run.settings
    own = settings["experiments"][name]
    if isinstance(own, dict) and isinstance(own.get("units"), int):
        return own["units"]
    if name == "neurons":
        return run.manifest.get("model", {}).get("layers")
    if name in OWN_UNITS:
        return None
    tokens, window, per_unit = (settings.get(key) for key in ("tokens", "window", "windows_per_unit"))
    return math.ceil(tokens / window / per_unit) if tokens and window and per_unit else None


OWN_UNITS = {"heads", "probes"}
"""Experiments whose number of units the manifest does not tell."""


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
    # The newest change of a folder is when its last shard was put there: no file of a long run needs to be looked at.
    places = [run.path / MANIFEST, *(run.path / "shards").glob("*")]
    ago = max(0.0, time.time() - max(_changed(place) for place in places))
    words = f"{ago:.0f} s" if ago < 120 else f"{ago / 60:.0f} min" if ago < 7200 else f"{ago / 3600:.0f} h"
    return f"unfinished, last written to {words} ago"


def _why(error: BaseException) -> str:
    if isinstance(error, DepthscopeError):
        return str(error)
    return f"this run is damaged and cannot be shown ({type(error).__name__}: {error})"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _found(folder: Path, deep: int) -> Iterator[Path]:
    """Directories with a manifest, links not followed: a run holds no other runs."""
    try:
        if (folder / MANIFEST).is_file():
            yield folder
            return
        entries = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in entries if deep else ():
        if name not in NOT_A_RUN and not name.startswith("."):
            yield from _found(folder / name, deep - 1)


def model_of(folder: Path) -> str | None:
    """The model a run was made with; None where `folder` is no run or its manifest cannot be read."""
    try:
        name = RunDirectory.reading(folder).settings.get("model")
    except BROKEN:
        return None
    return name if isinstance(name, str) else None
