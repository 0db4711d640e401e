"""Fitting a tuned lens or a Jacobian lens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.experiments.lens_text import lens_text
from depthscope.experiments.read_lenses import FIT
from depthscope.experiments.tuned_lens import FittedLens
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.schema.lens import TUNED, check_fitted
from depthscope.studies.run_study import Progress
from depthscope.studies.settings import check_window


@memory_errors("fit a lens", "Use a shorter window, or load the model in another dtype")
def tune_lens(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    lens: str = TUNED,
    progress: bool | Progress = True,
) -> FittedLens:
    """Fit a tuned lens (Belrose et al. 2023), or with `lens="jacobian"` a Jacobian lens, on a text and store it in `out`.

    The same call resumes a fit that was interrupted, and reads a lens that is complete. `tokens` is how much text trains it
    (131,072 by default); every 8th document is held out, and that text comes on top. Measure on other documents: a study with
    `lens="tuned"` trains on what it does not measure. `model`, `text`, `window` and `bos` are as for `study`. Raises DataError
    for too little text, UnsupportedError where a Jacobian lens needs gradients that the model does not have, DepthscopeError if
    `out` has a lens fitted for another model, on other text or in another way.
    """
    check_fitted(lens)
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    model = model_of(model)

    def fitted(tell: Progress | None) -> FittedLens:
        chosen = lens_text(text, model, length=window, bos=bos, tell=tell)
        return FIT[lens](model, chosen, out, tell=tell)

    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            return fitted(tell)
    return fitted(progress or None)
