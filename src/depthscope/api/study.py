"""Studies: `ds.study` measures, `ds.Study` reads what was measured."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from depthscope.api.inputs import corpus, model_of
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.edit_registry import Edit, sweeps
from depthscope.errors import DepthscopeError, RouteError
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.run.cluster import LOCAL, cluster_of
from depthscope.run.mirror import destination, local_copy
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages
from depthscope.studies.run_study import run_study
from depthscope.studies.settings import study_settings
from depthscope.studies.studied import Progress

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Study:
    """A complete or incomplete study: its run directory, tables, figures and page. Only reads files.

    `path` is the run directory, or a URL, of which a local copy is made first.
    """

    def __init__(self, path: str | Path) -> None:
        self.run = RunDirectory.reading(local_copy(path))

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
    engine: str = LOCAL,
    address: str | None = None,
    replicas: int | None = None,
    cpus_per_replica: int | None = None,
    gpus_per_replica: float | None = None,
    **settings: Any,
) -> Study:
    """Measure a model on a text and keep the result in `out`: a directory (a temporary one by default), or a URL.

    `model` may be a name or folder as for `load`, `text` anything that `corpus` accepts; `tokens` is how much of it to use.
    The same call on the same directory resumes; other experiments are added to those already there; what is damaged there is
    computed again, with a DamageWarning. `settings` are those of the study (`experiments`, `precision`, `window`, `bos`) and
    of its experiments, which the commands have as options: see the table of settings, or `depthscope study --help`.

    A URL is one that fsspec opens, such as "s3://bucket/run": results are written to a local copy and pushed from there while
    they are made, so that the same call on another machine resumes.

    With `engine` "ray", `replicas` of the model on a Ray cluster compute the work units, each on `cpus_per_replica` threads and
    `gpus_per_replica` GPUs: on the cluster at `address`, on that which this process is connected to, or on one that is started
    on this machine. Tables are the same bytes if a replica has as many threads as this process would use. The model must come
    from a name or folder.

    Raises a DepthscopeError that states what was expected and what was found; invalid values are rejected before the model is
    loaded.
    """
    if others := [edit.name if isinstance(edit, Edit) else shown(edit) for edit in _others(settings.get("edits"))]:
        raise RouteError(
            f"edits are the kinds a sweep applies at every layer, some of {', '.join(sweeps())}, as text; got "
            f"{', '.join(others)}. For one edit at one place use ds.logits"
        )
    asked = study_settings(**settings)
    share = {"cpus_per_replica": cpus_per_replica, "gpus_per_replica": gpus_per_replica}
    cluster = cluster_of(engine, address=address, replicas=replicas, **share)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    if out is not None and not isinstance(out, str | Path):
        raise DepthscopeError(f"out is the path of a directory or a URL, got {shown(out)}")
    with destination(tempfile.mkdtemp(prefix="depthscope-") if out is None else out) as directory:
        RunDirectory.check_place(directory)
        model = model_of(model)
        if callable(progress):
            run_study(model, text, directory, asked, progress, cluster)
        elif progress:
            from depthscope.progress import progress_bar

            with progress_bar() as tell:
                run_study(model, text, directory, asked, tell, cluster)
        else:
            run_study(model, text, directory, asked, cluster=cluster)
    return Study(directory)


def _others(edits: Any) -> list[Any]:
    """The edits given for a sweep that are not text. What is no list has a message of its own."""
    if not isinstance(edits, Iterable) or isinstance(edits, str):
        return []
    return [edit for edit in edits if not isinstance(edit, str)]
