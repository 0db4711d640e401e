"""The text that a lens is trained on: documents for training and held-out documents, both apart from the measured ones.

Of the same source as the measured text, the lens uses the documents after the last measured one; of another source
(`lens_data`), all. Of these, every 8th document (the 8th, the 16th, …) is held out and the others train. A window of the lens's
text that is also measured is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.errors import DataError
from depthscope.models.model import Model
from depthscope.printable import printable

TRAINING_TOKENS = 131_072
HELD_OUT_EVERY = 8
FEWEST_DOCUMENTS = 16
"""14 that train and 2 that are held out."""
TOKENS_PER_COORDINATE = 4
"""Training tokens for each coordinate of the residual stream, at least: a row of a map has one coefficient for each."""


@dataclass(frozen=True, slots=True)
class LensText:
    """Windows of the training and of the held-out documents, and where they are from."""

    source: str
    first_document: int
    """The first document of the source that could be used."""
    training: Windows
    held_out: Windows

    def record(self) -> dict[str, Any]:
        """What identifies the text, as JSON values."""
        return {
            "data": printable(self.source),
            "first_document": self.first_document,
            "window": self.training.length,
            "bos": self.training.bos,
            **_counts("training", self.training),
            **_counts("held_out", self.held_out),
        }


def lens_text(
    corpus: Corpus,
    model: Model,
    *,
    length: int | None,
    bos: str,
    measured: Windows | None = None,
    lens_data: str | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> LensText:
    """The text for a model's lens. `corpus.tokens` is not used unless nothing is measured: then it limits the training text.

    Raises DataError if there is too little text, or if it has measured windows.
    """
    tokens = TRAINING_TOKENS if measured is not None else corpus.tokens or TRAINING_TOKENS
    first = 0
    if lens_data is not None and lens_data != corpus.source:
        corpus = replace(corpus, source=lens_data, texts=())
    elif measured is not None:
        first = int((measured.document if measured.owner is None else measured.owner).max()) + 1
    chosen = replace(corpus, tokens=tokens + tokens // (HELD_OUT_EVERY - 1), skip=first)
    need = FEWEST_DOCUMENTS, TOKENS_PER_COORDINATE * model.unembedding.weight.shape[1]
    try:
        windows = make_windows(chosen, model, length=length, bos=bos, tell=tell)
    except DataError as error:
        if first == 0:
            raise
        raise DataError(_too_little(chosen, first, 0, 0, need)) from error
    owner = None if windows.owner is None else windows.owner + first
    windows = replace(windows, document=windows.document + first, owner=owner)
    turn = np.unique(windows.document, return_inverse=True)[1] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    training, held_out = windows.take(~turn), windows.take(turn)
    if windows.documents < need[0] or training.tokens < need[1]:
        raise DataError(_too_little(chosen, first, windows.documents, training.tokens, need))
    if measured is not None:
        require_apart(chosen.source, windows, measured)
    return LensText(chosen.source, first, training, held_out)


def _too_little(corpus: Corpus, first: int, documents: int, tokens: int, need: tuple[int, int]) -> str:
    where = f"after document {first - 1}, the last that is measured, " if first else ""
    return (
        f"too little text to train a tuned lens: {where}{corpus.source} has {documents} documents of at least one window with "
        f"{tokens:,} tokens for training; expected at least {need[0]} documents and {need[1]:,} tokens. Measure fewer "
        "--tokens, name other text with --lens-data, or give a trained lens with --tuned-lens"
    )


def require_apart(
    source: str, windows: Windows, measured: Windows, what: str = "the tuned lens", option: str = "--lens-data"
) -> None:
    """No window is both used for `what` and measured: a document's windows are cut from its beginning in both.

    Raises DataError, naming the option by which other text is given.
    """
    if windows.length != measured.length:
        return
    there = {row.tobytes() for row in measured.ids}
    same = sum(row.tobytes() in there for row in windows.ids)
    if same:
        raise DataError(
            f"{same} of the {len(windows)} windows of {source} for {what} are also measured: expected other documents "
            f"for training than for measuring. Name other text with {option}"
        )


def _counts(what: str, windows: Windows) -> dict[str, Any]:
    return {
        f"{what}_documents": windows.documents,
        f"{what}_tokens": windows.tokens,
        f"{what}_token_hash": windows.token_hash(),
    }
