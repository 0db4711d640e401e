"""`depthscope generate`."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from depthscope.cli import options
from depthscope.cli.console import console, errors_console, styled
from depthscope.cli.groups import Loading, grouped
from depthscope.cli.signals import status_of
from depthscope.data.bos import AUTO, check_bos
from depthscope.data.fields import require_text
from depthscope.errors import DataError

if TYPE_CHECKING:
    from depthscope.models.model import Model
    from depthscope.routes import Route

Prompt = Annotated[str, typer.Option(help="The text to continue; with --chat a user's message.")]
Edits = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        help="An edit such as 'swap(3) | drop_mlp(7)' or 'drop_head(4, 3)'. Given several times, each continues the prompt, "
        "after the unmodified model.",
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


@grouped
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
    loading: Loading,
) -> None:
    """Continue a text with an edited model: reordered, dropped, repeated, parallel or partly ablated layers.

    transformers' own generate runs the model's layers in the order of the route, each visit with a cache of its own, so that
    the text is the one computed without a cache. With one edit, or none, only the continuation is printed. Control characters
    in it are shown as escapes.
    """
    from depthscope.edit_registry import parse_edit

    check_bos(bos)
    _check_texts(prompt, stop or [])
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    for name, value in given.items():
        if not math.isfinite(value):
            raise DataError(f"--{name.replace('_', '-')} is {value}: expected a finite number")
    given |= {"tokens": tokens, "chat": chat, "bos": bos, "stop": stop or (), "seed": seed}
    names = {text: parse_edit(text).name for text in edit or ()} | {text: text for text in route or ()}
    loaded = loading.load(model)
    from depthscope.explore.comparison import read_route  # bounds what a route may visit

    routes = {name: read_route(text, loaded.depth) for text, name in names.items()}
    for one in routes.values():  # before the first is generated
        loaded.check_route(one)
    try:
        _print(loaded, prompt, routes, given)
    except KeyboardInterrupt as interrupt:
        console.print()
        errors_console.print("stopped")
        raise typer.Exit(status_of(interrupt)) from None


def _check_texts(prompt: str, stops: list[str]) -> None:
    """Raise DataError for what no tokenizer reads."""
    for name, text in (("--prompt", prompt), *(("--stop", stop) for stop in stops)):
        if not require_text(text, name):
            raise DataError(f"{name} is empty: expected a text")


def _print(model: "Model", prompt: str, routes: "dict[str, Route]", given: dict[str, Any]) -> None:
    from depthscope.api.generate import generate_stream

    compared = len(routes) > 1
    wanted: dict[str, Route | None] = {"unmodified model": None, **routes} if compared else {**routes} or {"": None}
    for name, route in wanted.items():
        if compared:
            console.print(styled(name, "bold"))
        for piece in generate_stream(model, prompt, route, **given):
            console.print(Text(piece), end="", soft_wrap=True)
            console.file.flush()
        console.print("\n" if compared else "")
