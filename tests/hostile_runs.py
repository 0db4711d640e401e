"""Run directories as a stranger may hand them over: made by tests/report_runs.py, then changed."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import parquet
from report_runs import all_tables, estimates, made_up_stages, make_run

from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import SWEEP_TABLE


def small_run(path: Path, depth: int = 4) -> RunDirectory:
    """A run with every table and with stages."""
    make_run(path, depth=depth, tables=all_tables(depth, heads_per_layer=2), stages=made_up_stages(depth))
    for name in ("run.json", "stages.json"):  # as an earlier version wrote them, without seals: any change is read
        content = json.loads((path / name).read_text(encoding="utf-8")) | {"format": 1}
        del content["seal"]
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    for file in (path / "tables").glob("*.parquet"):
        pl.read_parquet(file).write_parquet(file)
    return RunDirectory.reading(path)


def sweep_rows(count: int = 1, **columns) -> pa.Table:
    """Rows as sweep.parquet has them, with other columns as given."""
    own = {"edit": ["drop"], "layer": [0], "metric": ["kl"], "unit": ["nats"], "mean": [0.5], "ci_low": [0.4]}
    own |= {"ci_high": [0.6], "tokens": [64], "documents": [7]}
    frame = pl.DataFrame({name: values * count for name, values in own.items()}, schema=SWEEP_TABLE).to_arrow()
    for name, values in columns.items():
        place = frame.column_names.index(name) if name in frame.column_names else None
        frame = frame.append_column(name, values) if place is None else frame.set_column(place, name, values)
    return frame


@cache
def many_rows(rows: int = 60_000_000, group: int = 4_000_000) -> bytes:
    """The content of a table with the same row again and again: 60 million in 260 kB."""
    part = pa.table({"layer": pa.array(np.zeros(group, np.int32)), "mean": pa.array(np.ones(group))})
    stream = io.BytesIO()
    with parquet.ParquetWriter(stream, part.schema, compression="zstd", write_statistics=False) as writer:
        for _ in range(rows // group):
            writer.write_table(part, row_group_size=group)
    return stream.getvalue()


def repeated_text(file: Path, rows: int = 20_000, length: int = 60_000) -> None:
    """One long text, referred to by every row: 1.2 GB of text in a few kB."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * length]))
    parquet.write_table(pa.table({"note": text}), file, compression="zstd", store_schema=False)


def shared_prefixes(file: Path) -> None:
    """Long texts that each repeat the one before, by DELTA_BYTE_ARRAY."""
    table = pa.table({"note": ["x" * 60_000] * 100})
    parquet.write_table(table, file, use_dictionary=False, column_encoding={"note": "DELTA_BYTE_ARRAY"})


def nested(file: Path, levels: int = 200) -> None:
    """Lists in lists."""
    kind: pa.DataType = pa.int32()
    for _ in range(levels):
        kind = pa.list_(kind)
    parquet.write_table(pa.table({"deep": pa.array([], kind)}), file)


def with_columns(**columns):
    """A writer of a sweep table with these columns."""
    return lambda file: parquet.write_table(sweep_rows(**columns), file)


def wide(file: Path) -> None:
    """Three hundred columns."""
    parquet.write_table(sweep_rows(**{f"c{place}": pa.array([1]) for place in range(300)}), file)


TABLES = {
    "60 million rows": (lambda file: file.write_bytes(many_rows()), "60,000,000 rows: expected at most"),
    "a long text in every row": (repeated_text, "of memory, far more than its size on disk"),
    "texts that share prefixes": (shared_prefixes, "an encoding that this program does not write"),
    "lists in lists": (nested, "its columns are nested"),
    "three hundred columns": (wide, "309 columns: expected at most 256"),
    "a megabyte of text": (with_columns(edit=pa.array(["x" * 1_000_000])), "a text of 1,000,000 bytes in 'edit'"),
    "numbers as text": (with_columns(mean=pa.array(["0.5"])), "'mean' of String: expected Float64"),
    "layers as fractions": (with_columns(layer=pa.array([0.5])), "'layer' of Float64: expected Int32"),
    "a moment": (with_columns(when=pa.array([0], pa.timestamp("us"))), "'when' of Datetime"),
    "a layer that does not exist": (
        with_columns(layer=pa.array([10**9], pa.int32())),
        "layer 1000000000: the model has 4",
    ),
    "a layer below the first": (with_columns(layer=pa.array([-7], pa.int32())), "layer -7: the model has 4"),
    "no layer": (with_columns(layer=pa.array([None], pa.int32())), "1 rows without 'layer'"),
    "no metric": (with_columns(metric=pa.array([None], pa.large_string())), "1 rows without 'metric'"),
    "no Parquet": (lambda file: file.write_bytes(b"PAR1" + b"x" * 50), "is damaged"),
    "nothing": (lambda file: file.write_bytes(b""), "is damaged"),
}
"""What is put in the place of sweep.parquet of a model of 4 layers, and what is said of it."""

