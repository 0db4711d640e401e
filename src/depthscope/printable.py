"""Text and values from outside, made safe to show: short, and without characters that act on a terminal. Imports nothing."""

import re
from collections.abc import Iterable

ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
"""Control characters, line and paragraph separators, invisible characters that reorder text, and halves of surrogate pairs."""
NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: object) -> str:
    """The text with control characters, line breaks and the like written as escapes: `\\n`, `\\x1b`, `\\u202e`.

    A byte of a file name that is not UTF-8 (half of a surrogate pair to Python) is written as that byte. A backslash stays as
    it is, so the result is for reading and cannot be turned back.
    """
    return ACTING.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    character, code = found.group(), ord(found.group())
    if character in NAMED:
        return NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:  # what os.fsdecode makes of a byte
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(value: object, most: int = 100) -> str:
    """A value for a message: its representation, cut after `most` characters. Never raises."""
    try:
        text = repr(value)
    except Exception:  # an int of more digits than Python writes, or whatever a stranger's class does
        return f"a value of type {type(value).__name__} that cannot be written out"
    return printable(text) if len(text) <= most else f"{printable(text[:most])}… ({len(text):,} characters)"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names for a message, separated by commas: the first ones, each cut after 100 characters, and how many more there are."""
    every = list(names)
    text = ", ".join(name if len(name) <= 100 else f"{name[:100]}…" for name in map(printable, every[:most]))
    return f"{text} and {len(every) - most:,} more" if len(every) > most else text


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line of at most 500 characters."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0][:500])
