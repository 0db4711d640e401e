"""`depthscope tune`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.groups import Loading, Reading, grouped
from depthscope.cli.signals import status_of
from depthscope.data.bos import AUTO, check_bos
from depthscope.printable import printable
from depthscope.schema.lens import JACOBIAN, SMOOTHING, TUNED, check_fitted

Out = Annotated[Path, typer.Option(help="The directory of the lens. The same command resumes interrupted training.")]
Tokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens to train on; held-out documents come on top.", show_default="131,072"),
]
Window = Annotated[
    int | None, typer.Option(help="Tokens in a window.", show_default="the model's context, at most 512")
]
Lens = Annotated[str, typer.Option(help="Which lens: tuned or jacobian.")]
MostWindows = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --lens jacobian: end after so many windows at the latest. Few are enough for the lens's predictions, more "
        "for its matrices.",
        show_default="1,000",
    ),
]
Bos = Annotated[str, typer.Option(help="BOS token before each window: auto, none or window.")]


@grouped
def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    out: Out,
    lens: Lens = TUNED,
    most_windows: MostWindows = None,
    data: options.Data = options.DEFAULT_DATA,
    tokens: Tokens = None,
    window: Window = None,
    bos: Bos = AUTO,
    reading: Reading,
    loading: Loading,
) -> None:
    """Fit a tuned lens: an affine map per depth before the model's final norm and unembedding (Belrose et al. 2023).

    Training minimises KL(p‖lens) and ends when it no longer falls on held-out documents. With --lens jacobian the map is the
    mean Jacobian of the last residual stream (Gurnee et al. 2026), and the fit ends when it no longer changes. Give the lens to
    a study with --lens tuned --tuned-lens OUT or --lens jacobian --jacobian-lens OUT; a study without the directory fits one on
    the documents it does not measure.
    """
    from depthscope.data.corpus import Corpus
    from depthscope.studies.settings import check_window

    text = Corpus(source=data, tokens=tokens, **asdict(reading))
    check_fitted(lens)
    text.check()
    check_bos(bos)
    if window is not None:
        check_window(window)
    options.check_path("--out", out)
    from depthscope.api.tune import tune_lens

    loaded = loading.load(model)
    try:
        fitted = tune_lens(loaded, text, out=out, window=window, bos=bos, lens=lens, most_windows=most_windows)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({printable(out)})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None
    training = fitted.config["training"]
    kept = training["held_out_kl"]
    first = training["logit_held_out_kl"] if lens == JACOBIAN else training["curve"][0]["held_out_kl"]
    if lens == JACOBIAN:
        last = sum(changes := training["change"][-SMOOTHING:]) / max(1, len(changes))
        console.print(f"{training['windows']} windows, smoothed change {last:.2g}: {training['ended']}")
    console.print(f"mean held-out KL over depths: logit lens {_mean(first)}, {fitted.called} {_mean(kept)} nats")
    console.print(f"lens {printable(out)}", soft_wrap=True)


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}"
