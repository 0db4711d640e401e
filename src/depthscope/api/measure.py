"""Any edits with any measures on a text."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.windows import make_windows
from depthscope.edit_registry import Edit, as_edit, route_of
from depthscope.experiments.measure_edits import measure_edits
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.measures import BUILT_IN, Measure, chosen
from depthscope.studies.settings import check_window
from depthscope.studies.studied import Progress


@memory_errors("measure edits", "Use a shorter window, fewer edits, or load the model with stream='yes'")
def measure(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    edits: Edit | Route | str | Sequence[Edit | Route | str] = (),
    measures: str | Measure | Sequence[str | Measure] = tuple(BUILT_IN),
    *,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    progress: bool | Progress = True,
) -> pl.DataFrame:
    """How much edited models differ from the unmodified model on a text: means over tokens, 95% intervals over documents.

    `edits` are any of Edit, Route or text such as "swap(3) | drop_mlp(7)", one or several. `measures` are names (kl,
    agreement, entropy, loss, those registered with `register_measure`) or a Measure. `model`, `text`, `tokens`, `window` and
    `bos` are as for `study`. Nothing is written to disk.

    Columns: edit (its name; `none` is the unmodified model, which comes first), metric, unit, mean, ci_low, ci_high (null
    if the text is one document), tokens, documents. A measure with a declared change from the unmodified model, such as
    entropy and loss, also has rows for it, such as loss_change. Raises a DepthscopeError for an edit or measure that cannot
    be read, a route the model cannot run, or a measure's function that does not return one number per token.
    """
    found = chosen([measures] if isinstance(measures, str | Measure) else measures)
    wanted = list(edits) if isinstance(edits, Iterable) and not isinstance(edits, Route | str) else [edits]
    read = [as_edit(edit) for edit in wanted]
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    model = model_of(model)
    # The empty edit is the unmodified model, which is measured anyway.
    routes = {edit.name: route_of(edit, model.depth) for edit in read if edit != Edit()}
    for route in routes.values():
        model.check_route(route)

    def measured(tell: Progress | None) -> pl.DataFrame:
        windows = make_windows(text, model, length=window, bos=bos, tell=tell)
        return measure_edits(model, windows, routes, found, tell)

    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            return measured(tell)
    return measured(progress or None)
