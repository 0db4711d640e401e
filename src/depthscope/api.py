"""The Python interface. `import depthscope as ds` gives these names."""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.data.fields import messages_of, require_text
from depthscope.edits import Edit, parse_edit
from depthscope.engine.execute import execute
from depthscope.engine.plan import make_plan
from depthscope.errors import DataError, RouteError
from depthscope.experiments.prompt_lens import prompt_lens
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages, read_stages
from depthscope.schema.sweep import EDIT_KINDS
from depthscope.studies.run_study import Progress, run_study
from depthscope.studies.settings import StudySettings

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Study", "corpus", "lens", "load", "logits", "study"]


def corpus(
    source: str | Path | Sequence[Any] = BOOKSHELF,
    tokens: int | None = None,
    special_tokens: str = "text",
    *,
    chat: bool = False,
    pack: bool = False,
) -> Corpus:
    """Text to measure on: `bookshelf` (embedded), a file, pattern or folder, `hf:NAME`, or a list of texts.

    Files are .txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, all but the last also .gz, .xz, .bz2 or .zst; a
    folder holds such files or was written by `save_to_disk`. `#FIELD` after the name is the field with the text.
    `tokens` is how many tokens a study uses, rounded up to whole windows (16,384 by default). `special_tokens`: what the name
    of a special token means where a document writes it, `text` (the characters that are there) or `keep` (the token).
    `chat`: documents are lists of messages with role and content, read through the tokenizer's chat template. `pack`:
    documents shorter than a window are joined until they fill one. Nothing is read yet. Raises DataError for a source that is
    not there or of no kind that is read, or a list that holds anything but documents.
    """
    if isinstance(source, str | Path):
        named = Corpus(source=str(source), tokens=tokens, special_tokens=special_tokens, chat=chat, pack=pack)
        named.check()
        return named
    documents = tuple(source)
    if chat:
        documents = tuple(messages_of(one, f"document {number}") for number, one in enumerate(documents))
    if not documents or not (chat or all(isinstance(text, str) for text in documents)):
        other = next((type(text).__name__ for text in documents if not isinstance(text, str)), "none")
        raise DataError(
            f"a corpus in memory is a list of documents, each a text, or with chat=True a list of messages; got "
            f"{len(documents)} of them and {other}"
        )
    for number, text in enumerate(documents):
        if isinstance(text, str):
            require_text(text, f"document {number}")
    name = f"{len(documents)} documents in memory"
    return Corpus(source=name, tokens=tokens, special_tokens=special_tokens, chat=chat, pack=pack, texts=documents)


