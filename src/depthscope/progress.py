"""Progress bars for terminals and notebooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from depthscope.printable import printable


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar per experiment, and one for reading text.

    Yields a function to call with (experiment, units done, total units known so far).
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def tell(experiment: str, done: int, total: int) -> None:
            if experiment not in tasks:
                tasks[experiment] = bars.add_task(printable(experiment), total=total)
            bars.update(tasks[experiment], completed=done, total=total)

        yield tell
