"""Tables of a run, read within bounds and checked against their declarations. A run's directory may come from anyone.

Nothing is decoded before the file's own account of itself (parquet_layout.py) is within bounds that no run reaches:

- memory: LEAST_MEMORY, or MOST_EXPANSION times the file. A table of measured numbers hardly compresses (at most 6 times,
  values per token with their text columns), so a file that expands more holds repetition;
- rows of a declared table: what its key columns can distinguish in this model, at most MOST_OF_CURVES or MOST_OF_MAPS;
- text: LONGEST_TEXT bytes in a cell. Text columns are decoded as dictionaries, and their lengths added up before the text is
  repeated for every row.

What is wrong raises RunError with the file, what was expected and what was found.
"""

from math import prod
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.errors import DamagedError, RunError
from depthscope.run.parquet_layout import FIXED_WIDTHS, Layout, LayoutError, layout
from depthscope.schema.declaration import Table
from depthscope.schema.experiments import declared_experiments
from depthscope.schema.manifest import MOST_LAYERS, Manifest
from depthscope.untrusted import MIB

AGAIN = "Run the study again: it makes again what is missing or damaged. `depthscope check` lists all such files"
"""What to do about a damaged shard or table: the end of the message."""
LEAST_MEMORY, MOST_EXPANSION = 512 * MIB, 32
MOST_COLUMNS = 256
"""Leaf columns; the widest declared table has 17."""
LONGEST_TEXT = 1 << 16
MOST_OF_CURVES, MOST_OF_MAPS = 1 << 16, 1 << 24
"""Rows of a table with a value per layer, and of one with a second place: a head, a neuron, another layer, a search's step."""
KEYS = {
    "edit": 64,
    "metric": 64,
    "component": 4,
    "moved": 4,
    "kind": 16,
    "prompts": 8,
    "offset": 4096,
    "suffix": 16,
    "group": 32,
    "k": 1024,
    "draw": 1024,
    "rank": 1024,
    "variant": 8,
    "neighbours": 64,
    "mode": 8,
    "position": 8,
    "positions": 4,
    "extreme": 4,
    "lens": 16,
    "reading": 32,
    "band": 16,
    "property": 16,
    "label": 64,
}
"""Key columns, and how many values each may have: several times more than any experiment writes."""
SECOND_PLACES = ("other", "head", "neuron", "step", "dimension", "token_class")
FILLED = (
    "edit",
    "metric",
    "unit",
    "tokens",
    "documents",
    "head",
    "other",
    "component",
    "moved",
    "prompts",
    "offset",
    "variant",
    "neighbours",
    "classing",
    "token_class",
)
"""Columns of declared tables that are never null, besides `layer` outside the probes."""
OF_STREAMS = (
    "lens",
    "tuned_lens",
    "geometry",
    "dimension",
    "dimension_scales",
    "trajectory",
    "massive",
    "massive_dimensions",
    "massive_extremes",
    "effective_depth_curves",
    "guess_refine",
    "depth_probes",
    "depth_probes_best",
    "patching",
    "patching_depths",
    "lens_classes",
    "lens_class_layers",
    "jacobian_lens",
)
"""Tables by depth: residual streams before every layer and after the last."""
OF_BLOCKS = (
    "sweep",
    "precision",
    "norms",
    "attention",
    "attention_heads",
    "similarity",
    "influence",
    "heads",
    "head_positions",
    "map",
    "map_best",
    "painters",
    "painters_order",
    "dependency",
    "dependency_effects",
    "head_ablation",
    "head_ablation_layers",
    "head_ablation_best",
    "neuron_ablation",
    "neuron_ablation_layers",
    "neuron_ablation_best",
    "neuron_counts",
    "neurons",
    "neuron_tokens",
    "probes",
    "probe_neurons",
    "sinks",
    "sink_heads",
    "massive_blocks",
    "linearity",
    "linearity_extremes",
    "sweep_classes",
    "sweep_class_layers",
    "map_classes",
    "depth_regime",
    "entropy_neurons",
    "entropy_neurons_best",
)
"""Tables by layer."""


def table_of(content: bytes, path: Path, name: str, manifest: Manifest) -> pl.DataFrame:
    """The table `name` of a run in a file's content. Raises RunError, also where it differs from the declared table."""
    declared = next((one.tables[name] for one in declared_experiments().values() if name in one.tables), None)
    most = None if declared is None else most_rows(declared, manifest)
    frame = frame_of(content, path, declared, most)
    if declared is not None:
        _require_values(frame, path, declared, name, manifest)
    return frame


