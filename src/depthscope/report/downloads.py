"""Tables as CSV inside the page: packed (zlib, base64), so that the page stays one small file and needs no network."""

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.report.panels import Panel
from depthscope.run.store import RunDirectory

LARGEST, ROOM = 100_000, 400_000
"""Characters of a packed table and of all in a page, which stays below 6 MB; what does not fit stays in the run's
directory, and the page says so."""
SEPARATOR = " | "
"""Between the elements of a list in a cell."""


def csv(frame: pl.DataFrame) -> str:
    """A frame as CSV, numbers in full; cells that are lists as their elements with SEPARATOR between."""
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    plain = frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(SEPARATOR) for name in lists)
    return plain.write_csv()


def packed(text: str) -> str:
    """Text as the page keeps it."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def packed_tables(run: RunDirectory, names: Iterable[str], room: int = ROOM) -> tuple[dict[str, str], list[str]]:
    """Those of a run's tables that fit into the page, packed, by name; and the names of those too large.

    `room` is what is left of the page's. Tables that are not there or damaged are left out: their section says so.
    """
    fitting, too_large = {}, []
    for name in names:
        try:
            content = packed(csv(run.table(name)))
        except RunError:
            continue
        if len(content) > min(LARGEST, room):
            too_large.append(name)
        else:
            fitting[name] = content
            room -= len(content)
    return fitting, too_large


def drawn(panels: Sequence[Panel]) -> pl.DataFrame:
    """The numbers that panels of curves show: panel, unit, curve, layer, relative depth, mean and interval."""
    rows = [
        (panel.title, panel.unit, trace.name, layer, share, mean, low, high)
        for panel in panels
        for trace in panel.traces
        for mean, (layer, share, low, high) in zip(trace.y, trace.customdata, strict=True)
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


def of_stages(found: Mapping[str, Any]) -> dict[str, pl.DataFrame]:
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
        "stages": pl.DataFrame([{key: one.get(key) for key in _STAGE} for one in found["stages"]], schema=_STAGE),
        "signatures": pl.DataFrame(
            [{key: one.get(key) for key in columns} for one in found["signatures"]],
            schema={key: pl.Float64 if key in _NUMBERS else pl.String for key in columns},
        ),
    }


_STAGE = {"name": pl.String, "title": pl.String, "first": pl.Int32, "last": pl.Int32, "supported": pl.Int32} | {
    "signatures": pl.Int32
}
_NUMBERS = ("effect", "ci_low", "ci_high", "threshold")
