"""The options shared by all measuring commands, and running the measurement."""

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console, styled
from depthscope.cli.signals import status_of
from depthscope.cli.summary import print_summary
from depthscope.printable import printable
from depthscope.schema.declaration import Option

if TYPE_CHECKING:
    from depthscope.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The options of all measuring commands for model, text and run directory."""

    model: options.ModelName = options.DEFAULT_MODEL
    data: options.Data = options.DEFAULT_DATA
    tokens: options.Tokens = None
    out: options.Out = None
    special_tokens: options.SpecialTokens = "text"
    chat: options.Chat = False
    pack: options.Pack = False
    cluster: options.Cluster = None
    dtype: options.Dtype = options.DEFAULT_DTYPE
    device: options.Device = "auto"
    revision: options.Revision = None
    stream: options.Stream = "auto"
    unused_tensors: options.UnusedTensors = "refuse"
    adapter: options.Adapter = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Shared):
    """The parsed arguments of a measuring command."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the study, by name."""

    def check(self) -> None:
        """Raise DepthscopeError for what no model could be loaded with, and for no usable --out. Imports no torch."""
        options.check_loading(self.model, *(getattr(self, name) for name in LOADING))
        if self.out is not None:
            options.check_path("--out", self.out)

    def load(self) -> "Model":
        """Load the requested model."""
        return options.load_quietly(self.model, *(getattr(self, name) for name in LOADING))


LOADING = ("dtype", "device", "revision", "stream", "unused_tensors", "adapter")
TEXT = ("tokens", "special_tokens", "chat", "pack", "cluster")
LONGEST_SLUG = 200
MODEL, *SHARED = inspect.signature(Shared).parameters.values()


def measuring(settings: Sequence[Option], command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options and some settings to a command, which is called with a Request and its own options by name."""
    own = list(inspect.signature(command).parameters.values())[1:]
    declared = [options.parameter(option) for option in settings]

    @wraps(command)
    def with_request(**given: Any) -> None:
        shared = {one.name: given.pop(one.name) for one in (MODEL, *SHARED)}
        asked = {one.name: given.pop(one.name) for one in declared}
        command(Request(**shared, settings=asked), **given)

    parameters = [MODEL, *own, *declared, *SHARED]
    with_request.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_request.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_request.__wrapped__  # type: ignore[attr-defined]
    return with_request


def run_and_show(request: Request, experiments: Sequence[str] = ()) -> None:
    """Measure, write tables and page, and print a summary of the given experiments, or of those in the settings.

    Errors in options, text or directory are reported before torch is imported and the model is loaded.
    """
    from depthscope.data.corpus import Corpus
    from depthscope.report.page_file import require_replaceable
    from depthscope.run.layout import PAGE
    from depthscope.run.store import RunDirectory
    from depthscope.studies.settings import study_settings

    request.check()
    asked: dict[str, Any] = request.settings | ({"experiments": tuple(experiments)} if experiments else {})
    names = study_settings(**asked).experiments
    text = Corpus(source=request.data, **{name: getattr(request, name) for name in TEXT})
    text.check()
    directory = request.out or Path("runs") / slug(f"{request.model}-{request.data}")
    RunDirectory.check_place(directory)
    require_replaceable(directory / PAGE)
    options.require_room_to_import()
    from depthscope.api.study import study as run_study

    loaded = request.load()
    blocks = f"{loaded.depth} blocks" + (" (streamed: read as they run)" if loaded.facts.streamed else "")
    blocks += "" if loaded.gguf is None else f", {loaded.gguf}"
    where = printable(directory)
    console.print(styled(loaded.name, "bold") + f": {printable(blocks)}, {printable(request.data)}, into {where}")
    try:
        study = run_study(loaded, text, out=directory, **asked)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({where})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None
    page = study.report()
    print_summary(study.run, names if asked.get("experiments") else ())
    console.print(f"tables {printable(study.path / 'tables')}", soft_wrap=True)
    console.print(f"page   {printable(page)}", soft_wrap=True)


def slug(text: str) -> str:
    """The text as the name of a directory; of a long one the beginning and a hash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if 0 < len(name) <= LONGEST_SLUG:
        return name
    return f"{name[:100]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}".lstrip("-")
