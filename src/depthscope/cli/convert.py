"""`depthscope convert`."""

from pathlib import Path
from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import busy, console
from depthscope.cli.groups import Loading, grouped
from depthscope.printable import printable

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A Jacobian lens written by the code of Gurnee et al. 2026, or params.pt of the tuned-lens package.",
    ),
]
Out = Annotated[Path, typer.Option(help="The directory of the lens: new or empty.")]


@grouped
def command(file: File, model: options.ModelName, *, out: Out, loading: Loading) -> None:
    """Convert a published lens for a model from PyTorch's pickle format.

    The file is unpickled by a process of its own: torch's loader for weights only, limits on memory, time and files, no network
    where the system allows that. A file that asks for more is refused with one line. The result is used like a lens of tune:
    --lens jacobian --jacobian-lens OUT, or --lens tuned --tuned-lens OUT.
    """
    for option, path in (("FILE", file), ("--out", out)):
        options.check_path(option, path)
    from depthscope.api.tune import convert_lens

    loaded = loading.load(model)
    with busy(f"converting {printable(file)}"):
        lens = convert_lens(loaded, file, out=out)
    published = lens.config["published"]
    console.print(f"{lens.called} of {published['bytes']:,} bytes, SHA-256 {published['sha256']}", soft_wrap=True)
    if lens.missing:
        console.print(f"no map at {', '.join(f'x_{depth}' for depth in lens.missing)}", soft_wrap=True)
    console.print(_checked(published), soft_wrap=True)
    console.print(f"lens {printable(out)}", soft_wrap=True)


def _checked(published: dict) -> str:
    """What shows that the lens is this model's."""
    if published.get("agreement"):
        known = [value for value in published["agreement"] if value is not None]
        return (
            f"agrees with the model's own Jacobians on a text: cosine {min(known):.2f} to {max(known):.2f} over depths"
        )
    if published.get("unembedding_checked"):
        return "its recorded hash of the unembedding is the model's; the other weights were not compared"
    return "shapes and depth fit the model; the file does not let its weights be compared"
