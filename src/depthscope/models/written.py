"""The text that generated tokens write after a prompt, piece by piece.

A token is not always text: several may make up one character, and a tokenizer may write a token differently at the beginning of
a text (without the space before a word). So tokens are decoded together with the prompt's last ones, and a piece is given out
only when what follows cannot change it.
"""

from collections.abc import Sequence
from typing import Any

BEFORE = 8
"""Tokens of the prompt that are decoded with what follows."""
INCOMPLETE = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class Written:
    """The continuation of a prompt. Special tokens are not written; the text ends before the first of the `stops`."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._before, self._stops = tokenizer, list(prompt[-BEFORE:]), tuple(stops)
        self._ids: list[int] = []
        self._given = ""

    @property
    def text(self) -> str:
        """All of the text so far, up to a stop."""
        return self._cut(self._decoded())[0]

    def add(self, ids: Sequence[int]) -> str:
        """The text that further tokens make certain, often empty."""
        self._ids += ids
        text, stopped = self._cut(self._decoded())
        if not stopped:
            text = text[: len(text) - self._uncertain(text)]
        return self._new(text)

    def rest(self) -> str:
        """What is left when no more tokens follow."""
        return self._new(self.text)

    def _new(self, text: str) -> str:
        if not text.startswith(self._given):  # decoded differently with what followed: nothing can be taken back
            return ""
        piece = text[len(self._given) :]
        self._given = text
        return piece

    def _decoded(self) -> str:
        before = self._decode(self._before)
        whole = self._decode(self._before + self._ids)
        return whole[len(before) :] if whole.startswith(before) else self._decode(self._ids)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop in it, and whether there is one."""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _uncertain(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop, or of a character."""
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return max(held, len(text) - len(text.rstrip(INCOMPLETE)))
