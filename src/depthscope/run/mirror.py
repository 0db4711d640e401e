"""A directory of results at a URL: measured into a local copy, which is pulled before and pushed while it is written.

The run directory itself needs a local disk: a lock, renames that are atomic. Whatever is at the URL comes first into the copy,
so that a study goes on where another machine has left it. Each file that is complete is then pushed by a thread, in the order
in which files were written; at the end, whatever ended the study, the rest is. What becomes of a file:

    changed or new at the URL            pulled; but a shard that was never pushed from here is pushed
    deleted at the URL                   deleted here
    changed or new here                  pushed
    deleted here during a study          deleted at the URL

Imports no torch.
"""

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from depthscope.errors import RemoteWarning, RunError
from depthscope.printable import first_line
from depthscope.run import layout, series
from depthscope.run.files import UNFINISHED, make_directory, unfinished, watching_files, why
from depthscope.run.known import Known, stamp
from depthscope.run.lock import locked
from depthscope.run.remote import Remote, is_url
from depthscope.run.writer_note import NOTE, RENEWED, WriterNote

FOLDER_VARIABLE = "DEPTHSCOPE_RUNS"
OWN = {
    *(layout.MANIFEST, layout.STAGES, layout.PAGE, layout.SHARDS, layout.TABLES, layout.LENSES, layout.EXPORT),
    *(layout.LINEARITY.name, series.SERIES_FILE, series.RUNS, series.PAGE),
}
"""What a run or a series has in its directory, and is moved."""


