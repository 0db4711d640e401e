"""The examples of probes by depth: a sample of the text's positions, their classes, and which are for training.

Positions are drawn with a fixed seed from the first windows of the text, so memory and disk usage do not grow with more text.
Whole documents (or packs, or clusters) go to training or to test, so that no probe is tested on a document it was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from depthscope.data.bos import NONE as WITHOUT_BOS
from depthscope.data.token_classes import vocabulary_of
from depthscope.data.token_properties import NONE, frequent, spelling, suffix_class, which, word_class, word_position
from depthscope.data.windows import Windows
from depthscope.errors import DataError
from depthscope.models.model import Model
from depthscope.schema.depth_probes import FIRST, FREQUENT, LATER, NO_SUFFIX, PROPERTIES, WORD_CLASSES

EXAMPLES = 4_000
SPAN = 131_072
"""Tokens of the first windows, which examples are drawn from."""
MOST_NUMBERS = 1 << 27
"""Of all examples' residual streams at all depths: 512 MiB in float32. A larger model has fewer examples."""
TEST_SHARE = 0.3
FEWEST_OF_CLASS = (10, 3)
"""Examples of a class for training and test; a class with fewer is left out."""
FEWEST = (50, 30)
"""Examples of a property for training and test, as for probes of neurons."""

Labels = Int64[np.ndarray, " examples"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A property's classes: for each example the number of its class in `names`, or NONE where it is none of the property's."""

    labels: Labels
    names: tuple[str, ...]

    def counts(self, training: Bool[np.ndarray, " examples"]) -> Int64[np.ndarray, "classes 2"]:
        """Training and test examples of each class."""
        parts = (self.labels[training], self.labels[~training])
        return np.stack([np.bincount(part[part != NONE], minlength=len(self.names)) for part in parts], 1)

    def with_fewer(
        self, number: int, training: Bool[np.ndarray, " examples"], generator: np.random.Generator
    ) -> "Labelled":
        """With at most as many examples of class `number` as of all others, in training and in test, drawn at random."""
        labels = self.labels.copy()
        for part in (training, ~training):
            of_class = generator.permutation(np.flatnonzero(part & (labels == number)))
            others = np.count_nonzero(part & (labels != number) & (labels != NONE))
            labels[of_class[others:]] = NONE
        return Labelled(labels, self.names)

    def without_rare(self, training: Bool[np.ndarray, " examples"]) -> "Labelled":
        """Without the classes that have too few examples."""
        enough = (self.counts(training) >= FEWEST_OF_CLASS).all(1)
        number = np.append(np.where(enough, np.cumsum(enough) - 1, NONE), NONE)  # the last is that of NONE itself
        return Labelled(number[self.labels], tuple(np.array(self.names, dtype=object)[enough]))


@dataclass(frozen=True, slots=True)
class Examples:
    """Positions of the text, in its order, with their documents and tokens."""

    window: Int64[np.ndarray, " examples"]
    """The window's number among all windows."""
    position: Int64[np.ndarray, " examples"]
    """Place in the window."""
    document: Int64[np.ndarray, " examples"]
    training: Bool[np.ndarray, " examples"]
    token: Int64[np.ndarray, " examples"]
    previous: Int64[np.ndarray, " examples"]
    following: Int64[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.window)


def draw_examples(windows: Windows, numbers: int, seed: int, most: int = EXAMPLES) -> Examples:
    """At most `most` positions that have a token of the text before them; `numbers`: how many one example has at all depths.

    Raises DataError for text of a single document, or windows too short to have such positions.
    """
    span = windows.part(0, max(1, SPAN // windows.length))
    first = 1 if windows.bos == WITHOUT_BOS else 2
    places = max(0, windows.length - first)
    units = np.unique(span.document)
    if len(units) < 2 or not places:
        raise DataError(
            f"probes by depth need at least two documents, one for training and one for test, and windows of at least "
            f"{first + 1} tokens; got {len(units)} {'document' if len(units) == 1 else 'documents'} and windows of "
            f"{windows.length}"
        )
    generator = np.random.default_rng(seed)
    count = min(most, MOST_NUMBERS // numbers, len(span) * places)
    drawn = np.sort(generator.choice(len(span) * places, count, replace=False))
    window, position = drawn // places, drawn % places + first
    test = generator.permutation(units)[: max(1, round(TEST_SHARE * len(units)))]
    ids = span.ids.astype(np.int64)
    tokens = (ids[window, position + shift] for shift in (0, -1, 1))
    document = span.document[window]
    return Examples(window, position, document, ~np.isin(document, test), *tokens)


def label(
    model: Model, examples: Examples, suffixes: Sequence[str], seed: int
) -> tuple[dict[str, Labelled], dict[str, str]]:
    """The classes of each property by its name, and why others cannot be probed."""
    labelled, refused = {}, {}
    for name, found in _properties(model, examples, suffixes, seed).items():
        kept = found.without_rare(examples.training)
        counts = kept.counts(examples.training).sum(0)
        if len(kept.names) >= 2 and (counts >= FEWEST).all():
            labelled[name] = kept
        else:
            of_class, in_all = (
                f"{training} training and {test} test examples" for training, test in (FEWEST_OF_CLASS, FEWEST)
            )
            refused[name] = (
                f"of {len(examples):,} positions of the text, {counts[0]} are training and {counts[1]} test examples of its "
                f"{len(kept.names)} classes with at least {of_class}; expected two such classes and {in_all}. Use more --tokens"
            )
    if model.tokenizer is None:
        reason = f"{model.name} came without a tokenizer, so the text of its tokens is not known"
        refused |= {name: reason for name in PROPERTIES if name not in {*labelled, *refused}}
    return labelled, refused


def _properties(model: Model, examples: Examples, suffixes: Sequence[str], seed: int) -> dict[str, Labelled]:
    """All classes of each property; without a tokenizer only of the tokens themselves."""
    vocabulary, train = vocabulary_of(model), examples.training
    token, previous = examples.token, examples.previous
    found = {}
    for name, tokens in (("token", token), ("previous_token", previous)):
        kinds = frequent(tokens, train, FREQUENT)
        found[name] = Labelled(which(tokens, kinds), tuple(map(vocabulary.shown, kinds.tolist())))
    if model.tokenizer is None:
        return found
    spelled = spelling(vocabulary)
    ends = Labelled(
        suffix_class(vocabulary, suffixes)[examples.following], (*(f"-{one}" for one in suffixes), NO_SUFFIX)
    )
    return found | {
        "word_class": Labelled(word_class(spelled, token, previous), WORD_CLASSES),
        "word_position": Labelled(word_position(spelled, token, previous), (FIRST, LATER)),
        "next_suffix": ends.with_fewer(len(suffixes), train, np.random.default_rng(seed)),
    }
