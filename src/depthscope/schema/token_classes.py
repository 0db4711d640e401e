"""Classes of predicted tokens: which predictions a mean is over. Each classing puts every predicted token into one class.

At position t a model predicts the token at t + 1: a class is one of that token, in its window, and of what the unmodified
model predicts there; never of an edited model. Edges are fixed, so classes do not depend on how the text is cut into work
units. Frequency is that in the text of the run, whose hash the run records. `data/predicted_classes.py` computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from depthscope.schema.declaration import Option

RANK_EDGES = (10, 100, 1000)
"""Last ranks of the bands of frequency, as in Gupta et al. 2025 (arXiv 2510.18871), who rank by another corpus."""
CONTEXT_EDGES = (8, 32, 128, 512, 2048)
"""Last numbers of tokens before the predicted one."""
ENTROPY_EDGES = (0.5, 1.0, 2.0, 4.0)
"""Upper ends, in nats, not included."""
LONGEST_REPEATED = 3
"""Tokens of the longest repeated phrase that is distinguished from shorter ones."""


@dataclass(frozen=True, slots=True)
class TokenClass:
    """A class of predicted tokens. Names are unique in their classing, titles among all classes."""

    name: str
    title: str
    definition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Classing:
    """A way to divide the predicted tokens into classes."""

    name: str
    title: str
    definition: str
    classes: Sequence[TokenClass]
    ordered: bool = False
    """Whether the classes are bands of one quantity."""
    needs_text: bool = False
    """Whether it looks at the tokens' text, for which the model needs its tokenizer."""


def _counted(edges: Sequence[int], title: str, definition: str) -> list[TokenClass]:
    """Bands of a number from 1: up to each edge, and beyond the last."""
    starts = [1, *(edge + 1 for edge in edges)]
    bands = [f"{start}-{edge}" for start, edge in zip(starts, edges, strict=False)] + [f"{starts[-1]}+"]
    return [TokenClass(band, title.format(_ranged(band)), definition.format(_ranged(band))) for band in bands]


def _ranged(band: str) -> str:
    return f"{band[:-1]} or more" if band.endswith("+") else band.replace("-", "–")


def _entropies() -> list[TokenClass]:
    ends = [f"{end:g}" for end in (0.0, *ENTROPY_EDGES)]
    bands = [TokenClass(f"{a}-{b}", f"entropy {a}–{b}", f"from {a} to {b} nats") for a, b in pairwise(ends)]
    return [*bands, TokenClass(f"{ends[-1]}+", f"entropy {ends[-1]} or more", f"{ends[-1]} nats or more")]


FREQUENCY = Classing(
    name="frequency",
    title="Frequency",
    definition="rank of the predicted token among all tokens of the run's text, by how often it is predicted there; of two "
    "that are equally frequent the one with the lower id is first",
    classes=_counted(RANK_EDGES, "rank {}", "rank {}"),
    ordered=True,
)
WORD_PLACE = Classing(
    name="word_place",
    title="Place in word",
    definition="whether the predicted token begins a word (a run of letters, marks and digits)",
    classes=(
        TokenClass("begins", "begins a word", "its first letter or digit does not directly follow one"),
        TokenClass(
            "continues",
            "continues a word",
            "it begins with a letter or digit (or an apostrophe and one) directly after one",
        ),
        TokenClass(
            "no_word", "no word", "it begins with neither: punctuation, white space, part of a character, special"
        ),
    ),
    needs_text=True,
)
KIND = Classing(
    name="kind",
    title="Kind of token",
    definition="what the predicted token consists of, white space at its ends not counted",
    classes=(
        TokenClass(
            "lower_case", "lower case", "it begins with a letter that is no capital (after an apostrophe or not)"
        ),
        TokenClass("capital", "capital first", "it begins with a capital letter"),
        TokenClass("digits", "digits", "digits alone"),
        TokenClass("punctuation", "punctuation", "punctuation and symbols alone"),
        TokenClass("whitespace", "white space", "white space alone"),
        TokenClass("other", "other tokens", "mixtures, parts of characters, special tokens"),
    ),
    needs_text=True,
)
REPEATED = Classing(
    name="repeated",
    title="Repeated phrase",
    definition=f"the longest n-gram, up to {LONGEST_REPEATED}, that ends with the predicted token and is in its window before",
    classes=(
        TokenClass("new", "new token", "the token is not in the window before"),
        TokenClass("seen", "token seen before", "the token is in the window before, but not after the same token"),
        *(
            TokenClass(
                f"{n}-gram",
                f"repeated {n}-gram{' or longer' * (n == LONGEST_REPEATED)}",
                f"it and the {n - 1} token{'s' * (n > 2)} before it are in the window before, in this order",
            )
            for n in range(2, LONGEST_REPEATED + 1)
        ),
    ),
    ordered=True,
)
POSITION = Classing(
    name="position",
    title="Position",
    definition="number of tokens that stand before the predicted one in its window, a BOS token included",
    classes=_counted(CONTEXT_EDGES, "after {} tokens", "{} tokens before it"),
    ordered=True,
)
ENTROPY = Classing(
    name="entropy",
    title="Own entropy",
    definition="entropy of the unmodified model's distribution over the predicted token",
    classes=_entropies(),
    ordered=True,
)

CLASSINGS = {one.name: one for one in (FREQUENCY, WORD_PLACE, KIND, REPEATED, POSITION, ENTROPY)}
"""The classings, in the order of tables and figures."""
CLASSES = {(classing.name, one.name): one for classing in CLASSINGS.values() for one in classing.classes}
"""All classes by classing and name."""

BY_CLASS = Option(
    name="by_class",
    type=bool,
    default=False,
    help="Also by class of the predicted token: frequency, place in the word, kind, repeated phrase, position, and the model's "
    "own entropy. It adds the tables sweep_classes, lens_classes and map_classes of what is measured, from the same pass.",
)
