"""The command line: one module per command, no logic of its own, heavy imports only when a command runs."""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from rich.markup import escape

from depthscope.cli import (
    attention,
    compare,
    explore,
    heads,
    info,
    lens,
    neurons,
    norms,
    probes,
    report,
    similarity,
    study,
    sweep,
    verify,
)
from depthscope.cli.console import errors_console
from depthscope.errors import DepthscopeError

app = typer.Typer(
    name="depthscope",
    help="Take a language model apart layer by layer, and see what each depth is doing.",
    epilog="Every command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    """Take a language model apart layer by layer, and see what each depth is doing."""
    if version:
        typer.echo(f"depthscope {installed_version('depthscope')}")
        raise typer.Exit


app.command("study", short_help="The whole study of a model: all experiments, stages, page.")(study.command)
app.command("sweep", short_help="Swap, drop and silence every layer and measure what that does.")(sweep.command)
app.command("lens", short_help="The logit lens at every depth, or on one prompt.")(lens.command)
app.command("norms", short_help="How much attention and MLP add to the residual stream.")(norms.command)
app.command("attention", short_help="How local each head's and layer's attention is.")(attention.command)
app.command("heads", short_help="Heads that merge sub-words; previous-token, duplicate-token, induction heads.")(
    heads.command
)
app.command("neurons", short_help="Prediction, suppression, entropy and partition neurons.")(neurons.command)
app.command("similarity", short_help="What layers write under swaps; how alike depths are.")(similarity.command)
app.command("probes", short_help="Which neurons tell that the next token ends in a suffix.")(probes.command)
app.command("explore", short_help="Explore a model and its runs in the browser.")(explore.command)
app.command("report", short_help="Write the page of a run again, or of several, and figures as files.")(report.command)
app.command("compare", short_help="One page that compares runs over relative depth.")(compare.command)
app.command("info", short_help="Layers, heads, widths, experts, layout, norm, context.")(info.command)
app.command("verify", short_help="Is replay the model itself? Compare logits bit for bit.")(verify.command)


def main() -> None:
    """Run the command line. A user's mistake ends with one message and exit status 2, not with a traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"])
    except DepthscopeError as error:
        if debug:
            raise
        errors_console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
