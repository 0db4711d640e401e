"""A section of the page: sentences, figures, tables and definitions of an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from depthscope.report.palette import Look
from depthscope.report.panels import Panel
from depthscope.report.unexpected import as_run_error
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.token_classes import Classing, TokenClass


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of the page. A cell is text, or text with small text below it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | tuple[str, str]]]
    words: bool = False
    """Whether cells are text, left-aligned and wrapped, rather than numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What the page shows of one experiment. `across`: panels per row, where there is room."""

    panels: Sequence[Panel]
    sentences: Sequence[str] = ()
    legend: Sequence[Look] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    """What the section lacks, and why."""
    log_note: str | None = None
    """Shown while panels use a logarithmic axis."""
    tables: Sequence[TextTable] = ()
    definitions: Sequence[Metric | Look | Classing | TokenClass] = field(default=())
    across: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A named figure of the page and of notebooks."""

    name: str
    title: str
    source: str
    """The paper and figure it reproduces."""
    experiment: str
    file: str
    """The file of the run with its numbers; empty if it combines the numbers of other figures."""
    build: Callable[[RunDirectory], Section]
    """Raises RunError if the run has no data for it."""
    look_for: str = ""
    """What to look for in the figure: the rest of a sentence that begins "Look for "."""
    more_tables: tuple[str, ...] = ()
    """Tables it shows in addition to `file`."""

    def section(self, run: RunDirectory) -> Section:
        """What the page shows of a run. Raises RunError if the run has no data for it, or none that a study writes."""
        with as_run_error(run.path, f"“{self.title}”"):
            return self.build(run)
