"""`depthscope explore`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.cli.signals import INTERRUPTED, status_of
from depthscope.printable import printable
from depthscope.schema.lens import JACOBIAN, LENSES, TUNED

if TYPE_CHECKING:
    from depthscope.experiments.lenses import Lens
    from depthscope.models.model import Model

Subject = Annotated[
    str,
    typer.Argument(
        metavar="RUN | MODEL",
        help="A run directory, a folder of runs (explores the run's model, or else the embedded one), or a model.",
    ),
]
TunedLensPath = Annotated[
    Path | None,
    typer.Option(
        help="The directory of a tuned lens trained for the model, shown next to the logit lens.",
        show_default="that of the run, if it has one",
    ),
]
JacobianLensPath = Annotated[
    Path | None,
    typer.Option(
        help="The directory of a Jacobian lens fitted to the model, shown next to the logit lens.",
        show_default="that of the run, if it has one",
    ),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Local port; the next free one if it is in use.")]


def command(
    subject: Subject = options.DEFAULT_MODEL,
    port: Port = 7860,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    tuned_lens: TunedLensPath = None,
    jacobian_lens: JacobianLensPath = None,
) -> None:
    """Explore a model in the browser: a prompt at every depth, surgery, heads, neurons, and your runs.

    The page is served on this machine only, at the address printed, and makes no network requests.
    """
    import importlib.util

    from depthscope.errors import DepthscopeError

    if importlib.util.find_spec("gradio") is None:
        raise DepthscopeError("the explorer needs gradio: pip install 'depthscope[explore]'")
    from depthscope.explore.answers import Answers
    from depthscope.explore.page import build
    from depthscope.explore.prompt import Session
    from depthscope.explore.runs import Runs, model_of
    from depthscope.explore.serve import free_port, new_token, serve

    token = new_token()
    folder = Path(subject)
    is_folder_of_runs = folder.is_dir() and not (folder / "config.json").exists()
    name = (model_of(folder) if is_folder_of_runs else subject) or options.DEFAULT_MODEL
    model, note = _loaded(name, is_folder_of_runs, dtype, device, revision, adapter)
    facts = model.facts
    said = f"{facts.name}: {facts.layers} blocks of {facts.d_model}, {facts.vocabulary:,} tokens, {facts.family}"
    given = {TUNED: tuned_lens, JACOBIAN: jacobian_lens}
    lenses, why = _lenses(model, given, folder if is_folder_of_runs else None)
    note = " ".join(filter(None, (note, why)))
    page = build(Answers(Session(model, lenses)), Runs(folder if is_folder_of_runs else Path()), said, note)
    free = free_port(port)
    if free != port:
        console.print(f"port {port} is in use, using the next free one", highlight=False)
    console.print(f"exploring {printable(facts.name)} at", end=" ")
    try:
        serve(
            page,
            token,
            free,
            lambda address: console.print(f"{address}  (Ctrl+C to stop)", highlight=False, soft_wrap=True),
        )
    except KeyboardInterrupt as stop:
        console.print()
        if (status := status_of(stop)) != INTERRUPTED:  # Ctrl+C is how it is meant to end
            raise typer.Exit(status) from None


def _lenses(model: "Model", given: Mapping[str, Path | None], run: Path | None) -> "tuple[dict[str, Lens], str]":
    """The lenses that can read the model, fitted ones from where they were named or else from the run; a note on the others.

    Raises DepthscopeError for a named directory without a lens for the model. A lens of the run may be for another model or
    dtype.
    """
    from depthscope.experiments.lenses import lenses_of, make_lens
    from depthscope.experiments.read_lenses import PLACES
    from depthscope.experiments.tuned_lens import CONFIG

    named = {name: path for name, path in given.items() if path is not None}
    for name, path in named.items():
        make_lens(name, model, path)
    of_run = (
        {} if run is None else {name: run / place for name, place in PLACES.items() if (run / place / CONFIG).exists()}
    )
    lenses, refused = lenses_of(model, of_run | named)
    notes = [f"The {LENSES[name].called} is not shown: {why}." for name, why in refused.items() if name in of_run]
    return lenses, " ".join(notes)


def _loaded(
    name: str, of_a_run: bool, dtype: str, device: str, revision: str | None, adapter: str | None
) -> "tuple[Model, str]":
    """The model, and a note if the run's model cannot be loaded and the embedded one is used instead.

    No hub is asked for the model of a run: its name comes from a file that may be a stranger's.
    """
    from depthscope.errors import DepthscopeError

    if not of_a_run:
        return options.load_quietly(name, dtype, device, revision, adapter=adapter), ""
    with _without_hub():
        try:
            return options.load_quietly(name, dtype, device, revision, adapter=adapter), ""
        except DepthscopeError as error:
            if name == options.DEFAULT_MODEL:
                raise
            note = (
                f"The model of this run, {name}, could not be loaded from this machine ({error}). If you know it, "
                f"`depthscope explore {quote(name)}` loads it, and asks the Hugging Face hub for it where it must. "
                f"Exploring {options.DEFAULT_MODEL} instead."
            )
            return options.load_quietly(options.DEFAULT_MODEL, dtype, device, None), note


@contextmanager
def _without_hub() -> Iterator[None]:
    """Offline, as with HF_HUB_OFFLINE=1: models in folders and in the cache are found, nothing is asked of another machine."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
