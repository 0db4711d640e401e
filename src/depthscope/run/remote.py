"""A directory at a URL that fsspec opens: what is there, and reading and writing its files. Imports neither torch nor, for a
local path, fsspec.

Credentials and endpoints are fsspec's business: each of its packages reads its own environment variables and files. A file
that is being uploaded when the process ends may be there in part, on file systems that are no object stores: the seals of a
run's files show that.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from depthscope.errors import DepthscopeError, RunError
from depthscope.printable import first_line, printable, shown

PAUSES = (1.0, 5.0, 20.0, 60.0)
"""Seconds before each further try of a transfer that failed."""
HOPELESS = (PermissionError, FileNotFoundError, NotImplementedError, IsADirectoryError, NotADirectoryError)
"""What a further try does not change."""
MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems report that changes with a file's content, the surest first."""
COLLAPSED = re.compile(r"[a-z][a-z0-9+.-]+:[/\\][^/\\]")
"""What pathlib makes of a URL. A drive of Windows has one letter."""

Found = TypeVar("Found")


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL such as s3://bucket/run. Raises DepthscopeError for a URL that went through pathlib, which
    takes it for a local directory."""
    if isinstance(place, str):
        return "://" in place
    if COLLAPSED.match(str(place)):
        raise DepthscopeError(f"{place} was a URL before it became a Path: give it as text")
    return False


def shown_place(place: str | Path) -> str:
    """A place for a message: of a URL without user name and password."""
    return printable(re.sub(r"://[^/@]*@", "://", str(place)))


def check_url(url: str) -> None:
    """Raise DepthscopeError for a URL of an unknown protocol, or of one whose package is not installed."""
    from fsspec.registry import get_filesystem_class, known_implementations

    protocol, name = url.partition("://")[0], shown_place(url)
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        advice = "" if package in ("", "fsspec") else f": pip install {package}"
        raise DepthscopeError(f"{name} needs a package that is not installed ({first_line(error)}){advice}") from error
    except ValueError as error:
        raise DepthscopeError(
            f"{name} has the unknown protocol {shown(protocol)}: expected a path, or a URL that fsspec opens, such as s3://, "
            "gs://, az:// or file://"
        ) from error


class Remote:
    """The directory at a URL. Files are named by their paths in it, with slashes.

    Every method raises RunError, with the reason in one line, where the file system refuses or cannot be reached.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        check_url(url)
        self.name = shown_place(url).rstrip("/")
        self.hurry = threading.Event()
        """Set when the process is about to end: failed transfers are tried again without a pause."""
        self._files, root = self._reach("opened", lambda: url_to_fs(url))
        self._root = root.rstrip("/")
        self.address = self._files.unstrip_protocol(self._root)
        """The same for all spellings of the URL."""

    def top(self) -> list[str]:
        """Names of what is directly in the directory; none where there is no directory."""
        return sorted(name for name in map(self._name, self._listed()) if name)

    def files(self, wanted: Callable[[str], bool]) -> dict[str, str]:
        """The wanted files, each with a mark that changes with its content. Directories that are not wanted are not read."""
        found: dict[str, str] = {}
        for info in self._listed():
            if not wanted(self._name(info)):
                continue
            below = [info]
            if info["type"] == "directory":
                path = info["name"]
                below = self._reach("read", lambda path=path: self._files.find(path, detail=True)).values()
            found |= {self._name(one): _mark(one) for one in below if one["type"] == "file"}
        return {name: mark for name, mark in found.items() if wanted(name)}

    def get(self, files: Mapping[str, Path]) -> None:
        """Download files to these paths, whose directories exist; several at once where the file system can."""
        if files:
            paths, local = [self._path(name) for name in files], [str(path) for path in files.values()]
            self._reach("read", lambda: self._files.get(paths, local), PAUSES)

    def put(self, file: Path, name: str) -> str:
        """Upload a file, and return its mark. Failures are tried again, with pauses."""
        path = self._path(name)

        def upload() -> str:
            self._make_directory(path)
            self._files.put_file(str(file), path)
            return _mark(self._files.info(path))

        return self._reach("written", upload, PAUSES)

    def delete(self, name: str) -> None:
        """Delete a file, unless it is gone."""
        try:
            self._reach("written", lambda: self._files.rm_file(self._path(name)))
        except RunError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        try:
            return self._reach("read", lambda: self._files.cat_file(self._path(name)))
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, once: a failure is not tried again."""
        path = self._path(name)
        self._reach("written", lambda: (self._make_directory(path), self._files.pipe_file(path, content)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, info: Mapping[str, Any]) -> str:
        return info["name"].removeprefix(self._root).strip("/")

    def _listed(self) -> Iterable[dict[str, Any]]:
        self._files.invalidate_cache()  # another machine may have written since
        try:
            return self._reach("read", lambda: self._files.ls(self._root, detail=True))
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise

    def _make_directory(self, path: str) -> None:
        # Object stores have no directories, and theirs are the asynchronous ones: asked for one, they would make a bucket.
        if not self._files.async_impl:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _reach(self, what: str, call: Callable[[], Found], pauses: tuple[float, ...] = ()) -> Found:
        """What a call gives, tried again after each pause. Raises RunError with the last reason."""
        for pause in (*pauses, None):
            try:
                return call()
            except Exception as error:  # file systems raise whatever the packages below them do
                if pause is None or isinstance(error, HOPELESS):
                    raise RunError(f"{self.name} cannot be {what}: {first_line(error)}") from error
                self.hurry.wait(pause)
        raise AssertionError


def _mark(info: Mapping[str, Any]) -> str:
    mark = next((info[name] for name in MARKS if info.get(name)), "")
    moment = getattr(mark, "timestamp", None)  # the same file system may give a date here and a number there
    return f"{info.get('size')} {moment() if moment else mark}"
