"""`depthscope generate`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from depthscope.cli import options
from depthscope.cli.console import console, errors_console, styled
from depthscope.cli.signals import status_of
from depthscope.data.bos import AUTO, check_bos

if TYPE_CHECKING:
    from depthscope.edit_registry import Edit
    from depthscope.models.model import Model
    from depthscope.routes import Route

Prompt = Annotated[str, typer.Option(help="The text to continue; with --chat a user's message.")]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        help="An edit such as 'swap(3) | drop_mlp(7)'. Given several times, each continues the prompt, after the unmodified "
        "model.",
        show_default="the unmodified model",
    ),
]
Routes = Annotated[
    list[str] | None,
    typer.Option("--route", help="A route such as '0-2 4 3 5-11', likewise.", show_default=False),
]
Tokens = Annotated[int, typer.Option(min=1, help="Number of tokens to generate, if the text does not end before.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, max=1e5, help="Draw tokens at this temperature; 0 takes the likeliest.", show_default="likeliest"
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Draw from the likeliest tokens that have this much probability together."),
]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from this many likeliest tokens.")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=2**63 - 1, help="Makes drawing repeatable; the same for every edit.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End the text before this string. May be given several times.", show_default=False),
]
Chat = Annotated[
    bool, typer.Option("--chat", help="The prompt is a user's message, for the tokenizer's chat template.")
]
Bos = Annotated[str, typer.Option(help="BOS token before the prompt: auto (as the tokenizer does), none or window.")]


def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    prompt: Prompt,
    edit: Edits = None,
    route: Routes = None,
    tokens: Tokens = 50,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
    chat: Chat = False,
    bos: Bos = AUTO,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
    stream: options.Stream = "auto",
    unused_tensors: options.UnusedTensors = "refuse",
    adapter: options.Adapter = None,
) -> None:
    """Continue a text with an edited model: reordered, dropped, repeated, parallel or partly ablated layers.

    transformers' own generate runs the model's layers in the order of the route, each visit with a cache of its own, so that
    the text is the one computed without a cache. With one edit, or none, only the continuation is printed. Control characters
    in it are shown as escapes.
    """
    from depthscope.edit_registry import parse_edit
    from depthscope.errors import DataError
    from depthscope.routes import parse_route

    check_bos(bos)
    if not prompt:
        raise DataError("--prompt is empty: expected a text to continue")
    if stop is not None and not all(stop):
        raise DataError("--stop is empty: expected a string before which the text ends")
    edits = [parse_edit(text) for text in edit or ()]
    loaded = options.load_quietly(model, dtype, device, revision, stream, unused_tensors, adapter)
    routes: dict[str, Edit | Route | None] = {one.name: one for one in edits}
    routes |= {one.name: one for one in (parse_route(text, loaded.depth) for text in route or ())}
    for one in routes.values():  # before the first is generated
        loaded.check_route(_route(loaded, one))
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    given |= {"tokens": tokens, "chat": chat, "bos": bos, "stop": stop or (), "seed": seed}
    try:
        _print(loaded, prompt, routes, given)
    except KeyboardInterrupt as interrupt:
        console.print()
        errors_console.print("stopped")
        raise typer.Exit(status_of(interrupt)) from None


def _print(model: "Model", prompt: str, routes: "dict[str, Edit | Route | None]", given: dict[str, Any]) -> None:
    from depthscope.api.generate import generate_stream

    compared = len(routes) > 1
    for name, edit in ({"unmodified model": None, **routes} if compared else routes or {"": None}).items():
        if compared:
            console.print(styled(name, "bold"))
        for piece in generate_stream(model, prompt, edit, **given):
            console.print(Text(piece), end="", soft_wrap=True)
            console.file.flush()
        console.print("\n" if compared else "")


def _route(model: "Model", edit: "Edit | Route | None") -> "Route":
    from depthscope.routes import Route

    return edit if isinstance(edit, Route) else edit(Route.own(model.depth)) if edit else Route.own(model.depth)
