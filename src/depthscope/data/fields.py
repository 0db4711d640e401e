"""The part of a record that is the document, and the one that says which documents belong together.

The document is a text field, found by its name or path, or the messages of a chat. Documents with the same value of the
cluster field are one cluster (see corpus).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthscope.errors import DataError
from depthscope.printable import listed

Message = Mapping[str, Any]
Document = str | tuple[Message, ...]
"""A text, or the messages of a chat. Rows without text give empty documents, so that a document's number is its place in the
source."""
TEXT_FIELD, CHAT_FIELD = "text", "messages"


@dataclass(frozen=True, slots=True)
class Row:
    """What a record gives: its document, and the value of the cluster field; None without one, or without text."""

    document: Document
    cluster: Hashable = None


@dataclass(frozen=True, slots=True)
class Field:
    """The field of a record that holds the document. A dot in `name` or `cluster` goes into a record: `data.text`."""

    name: str
    chat: bool = False
    """Whether the field holds messages, each with a role and content."""
    cluster: str = ""
    """The field whose values are clusters of documents; empty for none."""

    @classmethod
    def named(cls, name: str, chat: bool, cluster: str | None = None) -> "Field":
        """The field asked for, by default `text`, or `messages` of a chat."""
        return cls(name or (CHAT_FIELD if chat else TEXT_FIELD), chat, cluster or "")

    @property
    def top(self) -> str:
        """The first part of the path."""
        return self.name.partition(".")[0]

    def columns(self, there: Iterable[str], where: str) -> list[str]:
        """Which columns of a table hold document and cluster. Raises DataError, naming the table, where one is missing."""
        names = list(there)
        found = {name: name if name in names else name.partition(".")[0] for name in (self.name, self.cluster) if name}
        for name, column in found.items():
            if column not in names:
                ask = f"Name one as {where}#FIELD" if name == self.name else "Name one with --cluster"
                raise DataError(f"{where} has no field {name!r}: it has {listed(names)}. {ask}")
        return list(dict.fromkeys(found.values()))

    def row(self, record: Any, where: str) -> Row:
        """Document and cluster of a record, whose place is `where`. Raises DataError as `of`, and for no usable cluster."""
        document = self.of(record, where)
        if not self.cluster or not document:
            return Row(document)
        value = _find(record, self.cluster, where, "Name the field of clusters with --cluster")
        unknown = value is None or value != value  # NaN equals nothing, not even itself
        if unknown or (isinstance(value, Mapping | Sequence) and not isinstance(value, str)):
            found = "null" if unknown else f"a {type(value).__name__}"
            raise DataError(
                f"{where}: field {self.cluster!r} is {found}: expected text or a number that all documents of a cluster share"
            )
        return Row(document, value)

    def of(self, record: Any, where: str) -> Document:
        """The document of a record, empty where the record or the field is null.

        Raises DataError, naming the place `where`, for a record without the field or a field that holds something else.
        """
        if isinstance(record, str) and self.name == TEXT_FIELD and not self.chat:
            return require_text(record, where)  # a JSON list of texts
        value = _find(record, self.name, where, self._hint(record))
        if self.chat:
            return messages_of(value, f"{where}: field {self.name!r}")
        if value is None:
            return ""
        if isinstance(value, str):
            return require_text(value, where)
        if _looks_like_chat(value):
            raise DataError(
                f"{where}: field {self.name!r} is a list of messages, expected text. --chat (chat=True) reads messages "
                f"through the tokenizer's chat template, from the field {CHAT_FIELD!r} or the one after #"
            )
        raise DataError(f"{where}: field {self.name!r} is a {type(value).__name__}, expected text")

    def _hint(self, record: Any) -> str:
        """What to do about a document that is not there."""
        if self.chat:
            return "Name the field of messages with #FIELD"
        hint = ", or read its messages with --chat" if isinstance(record, Mapping) and CHAT_FIELD in record else ""
        return f"Name the text field with #FIELD{hint}"


def _find(record: Any, name: str, where: str, hint: str) -> Any:
    """The value of a field; None where the record or a part of the path is null. Raises DataError where there is none."""
    if record is None:
        return None
    path = [name] if isinstance(record, Mapping) and name in record else name.split(".")
    value = record
    for depth, key in enumerate(path):
        if value is None:
            return None
        if not isinstance(value, Mapping) or key not in value:
            there = f"has {listed(value)}" if isinstance(value, Mapping) else f"is a {type(value).__name__}"
            raise DataError(f"{where}: no field {'.'.join(path[: depth + 1])!r} (it {there}). {hint}")
        value = value[key]
    return value


def messages_of(value: Any, where: str) -> tuple[Message, ...]:
    """The messages of a chat, none for null. Raises DataError for anything but a list of objects with role and content."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"{where} is a {type(value).__name__}, expected a list of messages with role and content")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            has = listed(message) if isinstance(message, Mapping) else type(message).__name__
            raise DataError(f"{where}, message {number}: expected an object with role and content, got {has}")
        if isinstance(message["content"], str):
            require_text(message["content"], f"{where}, message {number}")
    return tuple(value)


def _looks_like_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "content" in value[0]


def require_text(text: str, where: str) -> str:
    """The text as it is. Raises DataError for one that UTF-8 cannot write, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half of a surrogate pair (U+{ord(text[error.start]):04X} at character {error.start}), which is no "
            "text. Remove it"
        ) from error
    return text
