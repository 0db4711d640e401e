"""A section of the page: an experiment's sentences, figures, tables and definitions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from depthscope.report.palette import Look
from depthscope.report.panels import Panel
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of the page. A cell is text, or text and what stands small below it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    words: bool = False
    """Whether cells are texts, which stand on the left and wrap, rather than numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one experiment shows. `across`: how many panels stand side by side where there is room."""

    panels: Sequence[Panel]
    sentences: Sequence[str] = ()
    legend: Sequence[Look] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    """What the section lacks, and why."""
    log_note: str | None = None
    """Said while the panels that can be are on a logarithmic axis."""
    tables: Sequence[TextTable] = ()
    definitions: Sequence[Metric | Look] = field(default=())
    across: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A figure of the page and of notebooks by its name."""

    name: str
    title: str
    source: str
    """Which figure it is of which paper."""
    experiment: str
    file: str
    """Where the run keeps its numbers; empty where they are several other figures'."""
    build: Callable[[RunDirectory], Section]
    """Raises RunError where the run has nothing for it."""
    look_for: str = ""
    """What to look for in the figure, as it goes on after "Look for "."""
    more_tables: tuple[str, ...] = ()
    """Tables it shows beside that of `file`."""
