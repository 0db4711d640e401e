"""The part of a record that is the document: a text field, found by its name or path, or the messages of a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthscope.errors import DataError

Message = Mapping[str, Any]
Document = str | tuple[Message, ...]
"""A text, or the messages of a chat. Rows without text give empty documents, so that a document's number is its place in the
source."""
TEXT_FIELD, CHAT_FIELD = "text", "messages"


@dataclass(frozen=True, slots=True)
class Field:
    """The field of a record that holds the document. A dot in `name` goes into a record: `data.text`."""

    name: str
    chat: bool = False
    """Whether the field holds messages, each with a role and content."""

    @classmethod
    def named(cls, name: str, chat: bool) -> "Field":
        """The field asked for, by default `text`, or `messages` of a chat."""
        return cls(name or (CHAT_FIELD if chat else TEXT_FIELD), chat)

    @property
    def top(self) -> str:
        """The first part of the path."""
        return self.name.partition(".")[0]

    def of(self, record: Any, where: str) -> Document:
        """The document of a record, empty where the record or the field is null.

        Raises DataError, naming the place `where`, for a record without the field or a field that holds something else.
        """
        if isinstance(record, str) and self == Field(TEXT_FIELD):
            return require_text(record, where)  # a JSON list of texts
        value = self._find(record, where)
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

    def _find(self, record: Any, where: str) -> Any:
        if record is None:
            return None
        path = [self.name] if isinstance(record, Mapping) and self.name in record else self.name.split(".")
        value = record
        for depth, key in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping) or key not in value:
                raise DataError(f"{where}: {self._missing('.'.join(path[: depth + 1]), value)}")
            value = value[key]
        return value

    def _missing(self, key: str, found: Any) -> str:
        ask = "Name the field of messages with #FIELD" if self.chat else "Name the text field with #FIELD"
        if not isinstance(found, Mapping):
            return f"no field {key!r} (it is a {type(found).__name__}). {ask}"
        hint = ", or read its messages with --chat" if CHAT_FIELD in found and not self.chat else ""
        return f"no field {key!r} (it has {', '.join(map(str, found))}). {ask}{hint}"


def messages_of(value: Any, where: str) -> tuple[Message, ...]:
    """The messages of a chat, none for null. Raises DataError for anything but a list of objects with role and content."""
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"{where} is a {type(value).__name__}, expected a list of messages with role and content")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            has = ", ".join(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
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
