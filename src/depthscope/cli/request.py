"""The options shared by all measuring commands, and running the measurement."""

import gc
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console, styled
from depthscope.cli.groups import Loading, Placement, Sampling, gathered, group_parameters, with_parameters
from depthscope.cli.signals import status_of
from depthscope.cli.summary import print_summary
from depthscope.printable import printable
from depthscope.schema.declaration import Option

if TYPE_CHECKING:
    from depthscope.data.corpus import Corpus
    from depthscope.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, and where the results go."""

    model: options.ModelName = options.DEFAULT_MODEL
    data: options.Data = options.DEFAULT_DATA
    tokens: options.Tokens = None
    out: options.Out = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Subject):
    """The parsed arguments of a measuring command."""

    sampling: Sampling = field(default_factory=Sampling)
    loading: Loading = field(default_factory=Loading)
    placement: Placement = field(default_factory=Placement)
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the study, by name."""

    def check(self) -> None:
        """Raise DepthscopeError for what no model could be loaded with, no usable --engine or --out. Imports no torch."""
        self.loading.check(self.model)
        self.placement.check()
        if self.out is not None:
            options.check_place("--out", self.out)

    def place(self, name: str) -> str | Path:
        """Where the results go: --out, or runs/NAME."""
        return Path("runs") / name if self.out is None else self.out

    def text(self) -> "Corpus":
        """The requested text."""
        from depthscope.data.corpus import Corpus

        return Corpus(source=self.data, tokens=self.tokens, **asdict(self.sampling))

    def load(self) -> "Model":
        """Load the requested model."""
        return self.loading.load(self.model)


LONGEST_SLUG = 200
MODEL, *SUBJECT = group_parameters(Subject)
SHARED = (*SUBJECT, *group_parameters(Sampling), *group_parameters(Loading), *group_parameters(Placement))
"""The options of all measuring commands."""


def measuring(settings: Sequence[Option], command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options and some settings to a command, which is called with a Request and its own options by name."""
    own = list(inspect.signature(command).parameters.values())[1:]
    declared = [options.parameter(option) for option in settings]

    @wraps(command)
    def with_request(**given: Any) -> None:
        subject = {one.name: given.pop(one.name) for one in (MODEL, *SUBJECT)}
        kinds = {"sampling": Sampling, "loading": Loading, "placement": Placement}
        groups = {name: gathered(kind, given) for name, kind in kinds.items()}
        asked = {one.name: given.pop(one.name) for one in declared}
        command(Request(**subject, **groups, settings=asked), **given)

    with_parameters(with_request, [MODEL, *own, *declared, *SHARED])
    return with_request


def run_and_show(request: Request, experiments: Sequence[str] = ()) -> None:
    """Measure, write tables and page, and print a summary of the given experiments, or of those in the settings.

    Errors in options, text or directory are reported before torch is imported and the model is loaded.
    """
    from depthscope.run.mirror import destination
    from depthscope.studies.settings import study_settings

    request.check()
    asked: dict[str, Any] = request.settings | ({"experiments": tuple(experiments)} if experiments else {})
    names = study_settings(**asked).experiments
    text = request.text()
    text.check()
    out = request.place(slug(f"{request.model}-{request.data}"))
    with destination(out) as directory:
        _measure_and_show(request, text, directory, asked, names if asked.get("experiments") else ())
    say_kept(out)


def _measure_and_show(
    request: Request, text: "Corpus", directory: Path, asked: dict[str, Any], summarised: Sequence[str]
) -> None:
    from depthscope.report.page_file import require_replaceable
    from depthscope.run.layout import PAGE
    from depthscope.run.remote import shown_place
    from depthscope.run.store import RunDirectory

    RunDirectory.check_place(directory)
    require_replaceable(directory / PAGE)
    options.require_room_to_import()
    with _collecting_later():
        from depthscope.api.study import study as run_study

        loaded = request.load()
    blocks = f"{loaded.depth} blocks" + (" (streamed: read as they run)" if loaded.facts.streamed else "")
    blocks += "" if loaded.gguf is None else f", {loaded.gguf}"
    where = shown_place(directory if request.out is None else request.out)
    console.print(styled(loaded.name, "bold") + f": {printable(blocks)}, {printable(request.data)}, into {where}")
    try:
        study = run_study(loaded, text, out=directory, **asdict(request.placement), **asked)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({where})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None
    page = study.report()
    print_summary(study.run, summarised)
    console.print(f"tables {printable(study.path / 'tables')}", soft_wrap=True)
    console.print(f"page   {printable(page)}", soft_wrap=True)


@contextmanager
def _collecting_later() -> Iterator[None]:
    """No search for cyclic garbage meanwhile, and none later among what is made here.

    Torch and transformers make a million objects that stay. Python would look through them again and again, for a tenth of the
    time of a small study.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def say_kept(out: str | Path) -> None:
    """Print the URL that results were written to; nothing for a directory, whose files have been named."""
    from depthscope.run.remote import is_url, shown_place

    if is_url(out):
        console.print(f"kept   {shown_place(out)}", soft_wrap=True)


def slug(text: str) -> str:
    """The text as the name of a directory; of a long one the beginning and a hash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if 0 < len(name) <= LONGEST_SLUG:
        return name
    return f"{name[:100]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}".lstrip("-")
