"""`depthscope study`."""

from depthscope.cli import options
from depthscope.cli.running import run_and_show


def command(
    model: options.ModelName = options.DEFAULT_MODEL,
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
    """Study a model: sweep all layers, make the tables, write the page, print what was found.

    Stop it whenever you like: the same command goes on where it was and ends with the same tables.
    """
    run_and_show(
        model,
        data=data,
        tokens=tokens,
        edits=("swap", "drop", "drop_attn", "drop_mlp"),
        per_token=per_token,
        window=window,
        bos=bos,
        out=out,
        dtype=dtype,
        device=device,
        revision=revision,
    )
