"""`depthscope explore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from depthscope.cli import options
from depthscope.cli.console import console

if TYPE_CHECKING:
    from depthscope.models.model import Model

Subject = Annotated[
    str,
    typer.Argument(
        metavar="RUN | MODEL",
        help="A run directory or a folder of runs (its model is explored, or else the embedded one), or a model as elsewhere.",
    ),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine; the next free one if it is in use.")]


def command(
    subject: Subject = options.DEFAULT_MODEL,
    port: Port = 7860,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
    adapter: options.Adapter = None,
) -> None:
    """Explore a model in the browser: a prompt at every depth, surgery, heads, neurons, and the runs there are.

    The page is served on this machine only and asks nothing of the network.
    """
    import importlib.util

    from depthscope.errors import DepthscopeError

    if importlib.util.find_spec("gradio") is None:
        raise DepthscopeError("the explorer needs gradio: pip install 'depthscope[explore]'")
    from depthscope.explore.answers import Answers
    from depthscope.explore.page import build
    from depthscope.explore.prompt import Session
    from depthscope.explore.runs import Runs, model_of
    from depthscope.explore.serve import free_port, serve

    folder = Path(subject)
    is_folder_of_runs = folder.is_dir() and not (folder / "config.json").exists()
    name = (model_of(folder) if is_folder_of_runs else subject) or options.DEFAULT_MODEL
    model, note = _loaded(name, is_folder_of_runs, dtype, device, revision, adapter)
    facts = model.facts
    said = f"{facts.name}: {facts.layers} blocks of {facts.d_model}, {facts.vocabulary:,} tokens, {facts.family}"
    page = build(Answers(Session(model)), Runs(folder if is_folder_of_runs else Path()), said, note)
    free = free_port(port)
    if free != port:
        console.print(f"port {port} is in use, so the next free one is taken", highlight=False)
    console.print(f"[bold]{escape(facts.name)}[/] is explored at", end=" ", highlight=False)
    try:
        serve(
            page, free, lambda address: console.print(f"{address}  (Ctrl+C ends it)", highlight=False, soft_wrap=True)
        )
    except KeyboardInterrupt:
        console.print()


def _loaded(
    name: str, of_a_run: bool, dtype: str, device: str, revision: str | None, adapter: str | None
) -> "tuple[Model, str]":
    """The model, and what to say where a run's own is not to be had and the embedded one takes its place."""
    from depthscope.errors import DepthscopeError

    try:
        return options.load_quietly(name, dtype, device, revision, adapter=adapter), ""
    except DepthscopeError as error:
        if not of_a_run or name == options.DEFAULT_MODEL:
            raise
        note = f"The model of this run, {name}, could not be loaded ({error}). {options.DEFAULT_MODEL} is explored instead."
        return options.load_quietly(options.DEFAULT_MODEL, dtype, device, None), note
