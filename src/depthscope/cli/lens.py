"""`depthscope lens --prompt`."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from depthscope.cli.console import console, styled
from depthscope.cli.request import Request
from depthscope.printable import printable

Prompt = Annotated[
    str | None,
    typer.Option(help="A text to analyse token by token instead of measuring the corpus.", show_default=False),
]
Top = Annotated[int, typer.Option(min=1, max=1000, help="With --prompt: number of tokens to show at each depth.")]
Position = Annotated[
    int,
    typer.Option(help="With --prompt: position whose next-token prediction is shown; negative counts from the end."),
]


def one_prompt(request: Request, *, prompt: Prompt = None, top: Top = 5, position: Position = -1) -> bool:
    """With --prompt: show the most likely next tokens at every depth."""
    if prompt is None:
        return False
    from depthscope.api import prompt as prompts
    from depthscope.errors import DataError
    from depthscope.report.measured import Value, give_or_take
    from depthscope.schema import lens

    model = request.load()
    *_, name = lens.lens_names(request.settings["lens"])  # of several the last fitted one
    directories = {table: request.settings[table] for table in lens.TABLES}
    found = prompts.lens(model, prompt, top=top, lens=name, **directories)
    length = int(found["position"].max()) + 1  # type: ignore[arg-type]
    if not -length <= position < length:
        raise DataError(f"the prompt has {length} tokens: expected a position from {-length} to {length - 1}")
    chosen = found.filter(found["position"] == position % length)
    tokens = found.unique("position", maintain_order=True)["token"].to_list()
    there = position % length
    parts = [styled(token, "bold") if at == there else Text(printable(token)) for at, token in enumerate(tokens)]
    console.print(Text(" ").join([*parts, Text("→ ?")]))
    shown = Table(header_style="bold", box=None, pad_edge=False)
    for title in ("layer", "KL", "entropy"):
        shown.add_column(title, justify="right")
    shown.add_column("most likely next tokens")
    for (layer,), rows in chosen.group_by("layer", maintain_order=True):
        words = [
            Text.assemble(printable(row["predicted"]), " ", (f"{row['probability']:.0%}", "dim"))
            for row in rows.iter_rows(named=True)
        ]
        numbers = (
            give_or_take(Value(rows[name][0]), metric) for name, metric in (("kl", lens.KL), ("entropy", lens.ENTROPY))
        )
        shown.add_row(str(layer), *numbers, Text("  ").join(words))
    console.print(shown)
    return True
