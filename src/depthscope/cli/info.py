"""`depthscope info`."""

from dataclasses import asdict

from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.printable import printable


def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    dtype: options.Dtype = options.DEFAULT_DTYPE,
    device: options.Device = "auto",
    revision: options.Revision = None,
    stream: options.Stream = "auto",
    unused_tensors: options.UnusedTensors = "refuse",
    adapter: options.Adapter = None,
) -> None:
    """Show a model's architecture: layers, heads, widths, experts, layout, norm, context, parameters."""
    facts = asdict(options.load_quietly(model, dtype, device, revision, stream, unused_tensors, adapter).facts)
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        counted = name in ("parameters", "stored")
        text = "none" if value is None else f"{value:,}" if counted else str(value)
        shown.add_row(name.replace("_", " "), printable(text))
    console.print(shown)
