"""The Python interface. `import depthscope as ds` gives these names."""

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.fields import messages_of, require_text
from depthscope.data.windows import make_windows
from depthscope.edit_registry import Edit, parse_edit, sweeps
from depthscope.engine.execute import run_route
from depthscope.errors import DataError, DepthscopeError, ModelError, NumericError, RouteError
from depthscope.experiments.lens_text import lens_text
from depthscope.experiments.lenses import Lens, make_lens
from depthscope.experiments.measure_edits import measure_edits
from depthscope.experiments.prompt_lens import prompt_lens
from depthscope.experiments.tune_lens import tune_lens as train_lens
from depthscope.experiments.tuned_lens import TunedLens
from depthscope.models.finite import REMEDY, all_finite
from depthscope.models.load import load
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.routes import Route
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages
from depthscope.schema.measures import BUILT_IN, Measure, chosen
from depthscope.studies.run_study import Progress, run_study
from depthscope.studies.settings import check_window, study_settings

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Study", "corpus", "lens", "load", "logits", "measure", "study", "tune_lens"]


def corpus(
    source: str | Path | Sequence[Any] = BOOKSHELF,
    tokens: int | None = None,
    special_tokens: str = "text",
    *,
    chat: bool = False,
    pack: bool = False,
    cluster: str | None = None,
) -> Corpus:
    """Text to measure on: `bookshelf` (embedded), a file, pattern or folder, `hf:NAME`, or a list of texts.

    Files are .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, all but the last also .gz, .xz, .bz2 or .zst; a
    folder holds such files or was written by `save_to_disk`. `#FIELD` after the name is the field with the text.
    `tokens` is how many tokens a study uses, rounded up to whole windows (16,384 by default). `special_tokens`: how the name
    of a special token in a document is read, as `text` (its characters) or `keep` (the token).
    `chat`: documents are lists of messages with role and content, read through the tokenizer's chat template. `pack`:
    documents shorter than a window are joined until they fill one. `cluster` is the name of a field, such as `book`:
    documents with the same value of it count as one in every interval (`title` or `author` for `bookshelf`). Nothing is read
    yet. Raises DataError for a source that does not exist, has an unsupported format or no fields to cluster by, or a list
    that contains anything but documents.
    """
    how: dict[str, Any] = {"special_tokens": special_tokens, "chat": chat, "pack": pack, "cluster": cluster}
    if isinstance(source, str | Path):
        named = Corpus(source=str(source), tokens=tokens, **how)
        named.check()
        return named
    if not isinstance(source, Iterable):
        raise DataError(f"a corpus is the name of a text or a list of documents, got {shown(source)}")
    documents = tuple(source)
    if chat:
        documents = tuple(messages_of(one, f"document {number}") for number, one in enumerate(documents))
    if not documents or not (chat or all(isinstance(text, str) for text in documents)):
        other = next((type(text).__name__ for text in documents if not isinstance(text, str)), "none")
        raise DataError(
            f"a corpus in memory is a list of documents, each a text, or with chat=True a list of messages; got a list of "
            f"{len(documents)} with {other}"
        )
    for number, text in enumerate(documents):
        if isinstance(text, str):
            require_text(text, f"document {number}")
    name = f"{len(documents)} documents in memory"
    return Corpus(source=name, tokens=tokens, texts=documents, **how)


