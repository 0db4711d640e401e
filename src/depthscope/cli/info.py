"""`depthscope info`."""

from dataclasses import asdict

from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.cli.groups import Loading, grouped
from depthscope.printable import printable


@grouped
def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    loading: Loading,
) -> None:
    """Show a model's architecture: layers, heads, widths, experts, layout, norm, context, parameters."""
    facts = asdict(loading.load(model).facts)
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        counted = name in ("parameters", "stored")
        text = "none" if value is None else f"{value:,}" if counted else str(value)
        shown.add_row(name.replace("_", " "), printable(text))
    console.print(shown)
