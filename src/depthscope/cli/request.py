"""What every measuring command asks for, said once; and running it."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.summary import print_summary

if TYPE_CHECKING:
    from depthscope.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options all measuring commands share."""

    model: options.ModelName = options.DEFAULT_MODEL
    data: options.Data = options.DEFAULT_DATA
    tokens: options.Tokens = None
    out: options.Out = None
    window: options.Window = None
    bos: options.Bos = "auto"
    special_tokens: options.SpecialTokens = "text"
    chat: options.Chat = False
    pack: options.Pack = False
    protocol: options.Protocol = "text"
    dtype: options.Dtype = options.DEFAULT_DTYPE
    device: options.Device = "auto"
    revision: options.Revision = None
    stream: options.Stream = "auto"
    unused_tensors: options.UnusedTensors = "refuse"
    adapter: options.Adapter = None

    def load(self) -> "Model":
        """The model asked for."""
        return options.load_quietly(self.model, *(getattr(self, name) for name in LOADING))


LOADING = ("dtype", "device", "revision", "stream", "unused_tensors", "adapter")
TEXT = ("tokens", "special_tokens", "chat", "pack")
SHARED = tuple(inspect.signature(Request).parameters.values())


def measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options: it is called with a Request, then with its own options by name."""
    own = list(inspect.signature(command).parameters.values())[1:]

    @wraps(command)
    def with_request(**given: Any) -> None:
        shared = {parameter.name: given.pop(parameter.name) for parameter in SHARED}
        command(Request(**shared), **given)

    parameters = [SHARED[0], *own, *SHARED[1:]]
    with_request.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_request.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_request.__wrapped__  # type: ignore[attr-defined]
    return with_request


def run_and_show(request: Request, **settings: Any) -> None:
    """Measure, make the tables, write the page and print what was found. `settings` go to `api.study`.

    What is wrong about options, text or directory is said before torch is imported and the model is loaded.
    """
    from depthscope.data.corpus import Corpus
    from depthscope.run.store import RunDirectory
    from depthscope.studies.settings import StudySettings

    asked: dict[str, Any] = {"window": request.window, "bos": request.bos, "protocol": request.protocol, **settings}
    StudySettings(**asked)
    text = Corpus(source=request.data, **{name: getattr(request, name) for name in TEXT})
    text.check()
    directory = request.out or Path("runs") / _slug(f"{request.model}-{request.data}")
    RunDirectory.check_place(directory)
    from depthscope import api

    loaded = request.load()
    blocks = f"{loaded.depth} blocks" + (" (streamed: read when they are run)" if loaded.facts.streamed else "")
    console.print(f"[bold]{loaded.name}[/]: {blocks}, {request.data}, into {directory}", highlight=False)
    try:
        study = api.study(loaded, text, out=directory, **asked)
    except KeyboardInterrupt:
        errors_console.print(f"stopped; the same command goes on where it was ({directory})")
        raise typer.Exit(130) from None
    page = study.report()
    print_summary(study.run, settings.get("experiments", ()))
    console.print(f"tables {study.path / 'tables'}", highlight=False, soft_wrap=True)
    console.print(f"page   {page}", highlight=False, soft_wrap=True)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
