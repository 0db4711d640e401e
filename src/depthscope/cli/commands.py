"""The commands: no logic here, and heavy imports only when one runs."""

from collections.abc import Callable
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from depthscope.cli import (
    check,
    compare,
    convert,
    evaluate,
    explore,
    export,
    generate,
    heal,
    info,
    models,
    prune,
    report,
    tune,
    verify,
)
from depthscope.cli.measuring import experiment_command, study_command
from depthscope.schema.experiments import EXPERIMENTS

ABOUT = "Take a language model apart layer by layer and see what each depth does."


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
    add("tune", "Fit a tuned lens or a Jacobian lens to a model.", tune.command)
    add("convert", "Convert a published lens from PyTorch's pickle format.", convert.command)
    add("prune", "Choose blocks to remove by measured KL, and write the model without them.", prune.prune_command())
    add("export", "Write an edited model as a plain transformers checkpoint.", export.command)
    add("heal", "Train an exported checkpoint to predict what its original predicts.", heal.command)
    add("generate", "Continue a text with an edited model.", generate.command)
    add("eval", "Run tasks on a model and on edited versions of it.", evaluate.command)
    add("explore", "Explore a model and its runs in the browser.", explore.command)
    add("report", "Write the page of one or several runs again, and figures as files.", report.command)
    add("compare", "Write one page that compares runs over relative depth.", compare.command)
    add("check", "Verify every file of a run by its checksum.", check.command)
    add("info", "Show layers, heads, widths, experts, layout, norm, context.", info.command)
    add("models", "List the models that can be studied here, and get more.", models.command)
    add("verify", "Check that replay reproduces the model, logits bit for bit.", verify.command)
    return app


app = build_app()
