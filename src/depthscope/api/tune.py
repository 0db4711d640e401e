"""Fitting a tuned lens or a Jacobian lens, and converting a published one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.errors import DepthscopeError, RunError
from depthscope.experiments.fit_jacobian import JacobianRecipe
from depthscope.experiments.lens_text import lens_text
from depthscope.experiments.published_lens import converted
from depthscope.experiments.read_lenses import FIT
from depthscope.experiments.tuned_lens import CONFIG, FittedLens, read_config, require_replaceable
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.run.lock import locked
from depthscope.schema.lens import JACOBIAN, TUNED, check_fitted
from depthscope.studies.settings import check_window
from depthscope.studies.studied import Progress


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
    most_windows: int | None = None,
    progress: bool | Progress = True,
) -> FittedLens:
    """Fit a tuned lens (Belrose et al. 2023), or with `lens="jacobian"` a Jacobian lens, on a text and store it in `out`.

    The same call resumes a fit that was interrupted, and reads a lens that is complete. `tokens` is how much text trains it
    (131,072 by default); every 8th document is held out, and that text comes on top. Measure on other documents: a study with
    `lens="tuned"` trains on what it does not measure. A Jacobian lens ends after `most_windows` windows at the latest (1,000
    by default): few are enough for its predictions, more for its matrices. `model`, `text`, `window` and `bos` are as for
    `study`. Raises DataError for too little text, UnsupportedError where a Jacobian lens needs gradients that the model does
    not have, DepthscopeError if `out` has a lens fitted for another model, on other text or in another way, and RunError if
    another process is writing it.
    """
    check_fitted(lens)
    recipe = {} if most_windows is None else {"recipe": _recipe(lens, most_windows)}
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    model = model_of(model)

    def fitted(tell: Progress | None) -> FittedLens:
        with locked(Path(out)):
            chosen = lens_text(text, model, length=window, bos=bos, tell=tell)
            return FIT[lens](model, chosen, out, tell=tell, **recipe)

    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            return fitted(tell)
    return fitted(progress or None)


def _recipe(lens: str, most_windows: Any) -> JacobianRecipe:
    if lens != JACOBIAN:
        raise DepthscopeError(
            f"most_windows is for a Jacobian lens, and a {lens} lens ends by its held-out KL: leave it out"
        )
    if not isinstance(most_windows, int) or isinstance(most_windows, bool) or most_windows < 1:
        raise DepthscopeError(f"most_windows is {shown(most_windows)}: expected a whole number from 1 on")
    return JacobianRecipe(most=most_windows)


@memory_errors("convert a lens", "Load the model with stream='yes'")
def convert_lens(model: Model | str, file: str | Path, *, out: str | Path) -> FittedLens:
    """Convert a published lens for a model from PyTorch's pickle format, and store it in `out`, as `tune_lens` stores one.

    `file` is a Jacobian lens written by the code of Gurnee et al. 2026, or params.pt of the tuned-lens package. It is
    unpickled by a process of its own, with torch's loader for weights only and limits on memory, time and files. A published
    lens does not record the weights it is for: its shapes are checked, a Jacobian lens is compared with Jacobians of the
    model, and the unembedding hash of a tuned lens, if it has one, with the model's. `lens.config["published"]` says what was
    found. The same call finds the lens complete. Raises DepthscopeError for any other file, for a lens of another model, and
    if `out` has something else.
    """
    model, file, out = model_of(model), Path(file), Path(out)
    with locked(out):
        if not (out / CONFIG).exists():
            require_replaceable(out)
        lens = converted(model, file, out)
        if (out / CONFIG).exists():
            there = read_config(out).get("published", {}).get("sha256")
            if there != lens.config["published"]["sha256"] or not lens.is_stored(out):
                raise RunError(f"{out} holds another lens than {file}: give another directory")
        lens.write(out)
    return lens