class Study:
    """A finished or unfinished study: its run directory, tables, figures and page. Reads files only."""

    def __init__(self, path: str | Path) -> None:
        self.run = RunDirectory.reading(path)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    def table(self, name: str) -> pl.DataFrame:
        """A table as a polars frame. Raises RunError naming the tables there are."""
        return self.run.table(name)

    @property
    def stages(self) -> Stages | None:
        """The stages found, their boundaries with intervals and votes, and each signature's verdict; None if not looked for."""
        found = self.run.read_json("stages")
        return None if found is None else read_stages(found)

    def figure(self, name: str, axis: str = "layer") -> "go.Figure":
        """A plotly figure: stages, sweep, components (attention and MLP drops) or another experiment's by its name.

        `axis` is `layer` or `relative depth`. Raises DepthscopeError for a name there is not, RunError where the run has
        nothing for it.
        """
        from depthscope.report.figures import figure

        return figure(self.run, name, axis)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page, one file that opens offline (RUN/report.html by default), and return where it is.

        It shows what the run has and says what is missing. Raises RunError where the file cannot be written.
        """
        from depthscope.report.page import write_page

        return write_page(self.run, Path(out) if out else self.path / "report.html")

    def __repr__(self) -> str:
        settings = self.run.settings
        state = "complete" if self.run.complete else "unfinished"
        tokens = settings.get("tokens", "some")  # with a precision as the goal their number is known at the end
        return f"Study({str(self.path)!r}: {settings['model']}, {tokens} tokens of {settings['data']}, {state})"

    def _repr_html_(self) -> str:
        """What a notebook shows: model, text, five numbers, the stages as a bar, and the tables there are."""
        from depthscope.report.card import card

        return card(self.run)


def study(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path | None = None,
    tokens: int | None = None,
    experiments: Sequence[str] = (),
    edits: Sequence[str | Edit] | None = None,
    per_token: bool = False,
    precision: float | None = None,
    window: int | None = None,
    bos: str = "auto",
    protocol: str = "text",
    suffix: str = "ing",
    progress: bool | Progress = True,
) -> Study:
    """Measure a model on a text and keep the result in the directory `out` (a temporary one by default).

    `model` may be a name or folder as for `load`, `text` what `corpus` takes; `tokens` is then how much of it is used.
    The same call on the same directory resumes; other experiments on it join those that are there. `experiments` are all by
    default; `edits` are some of swap, drop and drop_attn, drop_mlp, drop_ssm, drop_ple (all that the model has by default);
    `per_token` keeps every token's numbers in the sweep's
    shards; `precision`, such as 0.05, reads until each mean KL of the sweep is known to ±5% of itself, at most the text's
    `tokens` or a million; `window` is the window length in tokens (the context or 512); `bos` is auto, none or window;
    `protocol` is text (the paper's text) or lad2024 (its first script); `suffix` is what probes look for. Raises a
    DepthscopeError that says what was expected and what came, for a wrong value before the model is loaded.
    """
    if others := [
        edit.name if isinstance(edit, Edit) else repr(edit) for edit in edits or () if not isinstance(edit, str)
    ]:
        raise RouteError(
            f"edits are the kinds a sweep does at every layer, some of {', '.join(EDIT_KINDS)}, as text; got "
            f"{', '.join(others)}. One edit at one place runs with ds.logits"
        )
    settings = StudySettings(
        experiments=tuple(experiments),
        edits=None if edits is None else tuple(edit for edit in edits if isinstance(edit, str)),
        per_token=per_token,
        precision=precision,
        window=window,
        bos=bos,
        protocol=protocol,
        suffix=suffix,
    )
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    out = Path(tempfile.mkdtemp(prefix="depthscope-")) if out is None else Path(out)
    RunDirectory.check_place(out)
    model = _model(model)
    if callable(progress):
        run_study(model, text, out, settings, progress)
    elif progress:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            run_study(model, text, out, settings, tell)
    else:
        run_study(model, text, out, settings)
    return Study(out)


def logits(
    model: Model | str, text: str | Sequence[Any] | Tensor, edit: Edit | Route | str | None = None
) -> Float[Tensor, "batch seq vocab"]:
    """Logits of an edited model, shaped [batch, seq, vocab], in the model's dtype.

    `text` is a text (cut, with a warning, at the model's context) or token ids shaped [seq] or [batch, seq]; no special
    tokens are added. `edit` is an Edit, a text such as "swap(3) | drop_mlp(7)", a Route, or None for the model itself.
    `model` may be a name or folder as for `load`.
    """
    model, edit = _model(model), parse_edit(edit) if isinstance(edit, str) else edit
    route = edit if isinstance(edit, Route) else (edit or Edit())(Route.own(model.depth))
    model.check_route(route)
    ids = _ids(model, text)
    with torch.inference_mode():
        ((_, residual),) = execute(model, make_plan([route]), ids)
        return model.head.logits(model.head.hidden(residual)).unflatten(0, ids.shape)


def lens(model: Model | str, text: str | Sequence[Any] | Tensor, top: int = 5) -> pl.DataFrame:
    """The logit lens on one text: the `top` most likely next tokens at every position and depth, a row each.

    Columns: position, token (the text's own), layer (l is before block l, L after the last), kl to the final distribution
    and entropy in nats, rank, predicted, predicted_id, probability. `text` is as for `logits`.
    """
    model = _model(model)
    return prompt_lens(model, _ids(model, text), top)


def _model(model: Model | str) -> Model:
    return load(model) if isinstance(model, str) else model


def _ids(model: Model, text: str | Sequence[Any] | Tensor) -> Tensor:
    if isinstance(text, str):
        found = model.tokenize(text)
        if not found:
            raise DataError("the text is empty: expected at least one token")
        if model.context is not None and len(found) > model.context:
            warnings.warn(
                f"the text has {len(found)} tokens; the first {model.context}, the context of {model.name}, are used",
                stacklevel=3,
            )
            found = found[: model.context]
        ids = torch.tensor(found, dtype=torch.int64)
    elif not isinstance(text, Tensor) and any(isinstance(one, str) for one in text):
        raise DataError(
            "expected one text, or token ids shaped [seq] or [batch, seq]; got a list of texts: give them in turn"
        )
    else:
        ids = torch.as_tensor(text, dtype=torch.int64)
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.numel() == 0:
        raise DataError(
            f"expected token ids shaped [seq] or [batch, seq] with at least one token, got {list(ids.shape)}"
        )
    model.check_ids(ids)
    return ids.to(model.device)
