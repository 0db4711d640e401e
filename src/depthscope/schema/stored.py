"""The JSON files of a run as frozen dataclasses that read and write themselves. Every entry is checked when it is read.

A class's fields are the keys of a JSON object, in order. Annotations and defaults determine what may be missing and what is
written:

    layer: int                      required
    low: int | None                 may be missing; written as null if None
    chat: bool = False              may be missing; omitted if it has its default
    field(…, metadata=ALWAYS)       may be missing; written even if it has its default
    others: dict[str, Any]          keys without a field, which a later version may have added: written back unchanged

A class without `others` ignores such keys. A file ends with its seal (`depthscope.schema.seal`), as the last key.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import EnumType
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from depthscope.errors import DamagedError, RunError
from depthscope.schema.seal import Seal, SealError, read_seal, sealed
from depthscope.untrusted import parse_json, read_bounded

FORMAT = "format"
"""Key of a file's format version."""
SEAL = "seal"
"""Key of a file's seal."""
Own = TypeVar("Own", bound="Entry")
OwnFile = TypeVar("OwnFile", bound="StoredFile")
OTHERS = "others"
ALWAYS = {"always": True}
EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}
LONGEST = 60
"""How many characters of an invalid value a message shows."""
MOST_BYTES = 8 << 20
"""Bytes of a file: stages.json of a model of MOST_LAYERS layers has 2 MB."""
LONGEST_TEXT = 1 << 16
"""Characters of a text in a file; the longest that a run writes is a reason or a path."""
LARGEST_INT = (1 << 63) - 1
"""Larger whole numbers fit no column, and some have no float."""
MOST_LAYERS = 4096
"""Layers of a model in a file. Pages and figures take time and memory by layer; models have up to a few hundred."""


class EntryError(ValueError):
    """An entry is missing or has the wrong type. The message states which, what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An object in a JSON file."""

    @classmethod
    def from_json(cls: type[Own], content: Any, at: str = "") -> Own:
        """Read an object; `at` is its place in the file. Raises EntryError."""
        if not isinstance(content, Mapping):
            raise _unexpected(dict, content, at)
        types = _types(cls)
        known = {one.name: one for one in fields(cls) if one.name != OTHERS}
        if lacking := [name for name, one in known.items() if name not in content and _required(one, types[name])]:
            raise EntryError(f"{at or 'it'} lacks {', '.join(lacking)}")
        given: dict[str, Any] = {}
        for name, one in known.items():
            if name in content:
                given[name] = _read(types[name], content[name], f"{at}.{name}" if at else name)
            elif not _has_default(one):
                given[name] = None
        if OTHERS in types:
            given[OTHERS] = {key: value for key, value in content.items() if key not in known}
        entry = cls(**given)
        entry.check(at)
        return entry

    def check(self, at: str) -> None:
        """Raise EntryError for values of the right types that are impossible. `at` is the object's place in the file."""

    def to_json(self) -> dict[str, Any]:
        """The object as JSON values."""
        content: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == OTHERS:
                content |= value
            elif one.metadata == ALWAYS or not _has_default(one) or value != _default(one):
                content[one.name] = _plain(value)
        return content


class StoredFile(Entry):
    """The content of a whole file. Its `format` is increased when a change would cause earlier files to be misread."""

    __slots__ = ()
    format: ClassVar[int]
    migrations: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
    """Maps each format to the function that converts a file to the next one. A file without a format has format 0."""
    remedy: ClassVar[str]
    """What to do about a damaged file: the end of the message."""

    sealed_from: ClassVar[int]
    """The first format whose files have a seal."""

    @classmethod
    def from_json(cls: type[OwnFile], content: Any, at: str = "") -> OwnFile:
        """Read the content of a file of this format. Raises EntryError."""
        if isinstance(content, Mapping):
            content = {key: value for key, value in content.items() if key not in (FORMAT, SEAL)}
        return super().from_json(content, at)

    @classmethod
    def read(cls: type[OwnFile], file: Path) -> OwnFile:
        """Read a file of this format or an earlier one.

        Raises RunError with the file, the entry, what was expected, what was found and what to do: DamagedError if the file
        is there and is not what was written.
        """
        return cls.read_sealed(file)[0]

    @classmethod
    def read_sealed(cls: type[OwnFile], file: Path) -> tuple[OwnFile, Seal | None]:
        """The same with the file's verified seal; None for a file of a format that had none."""
        try:
            raw = read_bounded(file, RunError, MOST_BYTES)
        except RunError as error:
            why = str(error).removeprefix(f"{file} ").removeprefix("cannot be read: ")
            why = f"it {why}" if why.startswith("is ") else why
            raise RunError(f"{file} cannot be read: {why}. {cls.remedy}") from error
        try:
            content = parse_json(raw, "it", RunError)
        except RunError as error:
            raise DamagedError(f"{file} cannot be read: {error}. {cls.remedy}") from error
        try:
            migrated = cls._migrated(content, file)
            if (seal := read_seal(raw)) is None and content.get(FORMAT, 0) >= cls.sealed_from:
                raise EntryError("it has no checksum")
            return cls.from_json(migrated), seal
        except (EntryError, SealError) as error:
            raise DamagedError(f"{file} is damaged: {error}. {cls.remedy}") from error

    @classmethod
    def _migrated(cls, content: Any, file: Path) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise _unexpected(dict, content, "")
        found = _read(int, content.get(FORMAT, 0), FORMAT)
        if found > cls.format:
            raise RunError(
                f"{file} has format {found}: this depthscope reads formats up to {cls.format}. Open it with a newer depthscope"
            )
        if found < 0:
            raise EntryError(f"{FORMAT}: expected a whole number from 0 on, got {found}")
        for earlier in range(found, cls.format):
            content = cls.migrations[earlier](content)
        return content

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return {FORMAT: self.format, **super().to_json()}


