"""`depthscope check`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.printable import printable

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="A run directory or its URL.")]


def command(run: RunPath) -> None:
    """Verify every file of a run by its checksum: run.json, shards, tables, stages, lens and page.

    Exits with 0 if all are intact, with 1 if any is damaged or missing. Files that are not depthscope's are listed and do not
    count. Needs no torch.
    """
    from depthscope.run.check import BAD, State, check_run

    found = check_run(options.run_path("RUN", run))
    groups: dict[str, Counter[State]] = {}
    for one in found:
        groups.setdefault(_group(one.file), Counter())[one.state] += 1
    table = Table("file", "state", box=None, pad_edge=False)
    for name, states in groups.items():
        count = sum(states.values())
        said = [state.value if count == 1 else f"{number:,} {state.value}" for state, number in states.items()]
        table.add_row(printable(name), ", ".join(said))
    console.print(table)
    for one in found:
        if one.state not in (State.INTACT, State.UNVERIFIED):
            reason = f": {one.reason}" if one.reason else ""
            _say(f"{one.state.value}: {one.file}{reason}")
    bad = [one for one in found if one.state in BAD]
    if not bad:
        _say(f"all {sum(one.state is State.INTACT for one in found):,} files with a checksum are intact")
        return
    _say(_remedy(run, [one.file.as_posix() for one in bad]))
    raise typer.Exit(1)


def _group(file: Path) -> str:
    return file.name if len(file.parts) == 1 else file.parent.as_posix()


def _remedy(run: str, bad: list[str]) -> str:
    """What to do about damaged and missing files."""
    said = []
    if "report.html" in bad:
        said.append(f"move or delete report.html, then `depthscope report {run}` writes it again")
    if set(bad) - {"report.html"}:
        said.append("give the command that made this run again: it makes again what is damaged or missing")
    return "; ".join(said)


def _say(text: str) -> None:
    console.print(printable(text), soft_wrap=True)
