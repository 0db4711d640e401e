"""What a run's files may do to a page, as one kind of error.

Tables and JSON are checked when they are read (run/bounded_tables.py, schema/stored.py), but a run may still lack rows that a
section relies on: a model's third layer, a metric, the baseline. Which, and in what combination, is up to whoever made the
run, so computing a section from them is a boundary too, and what fails there is reported as the run's fault.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl

from depthscope.errors import RunError

ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration, pl.exceptions.PolarsError)


@contextmanager
def as_run_error(where: object, what: str) -> Iterator[None]:
    """Raise RunError for what a run's content makes fail inside. `what` names what was computed, `where` the runs."""
    try:
        yield
    except ERRORS as error:
        why = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"{what} of {where}: the files lack rows or entries that a study writes "
            f"({type(error).__name__}: {why[:200]})"
        ) from error
