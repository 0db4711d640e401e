"""What `study` and `sweep` share: run with a progress bar, write the page, print the summary."""

import re
from collections.abc import Sequence
from pathlib import Path

import typer

from depthscope.cli.console import console, errors_console
from depthscope.cli.options import load_quietly
from depthscope.cli.summary import print_summary


def run_and_show(
    model: str,
    *,
    data: str,
    tokens: int,
    edits: Sequence[str],
    per_token: bool,
    window: int | None,
    bos: str,
    out: Path | None,
    dtype: str,
    device: str,
    revision: str | None,
) -> None:
    """Measure, make the tables, write the page and print what was found."""
    from depthscope import api

    loaded = load_quietly(model, dtype, device, revision)
    directory = out or Path("runs") / _slug(f"{model}-{data}")
    console.print(f"[bold]{loaded.name}[/]: {loaded.depth} blocks, {data}, into {directory}", highlight=False)
    try:
        study = api.study(
            loaded,
            api.corpus(data, tokens),
            out=directory,
            edits=edits,
            per_token=per_token,
            window=window,
            bos=bos,
        )
    except KeyboardInterrupt:
        errors_console.print(f"stopped; the same command goes on where it was ({directory})")
        raise typer.Exit(130) from None
    page = study.report()
    print_summary(study.run)
    console.print(f"table  {study.path / 'tables' / 'sweep.parquet'}", highlight=False, soft_wrap=True)
    console.print(f"page   {page}", highlight=False, soft_wrap=True)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
