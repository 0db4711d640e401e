"""`depthscope sweep`."""

from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.request import Request, measuring, run_and_show

Edits = Annotated[
    str | None,
    typer.Option(
        help="Which edits, separated by commas: swap, drop, drop-attn, drop-mlp; where the model has such parts drop-ssm "
        "(a state-space mixer next to the attention) and drop-ple (a per-layer input).",
        show_default="all the model has",
    ),
]


@measuring
def command(
    request: Request,
    *,
    edits: Edits = None,
    per_token: options.PerToken = False,
    precision: options.Precision = None,
) -> None:
    """Apply each edit at every layer, one at a time, and measure KL divergence, agreement, entropy and loss."""
    kinds = None if edits is None else options.listed(edits)
    run_and_show(request, experiments=("sweep",), edits=kinds, per_token=per_token, precision=precision)
