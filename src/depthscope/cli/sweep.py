"""`depthscope sweep`."""

from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.running import run_and_show

Edits = Annotated[str, typer.Option(help="Which edits, separated by commas: swap, drop, drop-attn, drop-mlp.")]


def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    edits: Edits = "swap,drop,drop-attn,drop-mlp",
    data: options.Data = options.DEFAULT_DATA,
    tokens: options.Tokens = options.DEFAULT_TOKENS,
    out: options.Out = None,
    window: options.Window = None,
    bos: options.Bos = "auto",
    per_token: options.PerToken = False,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
) -> None:
    """Apply each edit at every layer, one at a time, and measure KL divergence, agreement, entropy and loss."""
    run_and_show(
        model,
        data=data,
        tokens=tokens,
        edits=[kind.strip().replace("-", "_") for kind in edits.split(",") if kind.strip()],
        per_token=per_token,
        window=window,
        bos=bos,
        out=out,
        dtype=dtype,
        device=device,
        revision=revision,
    )
