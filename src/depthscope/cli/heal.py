"""`depthscope heal`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.groups import Reading, Weights, changed, grouped
from depthscope.cli.signals import status_of
from depthscope.data.bos import AUTO, check_bos
from depthscope.errors import DepthscopeError
from depthscope.printable import printable

if TYPE_CHECKING:
    from depthscope.exports.heal import Healed

Checkpoint = Annotated[Path, typer.Argument(metavar="EXPORT", help="The folder that depthscope export wrote.")]
Teacher = Annotated[str, typer.Option(help="The model it was cut from, by name or folder.")]
Out = Annotated[
    Path, typer.Option(help="The directory of the healed checkpoint: new or empty. The same command resumes healing.")
]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of text; every 8th document is held out.", show_default="65,536")
]
Window = Annotated[
    int | None, typer.Option(help="Tokens in a window.", show_default="the model's context, at most 512")
]
Bos = Annotated[str, typer.Option(help="BOS token before each window: auto, none or window.")]
Rank = Annotated[int, typer.Option(min=1, max=1024, help="Rank of the adapters.")]
Rate = Annotated[float, typer.Option(help="First step size; it falls linearly to 0.")]


@grouped
def command(
    export: Checkpoint,
    *,
    teacher: Teacher,
    out: Out,
    data: options.Data = options.DEFAULT_DATA,
    tokens: Tokens = None,
    window: Window = None,
    bos: Bos = AUTO,
    rank: Rank = 8,
    rate: Rate = 1e-3,
    reading: Reading,
    weights: Weights,
) -> None:
    """Train an exported checkpoint to predict what its original predicts: LoRA on the KL from the original's distribution.

    The adapters are merged, and the result is a plain transformers checkpoint. KL, agreement and loss are measured on held-out
    documents before and after; where healing does not lower the KL, the weights from before are written. --dtype, --device and
    --stream are for the original. Needs the extra heal.
    """
    from depthscope.data.corpus import Corpus
    from depthscope.exports.place import check_out
    from depthscope.studies.settings import check_window

    text = Corpus(source=data, tokens=tokens, **asdict(reading))
    text.check()
    check_bos(bos)
    if window is not None:
        check_window(window)
    if not 0 < rate <= 1:
        raise DepthscopeError(f"--rate is {rate}: expected a number above 0, at most 1")
    for option, path in (("EXPORT", export), ("--out", out)):
        options.check_path(option, path)
    check_out(out)
    loaded = weights.load(teacher)
    from depthscope.api.heal import heal

    asked = {
        "teacher": teacher,
        "data": data,
        "tokens": tokens,
        "window": window,
        "rank": rank,
        "rate": rate,
        "bos": None if bos == AUTO else bos,
        **changed(reading),
        **changed(weights),
        "out": out.name,
    }
    written = options.as_written(["heal", export.name], asked)
    how = {"window": window, "bos": bos, "rank": rank, "rate": rate}
    try:
        done = heal(export, loaded, text, out=out, command=written, **how)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({printable(out)})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None
    _show(done, loaded.name, out)


def _show(done: "Healed", teacher: str, out: Path) -> None:
    rows = {(row["edit"], row["metric"]): row["mean"] for row in done.table.iter_rows(named=True)}
    before, after = (rows[name, "kl"] for name in ("before healing", "after healing"))
    console.print(f"held-out KL from {printable(teacher)}: {before:.4f} before, {after:.4f} after, nats per token")
    if not done.improved:
        console.print("healing did not lower the KL: the checkpoint has the weights from before it")
    console.print(f"checkpoint {printable(out)}", soft_wrap=True)