class Study:
    """A complete or incomplete study: its run directory, tables, figures and page. Only reads files."""

    def __init__(self, path: str | Path) -> None:
        self.run = RunDirectory.reading(path)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    def table(self, name: str) -> pl.DataFrame:
        """A table as a polars frame. Raises RunError, listing the available tables, if there is none of that name."""
        return self.run.table(name)

    @property
    def stages(self) -> Stages | None:
        """The stages, their boundaries with intervals and votes, and each signature's verdict; None if not searched for."""
        return self.run.stages

    def figure(self, name: str, axis: str = "layer") -> "go.Figure":
        """A plotly figure: stages, sweep, components (attention and MLP drops) or another experiment's by its name.

        `axis` is `layer` or `relative depth`. Raises DepthscopeError for an unknown name, RunError if the run has no data
        for it.
        """
        from depthscope.report.figures import figure

        return figure(self.run, name, axis)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page, one file that opens offline (RUN/report.html by default), and return its path.

        It shows what the run contains and states what is missing. Raises RunError if the file cannot be written, or would
        replace one that is not a page as depthscope wrote it.
        """
        from depthscope.report.page import write_page

        return write_page(self.run, Path(out) if out else self.path / "report.html")

    def __repr__(self) -> str:
        settings = self.run.settings
        state = "complete" if self.run.complete else "incomplete"
        tokens = settings.tokens or "some"  # with a precision goal their number is known at the end
        return f"Study({str(self.path)!r}: {settings.subject}, {tokens} tokens of {settings.data}, {state})"

    def _repr_html_(self) -> str:
        """What a notebook shows: model, text, five numbers, the stages as a bar, and the available tables."""
        from depthscope.report.card import card

        return card(self.run)


def study(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path | None = None,
    tokens: int | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Study:
    """Measure a model on a text and keep the result in the directory `out` (a temporary one by default).

    `model` may be a name or folder as for `load`, `text` anything that `corpus` accepts; `tokens` is how much of it to use.
    The same call on the same directory resumes; other experiments are added to those already there; what is damaged there is
    computed again, with a DamageWarning. `settings` are those of the study (`experiments`, `precision`, `window`, `bos`) and
    of its experiments, which the commands have as options: see the table of settings, or `depthscope study --help`. Raises a
    DepthscopeError that states what was expected and what was found; invalid values are rejected before the model is loaded.
    """
    if others := [edit.name if isinstance(edit, Edit) else shown(edit) for edit in _others(settings.get("edits"))]:
        raise RouteError(
            f"edits are the kinds a sweep applies at every layer, some of {', '.join(sweeps())}, as text; got "
            f"{', '.join(others)}. For one edit at one place use ds.logits"
        )
    asked = study_settings(**settings)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    if out is not None and not isinstance(out, str | Path):
        raise DepthscopeError(f"out is the path of a directory, got {shown(out)}")
    out = Path(tempfile.mkdtemp(prefix="depthscope-")) if out is None else Path(out)
    RunDirectory.check_place(out)
    model = _model(model)
    if callable(progress):
        run_study(model, text, out, asked, progress)
    elif progress:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            run_study(model, text, out, asked, tell)
    else:
        run_study(model, text, out, asked)
    return Study(out)


def _others(edits: Any) -> list[Any]:
    """The edits given for a sweep that are not text. What is no list has a message of its own."""
    if not isinstance(edits, Iterable) or isinstance(edits, str):
        return []
    return [edit for edit in edits if not isinstance(edit, str)]


@memory_errors("compute logits", "Use a shorter text, or load the model with stream='yes' or in another dtype")
def logits(
    model: Model | str, text: str | Sequence[Any] | Tensor, edit: Edit | Route | str | None = None
) -> Float[Tensor, "batch seq vocab"]:
    """Logits of an edited model, shaped [batch, seq, vocab], in the model's dtype.

    `text` is a text (truncated, with a warning, to the model's context) or token ids shaped [seq] or [batch, seq]; no special
    tokens are added. `edit` is an Edit, text such as "swap(3) | drop_mlp(7)", a Route, or None for the unmodified model.
    `model` may be a name or folder as for `load`. Raises NumericError, with route and block, for NaN or infinity.
    """
    model, edit = _model(model), parse_edit(edit) if isinstance(edit, str) else edit
    route = edit if isinstance(edit, Route) else (edit or Edit())(Route.own(model.depth))
    model.check_route(route)
    ids = _ids(model, text)
    with torch.inference_mode():
        residual = run_route(model, route, ids)
        found = model.unembedding.logits(model.unembedding.hidden(residual)).unflatten(0, ids.shape)
        # By the largest: a model may mask entries of its vocabulary with −inf.
        if not all_finite([found.amax(-1)]):
            raise NumericError(
                f"NaN or infinity in the logits of {model.name} on the route {route.name!r}, although the residual stream is "
                f"finite. {REMEDY}"
            )
        return found


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
    read = [parse_edit(edit) if isinstance(edit, str) else edit for edit in wanted]
    if others := [shown(edit) for edit in read if not isinstance(edit, Edit | Route)]:
        raise RouteError(
            f"expected edits as Edit, Route or text such as 'swap(3) | drop_mlp(7)', got {', '.join(others)}"
        )
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    model = _model(model)
    own = Route.own(model.depth)
    # The empty edit is the unmodified model, which is measured anyway.
    routes = {edit.name: edit if isinstance(edit, Route) else edit(own) for edit in read if edit != Edit()}
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


@memory_errors("compute a lens", "Use a shorter text, or load the model with stream='yes'")
def lens(
    model: Model | str,
    text: str | Sequence[Any] | Tensor,
    top: int = 5,
    lens: str | Lens = "logit",
    *,
    tuned_lens: str | Path | None = None,
) -> pl.DataFrame:
    """A lens on one text: the `top` most likely next tokens at every position and depth, one row each.

    Columns: position, token (of the text), layer (l is before block l, L after the last), kl to the final distribution
    and entropy in nats, rank, predicted, predicted_id, probability. `text` is as for `logits`; `lens` is the name of a lens
    (logit, frozen_scale, tuned, or a registered one) or a Lens. `tuned_lens` is the directory of a trained lens, which `tuned`
    needs.
    """
    model = _model(model)
    return prompt_lens(model, _ids(model, text), top, make_lens(lens, model, tuned_lens))


@memory_errors("train a tuned lens", "Use a shorter window, or load the model in another dtype")
def tune_lens(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    progress: bool | Progress = True,
) -> TunedLens:
    """Train a tuned lens (Belrose et al. 2023) on a text and store it in the directory `out`.

    The same call resumes training that was interrupted, and reads a lens that is complete. `tokens` is how much text trains it
    (131,072 by default); every 8th document is held out, and that text comes on top. Measure on other documents: a study with
    `lens="tuned"` trains on what it does not measure. `model`, `text`, `window` and `bos` are as for `study`. Raises DataError
    for too little text, DepthscopeError if `out` has a lens trained for another model, on other text or in another way.
    """
    if window is not None:
        check_window(window)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    model = _model(model)

    def trained(tell: Progress | None) -> TunedLens:
        chosen = lens_text(text, model, length=window, bos=bos, tell=tell)
        return train_lens(model, chosen, out, tell=tell)

    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            return trained(tell)
    return trained(progress or None)


def _model(model: Model | str) -> Model:
    if not isinstance(model, Model | str):
        raise ModelError(f"a model is the name of one, or what ds.load gives; got {shown(model)}")
    return load(model) if isinstance(model, str) else model


def _ids(model: Model, text: str | Sequence[Any] | Tensor) -> Tensor:
    if isinstance(text, str):
        found = model.tokenize(require_text(text, "the text"))
        if not found:
            raise DataError("the text is empty: expected at least one token")
        if model.context is not None and len(found) > model.context:
            warnings.warn(
                f"the text has {len(found)} tokens; only the first {model.context}, the context of {model.name}, are used",
                stacklevel=3,
            )
            found = found[: model.context]
        ids = torch.tensor(found, dtype=torch.int64)
    elif not isinstance(text, Tensor | Iterable):
        raise DataError(f"expected a text, or token ids shaped [seq] or [batch, seq], got {shown(text)}")
    elif not isinstance(text, Tensor) and any(isinstance(one, str) for one in text):
        raise DataError(
            "expected one text, or token ids shaped [seq] or [batch, seq]; got a list of texts: pass them one at a time"
        )
    else:
        try:
            ids = torch.as_tensor(text, dtype=torch.int64)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(f"expected token ids shaped [seq] or [batch, seq], got {shown(text)}") from error
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.numel() == 0:
        raise DataError(
            f"expected token ids shaped [seq] or [batch, seq] with at least one token, got {list(ids.shape)}"
        )
    model.check_ids(ids)
    return ids.to(model.device)
