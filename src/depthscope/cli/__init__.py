"""The command line: no logic here, and heavy imports only when a command runs."""

import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
from rich.markup import escape

from depthscope.cli import check, compare, explore, info, models, report, tune, verify
from depthscope.cli.console import errors_console
from depthscope.cli.measuring import experiment_command, study_command
from depthscope.errors import DamageWarning, DepthscopeError
from depthscope.schema.experiments import EXPERIMENTS

ABOUT = "Take a language model apart layer by layer and see what each depth does."
PLUGINS = "depthscope"
"""The entry point group loaded before the commands are built: installed packages register experiments through it."""


def build_app() -> typer.Typer:
    """The command line, with a command for each experiment registered so far."""
    app = typer.Typer(
        name="depthscope",
        help=ABOUT,
        epilog="Every command takes --debug, which shows the traceback of an error.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback(help=ABOUT)
    def about(
        version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    ) -> None:
        if version:
            typer.echo(f"depthscope {installed_version('depthscope')}")
            raise typer.Exit

    def add(name: str, title: str, command: Callable[..., None]) -> None:
        app.command(name, short_help=title)(command)

    add("study", "Run the whole study of a model: all experiments, stages, page.", study_command())
    for name in (name for name, one in EXPERIMENTS.items() if one.command == name):
        add(name.replace("_", "-"), EXPERIMENTS[name].title, experiment_command(name))
    add("tune", "Train a tuned lens for a model.", tune.command)
    add("explore", "Explore a model and its runs in the browser.", explore.command)
    add("report", "Write the page of one or several runs again, and figures as files.", report.command)
    add("compare", "Write one page that compares runs over relative depth.", compare.command)
    add("check", "Verify every file of a run by its checksum.", check.command)
    add("info", "Show layers, heads, widths, experts, layout, norm, context.", info.command)
    add("models", "List the models that can be studied here, and get more.", models.command)
    add("verify", "Check that replay reproduces the model, logits bit for bit.", verify.command)
    return app


app = build_app()


def main() -> None:
    """Run the command line. User errors exit with one message and status 2, without a traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    warnings.showwarning = _showing_damage(warnings.showwarning)
    try:
        for plugin in entry_points(group=PLUGINS):
            plugin.load()
        build_app()([argument for argument in arguments if argument != "--debug"])
    except DepthscopeError as error:
        if debug:
            raise
        errors_console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        from depthscope.models.memory import available_memory, in_units, short_of_memory

        if debug or not short_of_memory(error):
            raise
        left = available_memory()
        available = "" if left is None else f", {in_units(left)} are available"
        errors_console.print(
            f"[bold red]error:[/] not enough memory to start{available}. Raise the limit (ulimit -v, or that of the container)",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)


def _showing_damage(others: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: of a damaged file in one line, without the place in the code; `others` shows the rest."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, DamageWarning):
            errors_console.print(f"[bold yellow]note:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
        else:
            others(message, category, *place, **more)

    return show
