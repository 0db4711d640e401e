"""Properties of a position that any text yields without annotation, from the texts of the tokens at it and next to it.

Everything is a stated rule on spelling. A token begins with a letter with or without a space before it; it *begins a word* if
it has that space, or if the token before it does not end in a letter. Function words are English: in other languages that class
stays empty, and the other rules hold.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from depthscope.data.token_classes import Vocabulary
from depthscope.schema.depth_probes import CAPITALISED, DIGITS, FUNCTION, OTHER, PUNCTUATION, WORD_CLASSES

_WORDS = """
a an the this that these those some any no every each either neither both all another such what which whose
i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our ours ourselves
they them their theirs themselves who whom one none nothing something anything everything nobody somebody anybody
of in to for with on at by from as into about after before over under between through during against without within
upon among toward towards beyond behind beside across along around above below near since until till off out up down
and or but nor so yet if because although though while when where whether than unless lest
is am are was were be been being do does did done have has had having will would shall should can could may might must
not there here then now how why too very also only just even
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
"""English articles, determiners, pronouns, prepositions, conjunctions, auxiliaries and the commonest particles, lower case."""
NONE = -1
"""The class of a position that does not have the property."""

Ids = Int[np.ndarray, " positions"]
Labels = Int64[np.ndarray, " positions"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """What the rules need to know of each vocabulary entry."""

    spaced: Bool[np.ndarray, " vocab"]
    """Whether it begins with white space."""
    letter_first: Bool[np.ndarray, " vocab"]
    """Whether its first character other than white space is a letter."""
    letter_last: Bool[np.ndarray, " vocab"]
    kind: Int64[np.ndarray, " vocab"]
    """Number in WORD_CLASSES of the class it has where it begins a word; NONE for white space and parts of characters."""
    within: Int64[np.ndarray, " vocab"]
    """The same where it does not begin a word: then it is no function word."""


def spelling(vocabulary: Vocabulary) -> Spelling:
    """The rules applied to every entry; special tokens and entries without text have no property."""
    size = len(vocabulary.texts)
    flags = np.zeros((3, size), dtype=bool)
    kinds = np.full((2, size), NONE)
    for token, text in enumerate(vocabulary.texts):
        if text is None or token in vocabulary.special or not (bare := text.strip()):
            continue
        flags[:, token] = text[0].isspace(), bare[0].isalpha(), text[-1].isalpha()
        kinds[:, token] = _kind(bare, FUNCTION_WORDS), _kind(bare, frozenset())
    return Spelling(*flags, *kinds)


def _kind(text: str, function_words: frozenset[str]) -> int:
    if text.isdecimal():
        kind = DIGITS
    elif all(unicodedata.category(one)[0] in "PS" and one != "\ufffd" for one in text):
        kind = PUNCTUATION
    elif not text[0].isalpha():
        return NONE
    elif text.casefold() in function_words:
        kind = FUNCTION
    else:
        kind = CAPITALISED if text[0].isupper() else OTHER
    return WORD_CLASSES.index(kind)


def begins_word(spelled: Spelling, token: Ids, previous: Ids) -> Bool[np.ndarray, " positions"]:
    """Whether each token begins a word, given the token before it."""
    return spelled.letter_first[token] & (spelled.spaced[token] | ~spelled.letter_last[previous])


def word_class(spelled: Spelling, token: Ids, previous: Ids) -> Labels:
    """Number in WORD_CLASSES, or NONE."""
    return np.where(begins_word(spelled, token, previous), spelled.kind[token], spelled.within[token])


def word_position(spelled: Spelling, token: Ids, previous: Ids) -> Labels:
    """0 for the first token of a word, 1 for a later one, NONE for a token that does not begin with a letter."""
    return np.where(spelled.letter_first[token], ~begins_word(spelled, token, previous), NONE)


def suffix_class(vocabulary: Vocabulary, suffixes: Sequence[str]) -> Int64[np.ndarray, " vocab"]:
    """Number of the longest of the suffixes that each entry ends in; their number where it ends in none, NONE without text."""
    wanted = sorted(enumerate(one.casefold() for one in suffixes), key=lambda one: -len(one[1]))
    found = np.full(len(vocabulary.texts), NONE)
    for token, text in enumerate(vocabulary.texts):
        if text is None or token in vocabulary.special:
            continue
        bare = text.strip().casefold()
        ends = (number for number, suffix in wanted if bare.isalpha() and bare.endswith(suffix))
        found[token] = next(ends, len(suffixes))
    return found


def frequent(tokens: Ids, among: Bool[np.ndarray, " positions"], most: int) -> Int64[np.ndarray, " kinds"]:
    """The most frequent tokens at the positions `among`, most frequent first, equally frequent ones by id."""
    kinds, counts = np.unique(tokens[among], return_counts=True)
    return kinds[np.argsort(-counts, kind="stable")][:most].astype(np.int64)


def which(tokens: Ids, kinds: Int64[np.ndarray, " kinds"]) -> Labels:
    """The number in `kinds` of each token, or NONE."""
    number = np.full(max(int(tokens.max(initial=0)), int(kinds.max(initial=0))) + 1, NONE)
    number[kinds] = np.arange(len(kinds))
    return number[tokens]
