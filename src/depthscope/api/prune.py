"""Choosing blocks to remove, and the checkpoint without them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.api.inputs import corpus, model_of
from depthscope.api.study import Study
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.errors import DepthscopeError, RunError
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.report.sections.prune import HEAD, outcome_of, rows, sentences
from depthscope.routes import Route, parse_route
from depthscope.run.layout import EXPORT, MANIFEST
from depthscope.run.mirror import destination
from depthscope.run.store import RunDirectory
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.prune import AGREEMENT, GIVEN, HELD_OUT, KL, LOSS, LOSS_CHANGE, UNMODIFIED
from depthscope.studies.prune_settings import prune_settings
from depthscope.studies.run_study import run_study
from depthscope.studies.studied import Progress


def prune(
    model: Model | str,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path,
    tokens: int | None = None,
    export: bool = True,
    command: str | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Study:
    """Choose blocks to remove by the measured KL to the unmodified model, compare criteria, and write the model without them.

    One of `keep` ("75%"), `remove` (a number) and `drop` ("21-24", no search) says how many, or which. Every 2nd document is
    held out of the search, and what each criterion's set costs is measured there. `out` is a run directory or a URL, as for
    `study`, with the tables `prune_steps` and `prune_methods`; the same call resumes a search that was interrupted. With
    `export` the model without the set that has the lowest KL on the search's documents is written to `out`/model as a plain
    transformers checkpoint; `command` is what its model card gives as the command. `settings` are those of `depthscope
    prune`: components, method, width, generations, offspring, survivors, draws, seed, window, bos; `model`, `text` and
    `tokens` are as for `study`. Raises a DepthscopeError that states what was expected and what was found.
    """
    asked = prune_settings(**settings)
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    if not isinstance(out, str | Path):
        raise DepthscopeError(f"out is the path of a directory or a URL, got {shown(out)}")
    with destination(out) as directory:
        RunDirectory.check_place(directory)
        model = model_of(model)
        if export:
            require_place(model, directory)

        def chosen(tell: Progress | None) -> Study:
            before = _exported(directory)
            run_study(model, text, directory, asked, tell)
            study = Study(directory)
            if before is not None:
                study.run.update(prune=replace(outcome_of(study.run), exported=before))
            if export:
                export_chosen(model, study, command=command, tell=tell)
            return study

        if progress is True:
            from depthscope.progress import progress_bar

            with progress_bar() as tell:
                return chosen(tell)
        return chosen(progress or None)


def require_place(model: Model, out: Path) -> None:
    """Raise, before a search that may take long, what exporting can be refused for whatever is chosen."""
    if _exported(out) is None:
        from depthscope.exports.export_route import check_export

        check_export(model, Route.own(model.depth), out / EXPORT)


def export_chosen(model: Model, study: Study, *, command: str | None = None, tell: Progress | None = None) -> Path:
    """Write the checkpoint without the chosen set to the run of a complete search, unless an earlier call has.

    Returns its directory. Raises what `export` raises.
    """
    outcome = outcome_of(study.run)
    if outcome.exported != outcome.route:
        from depthscope.exports.card import Card
        from depthscope.exports.export_route import export_route

        run = study.run
        card = Card(chosen=_chosen(run), command=command, quality=_quality(run), text=_text(run))
        export_route(model, parse_route(outcome.route, model.depth), run.path / EXPORT, card, tell=tell)
        run.update(prune=replace(outcome, exported=outcome.route))
    return study.path / EXPORT


def _exported(out: Path) -> str | None:
    """The route of the checkpoint that an earlier call has written to the run; None if there is none."""
    if not (out / MANIFEST).exists() or not (out / EXPORT).is_dir():
        return None
    try:
        outcome = RunDirectory.reading(out).manifest.prune
    except RunError:
        return None
    return None if outcome is None else outcome.exported


def _chosen(run: RunDirectory) -> str:
    """How the set was chosen, as Markdown: the page's sentences and its table of criteria."""
    lines = [
        "| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows(run.table("prune_methods")))
    ]
    return "\n\n".join([*sentences(run), "\n".join(lines)])


def _quality(run: RunDirectory) -> pl.DataFrame:
    """The chosen set and the unmodified model (edit `none`) on held-out documents, in the form of `measure`."""
    outcome = outcome_of(run)
    wanted = [metric.name for metric in (KL, AGREEMENT, LOSS, LOSS_CHANGE)]
    table = run.table("prune_methods").filter(pl.col("text") == HELD_OUT, pl.col("metric").is_in(wanted))
    own = table.filter(pl.col("method") == UNMODIFIED)
    chosen = table.filter(pl.col("method") == outcome.method, pl.col("blocks") == " ".join(outcome.blocks))
    parts = ((UNMODIFIED, own), (outcome.route, chosen.unique("metric", keep="first", maintain_order=True)))
    return pl.concat([part.select(pl.lit(name).alias("edit"), *ESTIMATE) for name, part in parts])


def _text(run: RunDirectory) -> str:
    table = run.table("prune_methods").filter(pl.col("text") == HELD_OUT)
    unseen = "" if outcome_of(run).method == GIVEN else " that the search did not see"
    return f"{run.settings.data}, {table['tokens'][0]:,} tokens of {table['documents'][0]:,} documents{unseen}"
