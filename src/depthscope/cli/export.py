"""`depthscope export`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.data.bos import AUTO, check_bos
from depthscope.errors import DepthscopeError, RouteError
from depthscope.printable import printable, shown
from depthscope.schema.declaration import check_text

if TYPE_CHECKING:
    from depthscope.edit_registry import Edit
    from depthscope.exports.card import Exported

Out = Annotated[Path, typer.Option(help="The directory of the checkpoint: new or empty.")]
EditText = Annotated[
    str | None,
    typer.Option("--edit", help='An edit: "drop(21, 24)", "repeat(5, 8) | drop_mlp(2)".', show_default=False),
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
RANGE = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")
DEEPEST = 1_000
"""For checking how a route is written before a model is loaded."""


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
    special_tokens: options.SpecialTokens = "text",
    chat: options.Chat = False,
    pack: options.Pack = False,
    cluster: options.Cluster = None,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
    stream: options.Stream = "auto",
    unused_tensors: options.UnusedTensors = "refuse",
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
        text = Corpus(source=data, tokens=tokens, special_tokens=special_tokens, chat=chat, pack=pack, cluster=cluster)
        text.check()
    loaded = options.load_quietly(model, dtype, device, revision, stream, unused_tensors)
    from depthscope.api.export import export
    from depthscope.routes import parse_route

    given = {"edit": edit, "route": route, "drop": drop, "data": data if measure else None, "window": window}
    given |= {"tokens": tokens, "out": out.name}
    done = export(
        loaded,
        parse_route(asked, loaded.depth) if isinstance(asked, str) else asked,
        out,
        text=text,
        window=window,
        bos=bos,
        speed=speed,
        command=options.as_written(["export", model], given) + (" --speed" if speed else ""),
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
    ranges = []
    for part in value.split(","):
        found = RANGE.fullmatch(part)
        if found is None:
            raise RouteError(f"--drop is {shown(value)}: expected layers such as 21-24 or 3,8,21-24")
        ranges.append(f"drop({found[1]}, {found[2] or found[1]})")
    return parse_edit(" | ".join(ranges))