def copies_folder() -> Path:
    """Where local copies are kept: $DEPTHSCOPE_RUNS, or ~/.cache/depthscope/runs."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "depthscope" / "runs"


@contextmanager
def destination(out: str | Path) -> Iterator[Path]:
    """The local directory to write results into: `out` itself, or the copy of what is at a URL, which is pushed there.

    When the context ends, also with an exception, everything is at the URL. Raises DepthscopeError for a URL that cannot be
    opened or written, or has a writer; RunError if files could not be pushed, which stay in the copy. Where another
    exception ended the context, a RemoteWarning says so.
    """
    if not is_url(out):
        yield Path(out)
        return
    remote = Remote(str(out))
    place = _place(remote)
    with locked(place.parent):
        known = Known(place.parent)
        note = WriterNote(remote, known.copy)
        _require_free(remote)
        note.take()
        try:
            with Mirror(remote, place, known, note).pushing():
                yield place
        finally:
            with suppress(RunError):  # it counts as nobody's after a while
                note.remove()


def local_copy(path: str | Path) -> Path:
    """The local directory to read results from: `path` itself, or a copy of what is at a URL now.

    While this machine writes to the URL, the copy is newer and is read as it is. Raises DepthscopeError for a URL that cannot
    be opened, or has neither a run nor a series.
    """
    if not is_url(path):
        return Path(path)
    remote = Remote(str(path))
    place = _place(remote)
    if not remote.files(_is_own):
        raise RunError(f"{remote.name} holds no run: expected a URL that a study has written to")
    with ExitStack() as held:
        try:
            held.enter_context(locked(place.parent))
        except RunError:
            if place.exists():
                return place
            raise
        Mirror(remote, place, Known(place.parent)).pull()
    return place


class Mirror:
    """A local directory and the directory at a URL that has the same files."""

    def __init__(self, remote: Remote, path: Path, known: Known, note: WriterNote | None = None) -> None:
        self.remote, self.path = remote, path
        self._known, self._note = known, note
        self._waiting: dict[str, None] = {}
        """Names of the files to push, those written first in front."""
        self._changed = threading.Condition()
        self._pulled = self._ending = False
        self._failure: RunError | None = None

    def pull(self) -> None:
        """Make the copy what the URL holds, with what was written here and never arrived there."""
        try:
            make_directory(self.path)
            there = self.remote.files(_is_own)
            for name in set(self._known.names()) - there.keys():
                self._remove(name)
            self._get({name: mark for name, mark in there.items() if self._newer_there(name, mark)})
            self._pulled = True
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {why(error)}") from error

    def _remove(self, name: str) -> None:
        file = self.path / name
        file.unlink(missing_ok=True)
        for folder in file.parents[: name.count("/")]:
            with suppress(OSError):  # it has other files
                folder.rmdir()
        self._known.forget(name)

    def _newer_there(self, name: str, mark: str) -> bool:
        if stamp(self.path / name) is None:
            return True
        known = self._known.mark(name)
        if known is None:
            # Written here and perhaps there: half, when this machine lost its connection, or by another machine, as the same.
            return layout.SHARDS not in name.split("/")
        return known != mark

    def _get(self, marks: dict[str, str]) -> None:
        local = {name: self.path / name for name in marks}
        for folder in {file.parent for file in local.values()}:
            make_directory(folder)
        self.remote.get({name: unfinished(file) for name, file in local.items()})
        for name, file in local.items():
            unfinished(file).replace(file)
            if (now := stamp(file)) is not None:
                self._known.moved(name, marks[name], now)

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Pull; while open, push what is written here, in a thread; at the end push the rest.

        A file that cannot be pushed after several tries ends the writing: the next write raises RunError.
        """
        thread = threading.Thread(target=self._push_all, name="depthscope push", daemon=True)
        thread.start()  # before the pull, which may take longer than a note lasts
        try:
            self.pull()
            self._add(self._changed_here())
            with watching_files(self.path, self._written):
                yield
            self._add(self._changed_here())
        except BaseException as error:
            self.remote.hurry.set()
            self._add(self._changed_here() if self._pulled else ())
            self._finish(thread)
            if self._failure is not None and str(error) != str(self._failure):
                warnings.warn(str(self._failure), RemoteWarning, stacklevel=4)
            raise
        self._finish(thread)
        if self._failure is not None:
            raise self._failure

    def _finish(self, thread: threading.Thread) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        try:
            thread.join()
        except BaseException:  # a signal: the rest is still pushed, without pauses
            self.remote.hurry.set()
            thread.join()
            raise

    def _written(self, file: Path) -> None:
        """Take note of a file that was written. Raises RunError if an earlier one could not be pushed."""
        if self._failure is not None:
            raise RunError(str(self._failure))
        name = file.relative_to(self.path).as_posix()
        if _is_own(name):
            self._add([name])

    def _add(self, names: Iterable[str]) -> None:
        """Put names at the end of those that wait: run.json may say that a run is complete only after its tables are there."""
        with self._changed:
            for name in names:
                self._waiting.pop(name, None)
                self._waiting[name] = None
            self._changed.notify()

    def _changed_here(self) -> list[str]:
        """Files that the URL lacks or has as they were, and those it has that were deleted here."""
        there = self._known.names()
        here = [file.relative_to(self.path).as_posix() for file in sorted(self.path.rglob("*")) if file.is_file()]
        names = dict.fromkeys([*filter(_is_own, here), *there])
        return sorted(
            (name for name in names if stamp(self.path / name) != self._known.stamp(name)),
            key=lambda name: name.endswith((layout.MANIFEST, series.SERIES_FILE)),  # they say what the others are
        )

    def _push_all(self) -> None:
        try:
            while True:
                with self._changed:
                    if not self._waiting and not self._ending:
                        self._changed.wait(RENEWED)
                    if self._ending and not self._waiting:
                        return
                    name = next(iter(self._waiting), None)
                    if name is not None:
                        del self._waiting[name]
                self._renew()
                if name is not None:
                    self._push(name)
        except Exception as error:  # whatever it is, in a thread nobody would see it
            self._failure = RunError(
                f"{first_line(error)}. What was measured is kept on this machine, in {self.path}: give the same command again "
                "here, which pushes it and goes on"
            )

    def _renew(self) -> None:
        if self._note is not None:
            self._note.renew()

    def _push(self, name: str) -> None:
        file = self.path / name
        now = stamp(file)
        if now is not None:
            try:
                mark = self.remote.put(file, name)
            except RunError:
                if file.exists():
                    raise
                return  # deleted meanwhile, which the end of the study sees
            self._known.moved(name, mark, now)
        elif self._known.mark(name) is not None:
            self.remote.delete(name)
            self._known.forget(name)


def _place(remote: Remote) -> Path:
    """The local copy of what is at a URL: a directory with the URL's last name, in one named after its hash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", remote.address.rpartition("/")[2])[:100].strip("-.")
    return copies_folder() / hashlib.sha256(remote.address.encode()).hexdigest()[:16] / (name or "run")


def _require_free(remote: Remote) -> None:
    """Raise RunError for a URL with other files and no run: they would be mixed with the run's."""
    names = remote.top()
    strangers = [name for name in names if name not in OWN and name != NOTE]
    if strangers and not any(name in OWN for name in names):
        raise RunError(f"{remote.name} holds other files ({', '.join(strangers[:3])}): expected a new or empty place")


def _is_own(name: str) -> bool:
    """Whether a path belongs to a run or series, and stays in its directory: a URL's content is written by others."""
    parts = name.split("/")
    return (
        parts[0] in OWN
        and not any(part in ("", ".", "..", layout.LOCK) or set(part) & set("\\:\0") for part in parts)
        and not name.endswith(UNFINISHED)
    )
