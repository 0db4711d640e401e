"""Tables as CSV inside the page: packed (zlib, base64), so that the page stays one small offline file."""

import base64
import re
import zlib
from collections.abc import Iterable, Sequence

import polars as pl

from depthscope.errors import RunError
from depthscope.report.measured import Value
from depthscope.report.panels import Panel
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages

LARGEST, ROOM = 100_000, 400_000
"""Most characters of one packed table, and of all in a page, which stays below 6 MB. The page names the tables that do not
fit; they remain in the run's directory."""
MOST_CELLS = 2_000_000
"""Cells of a table that may be offered: compressed a hundredfold, more do not fit."""
FORMULA = "^[=+@\t\r\n\uff0b\uff1d\uff20\uff0d-]"
"""What makes a spreadsheet read a text as a formula: = + - @, the same in full width, tab, and line ends."""
SEPARATOR = " | "
"""Separates the elements of a list in a cell."""


def csv(frame: pl.DataFrame) -> str:
    """A frame as CSV with numbers at full precision; elements of list cells are joined by SEPARATOR.

    A text that a spreadsheet would run as a formula, one that begins with a character of FORMULA, is preceded by an
    apostrophe, also in column names (OWASP, CSV injection). Columns of numbers are written as numbers.
    """
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array)]
    joined = frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(SEPARATOR) for name in lists)
    texts = pl.col(name for name, kind in frame.schema.items() if getattr(kind, "inner", kind) == pl.String)
    text = pl.when(texts.str.contains(FORMULA)).then(pl.lit("'") + texts).otherwise(texts)
    plain = joined.with_columns(text.name.keep())
    return plain.rename({name: f"'{name}" for name in plain.columns if re.match(FORMULA, name)}).write_csv()


def packed(text: str) -> str:
    """Text compressed and encoded for the page."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def packed_tables(run: RunDirectory, names: Iterable[str], room: int = ROOM) -> tuple[dict[str, str], list[str]]:
    """(packed tables of a run by name, as far as they fit into the page; names of those too large).

    `room` is the number of characters left in the page. Missing or damaged tables are skipped: their section reports them.
    """
    fitting, too_large = {}, []
    for name in names:
        try:
            table = run.table(name)
        except RunError:
            continue
        if table.height * table.width > MOST_CELLS:
            too_large.append(name)
            continue
        content = packed(csv(table))
        if len(content) > min(LARGEST, room):
            too_large.append(name)
        else:
            fitting[name] = content
            room -= len(content)
    return fitting, too_large


def drawn(panels: Sequence[Panel]) -> pl.DataFrame:
    """The numbers that panels of curves show: panel, unit, curve, layer, relative depth, mean and interval bounds."""
    rows = [
        (panel.title, panel.unit, points.name, int(row.layer), row.share, y.mean, row.low, row.high)
        for panel in panels
        for points in panel.points
        for y, row in zip(points.y, points.rows(), strict=True)
        if isinstance(y, Value)
    ]
    columns = {
        "panel": pl.String,
        "unit": pl.String,
        "curve": pl.String,
        "layer": pl.Int32,
        "relative_depth": pl.Float64,
        "mean": pl.Float64,
        "ci_low": pl.Float64,
        "ci_high": pl.Float64,
    }
    return pl.DataFrame(rows, schema=columns, orient="row")


def of_stages(found: Stages) -> dict[str, pl.DataFrame]:
    """stages.json as two flat tables: the stages, and the signatures with their verdicts."""
    columns = (
        "stage",
        "name",
        "title",
        "test",
        "effect",
        "ci_low",
        "ci_high",
        "unit",
        "threshold",
        "verdict",
        "reason",
    )
    return {
        "stages": pl.DataFrame([{key: getattr(one, key) for key in _STAGE} for one in found.stages], schema=_STAGE),
        "signatures": pl.DataFrame(
            [{key: getattr(one, key) for key in columns} for one in found.signatures],
            schema={key: pl.Float64 if key in _NUMBERS else pl.String for key in columns},
        ),
    }


_STAGE = {"name": pl.String, "title": pl.String, "first": pl.Int32, "last": pl.Int32, "supported": pl.Int32} | {
    "signatures": pl.Int32
}
_NUMBERS = ("effect", "ci_low", "ci_high", "threshold")
