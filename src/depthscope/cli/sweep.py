"""`depthscope sweep`."""

from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.request import Request, measuring, run_and_show

Edits = Annotated[str, typer.Option(help="Which edits, separated by commas: swap, drop, drop-attn, drop-mlp.")]


@measuring
def command(
    request: Request,
    *,
    edits: Edits = "swap,drop,drop-attn,drop-mlp",
    per_token: options.PerToken = False,
    precision: options.Precision = None,
) -> None:
    """Apply each edit at every layer, one at a time, and measure KL divergence, agreement, entropy and loss."""
    run_and_show(request, experiments=("sweep",), edits=options.listed(edits), per_token=per_token, precision=precision)
