"""The text that affine maps are fitted on: documents apart from the measured ones.

Of the same source as the measured text these are the documents after the last measured one, of another source (`fit_data`) all.
A window that is also measured is refused.
"""

from dataclasses import dataclass, replace
from typing import Any

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.errors import DataError
from depthscope.experiments.lens_text import require_apart
from depthscope.models.model import Model
from depthscope.printable import printable
from depthscope.schema.linearity import FEWEST_PER_COORDINATE, TOKENS_PER_COORDINATE


@dataclass(frozen=True, slots=True)
class FitText:
    """Windows to fit on, and where they are from."""

    source: str
    first_document: int
    """The first document of the source that could be used."""
    windows: Windows

    def record(self) -> dict[str, Any]:
        """What identifies the text, as JSON values."""
        return {
            "data": printable(self.source),
            "first_document": self.first_document,
            "documents": self.windows.documents,
            "tokens": self.windows.tokens,
            "token_hash": self.windows.token_hash(),
        }


def fit_text(
    corpus: Corpus, model: Model, measured: Windows, *, bos: str, tokens: int | None = None, data: str | None = None
) -> FitText:
    """The text to fit on, in windows as long as the measured ones. `tokens`: by default TOKENS_PER_COORDINATE · d_model.

    Raises DataError if there is less than FEWEST_PER_COORDINATE · d_model of it, or if it has measured windows.
    """
    width, first = model.unembedding.weight.shape[1], 0
    if data is not None and data != corpus.source:
        corpus = replace(corpus, source=data, texts=())
    else:
        first = int((measured.document if measured.owner is None else measured.owner).max()) + 1
    fewest = FEWEST_PER_COORDINATE * width
    wanted = TOKENS_PER_COORDINATE * width if tokens is None else tokens
    if wanted < fewest:
        raise DataError(
            f"{wanted:,} tokens to fit on are too few for maps of {width} coordinates: expected --fit-tokens of at least "
            f"{fewest:,}, better {TOKENS_PER_COORDINATE * width:,}"
        )
    chosen = replace(corpus, tokens=wanted, skip=first)
    try:
        windows = make_windows(chosen, model, length=measured.length, bos=bos)
    except DataError as error:
        if first == 0:
            raise
        raise DataError(_too_little(chosen.source, first, 0, fewest)) from error
    if windows.tokens < fewest:
        raise DataError(_too_little(chosen.source, first, windows.tokens, fewest))
    require_apart(chosen.source, windows, measured, "the affine maps", "--fit-data")
    return FitText(chosen.source, first, windows)


def _too_little(source: str, first: int, tokens: int, fewest: int) -> str:
    where = f"after document {first - 1}, the last that is measured, " if first else ""
    return (
        f"too little text to fit affine maps on: {where}{source} has {tokens:,} tokens in whole windows; expected at least "
        f"{fewest:,}. Measure fewer --tokens, or name other text with --fit-data"
    )