def frame_of(content: bytes, path: Path, declared: Table | None = None, most: int | None = None) -> pl.DataFrame:
    """The frame in the content of any Parquet file of a run; `path` is for messages. `most`: how many rows it may have.

    Raises RunError: DamagedError for what is no Parquet file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = layout(content)
        _require_room(found, len(content), path, most)
        text = [".".join(chunk.column) for chunk in found.chunks if chunk.kind not in FIXED_WIDTHS]
        schema = parquet.read_schema(pa.BufferReader(content))
        _require_columns(schema, path, declared)
        table = parquet.ParquetFile(pa.BufferReader(content), read_dictionary=sorted(set(text))).read()
        room = _room(len(content)) - found.rows * len(schema)
        for name in table.column_names:
            for chunk in table[name].chunks:
                room -= _text_bytes(chunk, path, name)
        if room < 0:
            raise RunError(_too_large(path, "text", _room(len(content))))
        frame = pl.from_arrow(table.cast(schema))
    except (
        LayoutError,
        pa.ArrowException,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        pl.exceptions.PolarsError,
    ) as error:
        raise DamagedError(f"{path} is damaged ({_first_line(error)}). {AGAIN}") from error
    except pl.exceptions.PanicException as error:  # not an Exception: a panic of polars' own code
        raise DamagedError(f"{path} is damaged: polars cannot hold it. {AGAIN}") from error
    assert isinstance(frame, pl.DataFrame)
    return frame


def most_rows(declared: Table, manifest: Manifest) -> int:
    """How many rows a declared table of this run may have."""
    if any(name in declared.columns for name in SECOND_PLACES):
        return MOST_OF_MAPS
    depths = (manifest.model.layers or MOST_LAYERS) + 2 if "layer" in declared.columns else 1
    return min(MOST_OF_CURVES, depths * prod(most for name, most in KEYS.items() if name in declared.columns))


def _require_room(found: Layout, size: int, path: Path, most: int | None) -> None:
    if most is not None and found.rows > most:
        raise RunError(f"{path} has {found.rows:,} rows: expected at most {most:,} in a run of this model")
    if found.leaves > MOST_COLUMNS:
        raise RunError(f"{path} has {found.leaves:,} columns: expected at most {MOST_COLUMNS}")
    needed = sum(
        chunk.unpacked + chunk.dictionary + chunk.values * FIXED_WIDTHS.get(chunk.kind, 4) for chunk in found.chunks
    )
    if needed > _room(size):
        raise RunError(_too_large(path, f"{found.rows:,} rows", _room(size)))


def _room(size: int) -> int:
    return max(LEAST_MEMORY, MOST_EXPANSION * size)


def _too_large(path: Path, what: str, room: int) -> str:
    return (
        f"{path} has {what} that would take more than {room // MIB:,} MiB of memory, far more than its size on disk: no run "
        "writes such a table"
    )


def _require_columns(schema: Any, path: Path, declared: Table | None) -> None:
    """Columns of plain types, and the declared ones as declared. Later versions may add columns, earlier ones lack some."""
    found = pl.from_arrow(schema.empty_table())
    assert isinstance(found, pl.DataFrame)
    for name, kind in found.schema.items():
        inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
        if not (inner.is_numeric() or inner in (pl.String, pl.Boolean)):
            raise RunError(f"{path} has the column {name!r} of {kind}: expected numbers, text, truth values or lists")
        wanted = None if declared is None else declared.columns.get(name)
        if wanted is not None and kind != wanted:
            raise RunError(f"{path} has the column {name!r} of {kind}: expected {wanted}")


def _text_bytes(array: Any, path: Path, column: str) -> int:
    """Bytes of an array's text once it is repeated for every row. Raises RunError for a text that is too long."""
    import pyarrow as pa
    from pyarrow import compute

    functions: Any = compute  # made at run time, so unknown to type checkers
    if pa.types.is_dictionary(array.type):
        lengths = functions.binary_length(array.dictionary).fill_null(0)
        longest = functions.max(lengths).as_py() or 0
        if longest > LONGEST_TEXT:
            raise RunError(f"{path} has a text of {longest:,} bytes in {column!r}: expected at most {LONGEST_TEXT:,}")
        return functions.sum(lengths.cast(pa.int64()).take(array.indices)).as_py() or 0
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _text_bytes(array.values, path, column)
    return 0


def _require_values(frame: pl.DataFrame, path: Path, declared: Table, name: str, manifest: Manifest) -> None:
    """Keys that are filled, and layers that the model has."""
    filled = [*FILLED, *([] if "suffix" in declared.columns else ["layer"])]
    for column in (column for column in filled if column in declared.columns and column in frame.columns):
        if count := frame[column].null_count():
            raise RunError(f"{path} has {count:,} rows without {column!r}: expected one in every row")
    if name not in (*OF_STREAMS, *OF_BLOCKS):
        return
    known = manifest.model.layers
    last = MOST_LAYERS if known is None else known if name in OF_STREAMS else known - 1
    for column in (column for column in ("layer", "other") if column in declared.columns and column in frame.columns):
        least = -1 if "edit" in declared.columns else 0
        found = frame.filter((pl.col(column) < least) | (pl.col(column) > last))[column]
        if len(found):
            model = "the model has" if known is None else f"the model has {known} layers,"
            raise RunError(
                f"{path} has {column} {found[0]}: {model} {'depths' if last == known else 'layers'} 0 to {last}"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