def sealed_json(content: Mapping[str, Any], seal: Seal) -> bytes:
    """The bytes of a JSON file with its seal, which is complete, at the end."""
    text = json.dumps({key: value for key, value in content.items() if key != SEAL}, indent=2, ensure_ascii=False)
    assert text.endswith("\n}"), "expected an object with at least one entry"
    return sealed(f'{text[:-2]},\n  "{SEAL}": {seal.blank}\n}}\n'.encode())


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _required(one: "Field[Any]", kind: Any) -> bool:
    return not _has_default(one) and NoneType not in get_args(kind)


def _has_default(one: "Field[Any]") -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def _default(one: "Field[Any]") -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _read(kind: Any, value: Any, at: str) -> Any:
    """A value of a field, list or object, checked against its type."""
    if isinstance(kind, UnionType):
        if value is None or _not_computed(value):
            return None
        # A member of an Enum only ever represents a missing key.
        (kind,) = (member for member in get_args(kind) if member is not NoneType and not isinstance(member, EnumType))
    if kind is Any:
        return value
    if is_dataclass(kind):
        assert isinstance(kind, type)
        assert issubclass(kind, Entry)
        return kind.from_json(value, at)
    form = get_origin(kind) or kind
    if not _is(form, value):
        raise _unexpected(form, value, at)
    if form is list:
        (member,) = get_args(kind)
        return [_read(member, one, f"{at}[{place}]") for place, one in enumerate(value)]
    if form is dict:
        _, member = get_args(kind)
        return {key: _read(member, one, f"{at}.{key}") for key, one in value.items()}
    return value


def _not_computed(value: Any) -> bool:
    """Whether a value is NaN or an infinity, which Python's JSON may hold."""
    return isinstance(value, float) and not math.isfinite(value)


def _is(form: type, value: Any) -> bool:
    if isinstance(value, bool):  # Python counts it as an int
        return form is bool
    if isinstance(value, int):
        return form in (int, float) and abs(value) <= LARGEST_INT
    if isinstance(value, float):
        return form is float and math.isfinite(value)
    if isinstance(value, str):
        return form is str and len(value) <= LONGEST_TEXT
    return isinstance(value, form)


def require_range(at: str, name: str, value: int | None, low: int, high: int) -> None:
    """Raise EntryError for a whole number outside `low` to `high`; None is allowed."""
    if value is not None and not low <= value <= high:
        raise EntryError(f"{at}{'.' if at else ''}{name}: expected {low} to {high}, got {value}")


def require_name(at: str, name: str) -> None:
    """Raise EntryError unless `name` can be that of an experiment, and so of a file."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name):
        raise EntryError(f"{at}: expected names of lower-case letters, digits and _, got {_shown(name)}")


def _unexpected(form: type, value: Any, at: str) -> EntryError:
    return EntryError(f"{at}{': ' if at else ''}expected {EXPECTED[form]}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as JSON, cut off. Only what will be shown is written."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if len(value) <= LONGEST else f'"{value[:LONGEST]}…'
    if isinstance(value, list | dict):
        return (
            f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
            if len(value) > 10
            else _cut(value)
        )
    return _cut(value)


def _cut(value: Any) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


def _plain(value: Any) -> Any:
    if isinstance(value, Entry):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return value
