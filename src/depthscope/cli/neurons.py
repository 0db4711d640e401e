"""`depthscope neurons --neuron`."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from depthscope.cli.console import console, styled
from depthscope.cli.request import Request
from depthscope.printable import printable

Neuron = Annotated[
    str | None, typer.Option(help="Show a single neuron, as LAYER.NEURON: its tokens and classes.", show_default=False)
]


def one_neuron(request: Request, *, neuron: Neuron = None) -> bool:
    """With --neuron: show which tokens one neuron promotes and suppresses."""
    if neuron is None:
        return False
    from depthscope.experiments.neurons import Neurons, parse_neuron

    place = parse_neuron(neuron)
    model = request.load()
    report = Neurons(model).neuron(*place)
    console.print(styled(model.name, "bold") + f" layer {report.layer}, neuron {report.neuron}: {report.kind}")
    numbers = [f"{name} {value:.3g}" for name, value in report.numbers.items() if value is not None]
    console.print(", ".join(numbers))
    for title, tokens in (("promotes", report.promoted), ("suppresses", report.suppressed)):
        words = [Text.assemble(printable(token.text), " ", (f"{token.cosine:+.2f}", "dim")) for token in tokens]
        console.print(Text(f"{title:10} ") + Text("  ").join(words))
    classes = Table(header_style="bold", box=None, pad_edge=False)
    for heading in ("class of tokens", "tokens", "variance explained", "difference"):
        classes.add_column(heading, justify="left" if heading.startswith("class") else "right")
    for one in report.classes:
        classes.add_row(printable(one.name), str(one.tokens), f"{one.share:.1%}", f"{one.difference:+.2f}")
    console.print(classes)
    return True
