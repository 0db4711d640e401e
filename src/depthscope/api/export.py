"""Exporting an edited model, and timing what the edit brings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.windows import make_windows
from depthscope.edit_registry import Edit, as_edit, route_of
from depthscope.errors import DepthscopeError
from depthscope.experiments.measure_edits import measure_edits
from depthscope.exports.export_route import Card, Exported, check_export, export_route, write_card
from depthscope.exports.speed import Lengths, fitting, time_checkpoints
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.measures import BUILT_IN
from depthscope.schema.speed import Speed
from depthscope.studies.settings import check_window
from depthscope.studies.studied import Progress

EDIT = "this model"
"""The edit's name in the rows of a card."""


@memory_errors("export the model", "Load it with stream='yes', in another dtype, or give text=None")
def export(
    model: Model | str,
    edit: Edit | Route | str,
    out: str | Path,
    *,
    text: Corpus | str | Path | Sequence[Any] | None = BOOKSHELF,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    speed: bool = False,
    chosen: str | None = None,
    command: str | None = None,
    progress: bool | Progress = True,
) -> Exported:
    """Write an edited model as a plain transformers checkpoint with a model card, in a new or empty directory.

    `edit` is an Edit, text such as "drop(21, 24)", or a Route; blocks run one after the other, in any order, each any number of
    times. Ablated components are exported as weights of zero. The checkpoint is loaded again by transformers in a new process
    and its logits compared with those of the edited model, bit for bit or up to rounding; otherwise nothing is written. The
    card has KL, agreement and perplexity on `text` (None: it has not), with 95% intervals over documents, and with `speed` what
    `ds.speed` measures. `chosen` says in Markdown how the edit was chosen, `command` how the export was made; both go into the
    card. `model`, `tokens`, `window` and `bos` are as for `study`. Raises a DepthscopeError for an edit that cannot be
    exported, RunError for a directory that is in use or a disk that is too small.
    """
    edit = as_edit(edit)
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus | None) else corpus(text)
    text = text if text is None or tokens is None else replace(text, tokens=tokens)
    model = model_of(model)
    route = route_of(edit, model.depth)
    check_export(model, route, out)
    card = Card(chosen=chosen, command=command)
    with telling(progress) as tell:
        if text is not None:
            windows = make_windows(text, model, length=window, bos=bos, tell=tell)
            measured = measure_edits(model, windows, {EDIT: route}, tuple(BUILT_IN.values()), tell)
            card = replace(card, quality=measured, text=text.source)
        exported = export_route(model, route, out, card, tell=tell)
        if speed:
            measured_speed = time_checkpoints(model, str(exported.path), tell=tell)
            write_card(exported, replace(card, speed=measured_speed))
    return exported


@memory_errors("time the models", "Both are in memory at the same time: use a smaller batch, or another dtype")
def speed(
    before: Model | str,
    after: str | Path,
    *,
    prompt: int | None = None,
    new: int | None = None,
    batch: int = 1,
    rounds: int = 7,
    threads: int | None = None,
    progress: bool | Progress = True,
) -> Speed:
    """Tokens per second of prefill and decoding and peak memory of a model and of a checkpoint cut from it, timed in turns.

    `before` is a model by name or folder, or as `load` gives it; `after` a folder such as `export` writes. Each is loaded in a
    process of its own, in the dtype and on the device of `before`, and generates `new` tokens after a prompt of `prompt` random
    tokens (64 after 128, or what the context allows) with transformers' `generate`. After a round that does not count, `rounds`
    rounds alternate between the two; rates are medians over rounds, the ratio is the median of the rounds' ratios. `threads`:
    torch's by default. Raises a DepthscopeError for lengths beyond the context or where generation fails.
    """
    model = model_of(before)
    usual = fitting(model)
    lengths = Lengths(
        prompt=usual.prompt if prompt is None else prompt,
        new=usual.new if new is None else new,
        batch=batch,
        rounds=rounds,
    )
    if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= 1024):
        raise DepthscopeError(f"threads is {threads!r}: expected a whole number from 1 to 1024")
    with telling(progress) as tell:
        return time_checkpoints(model, str(after), lengths, threads=threads, tell=tell)


@contextmanager
def telling(progress: bool | Progress) -> Iterator[Progress | None]:
    """What to tell of progress while open: a bar, the caller's own function, or nothing."""
    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            yield tell
    else:
        yield progress or None
