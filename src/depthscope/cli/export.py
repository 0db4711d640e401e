"""`depthscope export`."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.cli.groups import Sampling, Weights, changed, grouped
from depthscope.data.bos import AUTO, check_bos
from depthscope.errors import DepthscopeError
from depthscope.printable import printable
from depthscope.schema.declaration import check_text

if TYPE_CHECKING:
    from depthscope.edit_registry import Edit
    from depthscope.exports.card import Exported

Out = Annotated[Path, typer.Option(help="The directory of the checkpoint: new or empty.")]
EditText = Annotated[
    str | None,
    typer.Option(
        "--edit",
        help='An edit: "drop(21, 24)", "repeat(5, 8) | drop_mlp(2)", "drop_head(4, 0-2, 5)".',
        show_default=False,
    ),
]
RouteText = Annotated[
    str | None,
    typer.Option("--route", help='The layers in the order they run: "0-20 25-29", "0-8 5-8 9-11".', show_default=False),
]
Drop = Annotated[
    str | None,
    typer.Option("--drop", help="Layers to remove, counted from 0: 21-24, or 3,8,21-24.", show_default=False),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure", help="Whether to measure KL, agreement and perplexity on --data for the card."
    ),
]
Speed = Annotated[
    bool,
    typer.Option(
        "--speed", help="Also time prefill and decoding of the original and of the export, for the model card."
    ),
]
Tokens = Annotated[int | None, typer.Option(min=1, help="Tokens to measure on.", show_default="16,384")]
Bos = Annotated[str, typer.Option(help="BOS token before each window: auto, none or window.")]
Window = Annotated[
    int | None, typer.Option(help="Tokens in a window.", show_default="the model's context, at most 512")
]
DEEPEST = 1_000
"""For checking how a route is written before a model is loaded."""


@grouped
def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    out: Out,
    edit: EditText = None,
    route: RouteText = None,
    drop: Drop = None,
    measure: Measure = True,
    speed: Speed = False,
    data: options.Data = options.DEFAULT_DATA,
    tokens: Tokens = None,
    window: Window = None,
    bos: Bos = AUTO,
    sampling: Sampling,
    weights: Weights,
) -> None:
    """Write an edited model as a plain transformers checkpoint: layers removed, repeated or reordered.

    Give one of --edit, --route and --drop. The checkpoint is loaded again with transformers in a new process, and its logits
    are compared with the edited model's; it is kept only where they agree. README.md in it is a model card with what was
    measured.
    """
    asked = read_edit(edit, route, drop)
    options.check_path("--out", out)
    check_bos(bos)
    from depthscope.data.corpus import Corpus
    from depthscope.exports.place import check_out
    from depthscope.studies.settings import check_window

    check_out(out)
    if window is not None:
        check_window(window)
    text = None
    if measure:
        text = Corpus(source=data, tokens=tokens, **asdict(sampling))
        text.check()
    loaded = weights.load(model)
    from depthscope.api.export import export
    from depthscope.routes import parse_route

    given: dict[str, Any] = {"edit": edit, "route": route, "drop": drop, "no-measure": not measure, "speed": speed}
    given |= (
        {"data": data, "tokens": tokens, "window": window, "bos": None if bos == AUTO else bos, **changed(sampling)}
        if measure
        else {}
    )
    given |= {**changed(weights), "out": out.name}
    done = export(
        loaded,
        parse_route(asked, loaded.depth) if isinstance(asked, str) else asked,
        out,
        text=text,
        window=window,
        bos=bos,
        speed=speed,
        command=options.as_written(["export", model], given),
    )
    _show(done)


def _show(done: "Exported") -> None:
    agree = "bit for bit" if done.difference == 0 else f"up to {done.difference:.2g}"
    console.print(
        f"{done.layers[0]} layers -> {done.layers[1]}, {done.parameters[0]:,} parameters -> {done.parameters[1]:,}"
    )
    console.print(f"logits of the loaded checkpoint: those of the edited model, {agree}")
    console.print(f"checkpoint {printable(done.path)}", soft_wrap=True)


def read_edit(edit: str | None, route: str | None, drop: str | None) -> "Edit | str":
    """The one that was given: an edit, or the text of a route that can be read. Raises RouteError. Imports no torch."""
    from depthscope.edits import parse_edit
    from depthscope.routes import parse_route

    given = [(f"--{n}", v) for n, v in (("edit", edit), ("route", route), ("drop", drop)) if v is not None]
    if len(given) != 1:
        names = " and ".join(option for option, _ in given) or "none"
        raise DepthscopeError(f"expected one of --edit, --route and --drop, got {names}")
    ((option, value),) = given
    check_text(option, value, options.LONGEST_PATH)
    if edit is not None:
        return parse_edit(edit)
    if route is not None:
        parse_route(route, DEEPEST)
        return route
    return parse_edit(" | ".join(_drops(value)))


def _drops(text: str) -> Iterator[str]:
    """The edits of --drop: one for a range of blocks, one for a component."""
    from depthscope.schema.prune import dropped

    items = dropped(text)
    blocks = sorted(block for block, component in items if component is None)
    for _, same in groupby(enumerate(blocks), lambda numbered: numbered[1] - numbered[0]):
        first, *others = (block for _, block in same)
        yield f"drop({first}, {others[-1]})" if others else f"drop({first})"
    yield from (f"drop_{component}({block})" for block, component in items if component is not None)