HOSTILE = (
    '<a href="http://x.test/a">press</a><img src="http://x.test/b" onerror="alert(1)"></script><script>alert(2)</script>'
    "<style>@import 'http://x.test/c'</style>\" onmouseover=\"alert(3)\" x=' %{x} {0.__class__} {} $\\a$ javascript:alert(4)"
)
"""A text that tries every way out of a page."""
HOSTILE_NAME = f"=cmd|' /C calc'!A0{HOSTILE}"
KEPT = {"status", "verdict", "name", "end", "signal", "stage", "before", "after", "defining"}
"""Entries that stay, so that as much as possible is drawn."""


def hostile(value, kept=frozenset(), key=""):
    """JSON values with every text replaced, but for keys and the entries `kept`."""
    if isinstance(value, dict):
        return {name: hostile(one, kept, name) for name, one in value.items()}
    if isinstance(value, list):
        return [hostile(one, kept, key) for one in value]
    return HOSTILE if isinstance(value, str) and key not in kept else value


def hostile_run(path: Path, all_texts: bool) -> RunDirectory:
    """A run whose texts are hostile: those that name nothing that is drawn, or all of them."""
    small_run(path)
    kept = {"status"} if all_texts else KEPT
    for name in ("run.json", "stages.json"):
        content = hostile(json.loads((path / name).read_text(encoding="utf-8")), kept)
        if name == "run.json":
            measure = {"name": "own", "unit": HOSTILE, "title": HOSTILE, "definition": HOSTILE}
            content["settings"]["experiments"]["sweep"] = {"measures": [{**measure, "change": HOSTILE}]}
            content["not_done"] = {HOSTILE: HOSTILE, "drop_ssm": HOSTILE}
            content["versions"] = {HOSTILE: HOSTILE}
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    for file in sorted((path / "tables").glob("*.parquet")):
        table = pl.read_parquet(file)
        changed = [name for name, kind in table.schema.items() if kind == pl.String]
        if not all_texts:
            changed = [name for name in changed if name in ("unit", "token_class", "suffix", "selected_by")]
        lists = [name for name, kind in table.schema.items() if kind == pl.List(pl.String)]
        texts = [pl.lit(HOSTILE).alias(name) for name in changed]
        texts += [pl.col(name).list.eval(pl.lit(HOSTILE)).alias(name) for name in lists]
        if file.stem == "sweep" and not all_texts:
            own = table.filter(metric="kl").with_columns(pl.lit("own").alias("metric"))
            renamed = own.filter(edit="drop").with_columns(
                pl.lit("own_edit").alias("edit"), pl.lit("kl").alias("metric")
            )
            table = pl.concat([table, own, renamed])
        table.with_columns(texts).write_parquet(file)
    strange = estimates({"layer": pl.Int32, HOSTILE_NAME: pl.Int32, **ESTIMATED}, [(0, 0), (1, 1)], [Strange()], 7)
    strange.write_parquet(path / "tables" / "strange.parquet")
    text = pl.DataFrame({HOSTILE_NAME: [HOSTILE_NAME, "+1", "-1"], "number": [-1, 2, 3]})
    text.write_parquet(path / "tables" / "stranger.parquet")
    return RunDirectory.reading(path)


class Strange:
    """A metric that nobody registered."""

    name, unit = HOSTILE_NAME, HOSTILE


ESTIMATED = {name: kind for name, kind in SWEEP_TABLE.items() if name not in ("edit", "layer")}
