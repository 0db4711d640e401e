"""A vocabulary as text, and classes of tokens: suffixes, prefixes, case, digits, spaces, punctuation, length.

A token's text is what it adds to a text: every token is decoded behind one that is known ("a"), so that a space it brings
is seen with any tokenizer: byte-level BPE (where the token is "Ġthe"), SentencePiece (where it is "▁the") or WordPiece.
Classes are patterns on that text. Suffixes are spellings, not grammar: "thing" is in "-ing".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64

from depthscope.models.model import Model
from depthscope.models.token_bytes import token_bytes

SMALLEST_CLASS = 10
"""A class with fewer tokens, or with fewer outside of it, is left out: a mean over it would say little."""

SUFFIXES = [
    "ing",
    "ed",
    "ly",
    "s",
    "er",
    "est",
    "tion",
    "ment",
    "ness",
    "able",
    "ful",
    "less",
    "ous",
    "ive",
    "al",
    "ity",
]
PREFIXES = ["un", "re", "dis", "in", "pre", "over", "mis", "non", "sub", "con"]
LENGTHS = {"1": "{1}", "2": "{2}", "3": "{3}", "4-5": "{4,5}", "6-8": "{6,8}", "9 or more": "{9,}"}

PATTERNS: dict[str, str] = {
    **{f"-{suffix}": rf"(?i)^ ?\p{{L}}*{suffix}$" for suffix in SUFFIXES},
    **{f"{prefix}-": rf"(?i)^ {prefix}\p{{L}}*$" for prefix in PREFIXES},
    "capitalised": r"^ ?\p{Lu}\p{Ll}*$",
    "all capitals": r"^ ?\p{Lu}{2,}$",
    "digits": r"^ ?\p{Nd}+$",
    "leading space": r"^ \S",
    "letters without leading space": r"^\p{L}+$",
    "punctuation": r"^ ?[[\p{P}\p{S}]&&[^\x{FFFD}]]+$",
    "whitespace": r"^\s+$",
    "not ASCII": r"[^\x00-\x7F\x{FFFD}]",
    "part of a character": r"\x{FFFD}",
    **{f"length {name}": rf"^ ?[^\s\x{{FFFD}}]{count}$" for name, count in LENGTHS.items()},
}
"""Class name -> pattern (Rust's regex syntax) on a token's text. Suffixes and prefixes in any case; a suffix alone counts
(tokens inside words do), a prefix only where the token begins a word; a length is in characters, leading space not counted."""

LONE = re.compile(r"[\udc80-\udcff]+")
SHOWN = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Every entry of a model's unembedding as text."""

    texts: tuple[str | None, ...]
    """What the token adds to a text; None for entries the tokenizer has no text for, and for all without a tokenizer. Bytes
    that are only part of a character come out as �."""
    special: frozenset[int]
    """Tokens that stand for no text, such as <|endoftext|>: in no class."""
    raw: Mapping[int, bytes] = field(default_factory=dict)
    """The bytes of tokens that are not whole characters, where the tokenizer's names for them show the bytes."""

    def shown(self, token: int) -> str:
        """A token as a reader should see it, everywhere: a space as ␣, a line break as ⏎; bytes that are only part of a
        character as <0xE2 0x80>; control characters as \\x and their code; its number where it has no text."""
        text = self.texts[token]
        if text is None:
            return f"#{token}"
        if token in self.raw:
            text = self.raw[token].decode("utf-8", "surrogateescape")  # what is no text: U+DC00 and the byte
        text = text.translate(SHOWN)
        text = LONE.sub(lambda run: f"<{' '.join(f'0x{ord(c) - 0xDC00:02X}' for c in run[0])}>", text)
        return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def vocabulary_of(model: Model) -> Vocabulary:
    """The texts of a model's vocabulary, one per row of W_U."""
    size = model.unembedding.vocabulary
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        return Vocabulary((None,) * size, frozenset())
    known = min(size, len(tokenizer))
    alone = token_texts(tokenizer, range(known))
    special = frozenset(token for token in tokenizer.all_special_ids if token < size)
    raw = token_bytes(tokenizer, [token for token, text in enumerate(alone) if "\ufffd" in text])
    return Vocabulary((*(text or None for text in alone), *(None,) * (size - known)), special, raw)


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each of these tokens of a tokenizer adds to a text; empty for one that adds nothing."""
    # SentencePiece drops the leading space of a token decoded alone; after another token it is kept.
    before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    start = _decoded(tokenizer, [before])[0]
    behind = _decoded(tokenizer, [[*before, token] for token in tokens])
    texts = [text[len(start) :] for text in behind]
    changed = [place for place, text in enumerate(behind) if not text.startswith(start)]
    for place, text in zip(changed, _decoded(tokenizer, [[tokens[place]] for place in changed]), strict=True):
        texts[place] = text
    return texts


def _decoded(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    if not ids:
        return []
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, slots=True)
class TokenClasses:
    """Which tokens are in which class."""

    names: tuple[str, ...]
    member: Bool[np.ndarray, "classes vocab"]
    left_out: dict[str, int] = field(default_factory=dict)
    """Classes that were too small (or had too small a rest), with how many tokens they have."""

    @property
    def sizes(self) -> Int64[np.ndarray, " classes"]:
        """Tokens of each class."""
        return self.member.sum(1)


def token_classes(vocabulary: Vocabulary, smallest: int = SMALLEST_CLASS) -> TokenClasses:
    """The classes of a vocabulary that have at least `smallest` tokens in and out of them. Special tokens are in none."""
    ordinary = [None if token in vocabulary.special else text for token, text in enumerate(vocabulary.texts)]
    texts = pl.Series("text", ordinary, dtype=pl.String)
    names, members, left_out = [], [], {}
    for name, pattern in PATTERNS.items():
        member = texts.str.contains(pattern).fill_null(False).to_numpy()
        count = int(member.sum())
        if smallest <= count <= len(texts) - smallest:
            names.append(name)
            members.append(member)
        else:
            left_out[name] = count
    found = np.stack(members) if members else np.zeros((0, len(texts)), dtype=bool)
    return TokenClasses(tuple(names), found, left_out)
