"""Massive activations: the few values of the residual stream that are far larger than all others (Sun et al. 2024).

A value of x_l is massive if its magnitude is above MAGNITUDE and at least RATIO times the median magnitude of the window's
x_l, over all its positions and dimensions (arXiv 2402.17762, section 2). x_l is the residual stream before block l, and after
the last block for l = L.
"""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

MAGNITUDE, RATIO = 100.0, 1000.0
FIRST, LATER = "first", "later"
POSITIONS = (FIRST, LATER)
"""The first position of a window, and all others together."""
MOST_TOKENS = 20
"""Tokens listed for each of POSITIONS."""

LARGEST = Metric("largest", "magnitude", "Largest magnitude", "largest magnitude in a window’s x_l", 0.0)
SECOND = Metric("second", "magnitude", "Second largest magnitude", "second largest magnitude in a window’s x_l", 0.0)
THIRD = Metric("third", "magnitude", "Third largest magnitude", "third largest magnitude in a window’s x_l", 0.0)
MEDIAN = Metric("median", "magnitude", "Median magnitude", "median magnitude in a window’s x_l", 0.0)
LARGEST_RATIO = Metric(
    "largest_ratio",
    "ratio",
    "Largest magnitude over the median",
    "largest magnitude in a window’s x_l over the median magnitude; undefined where the median is 0",
    0.0,
)
LARGEST_FIRST = Metric(
    "largest_first",
    "share",
    "Largest magnitude at the first position",
    "share of windows whose largest magnitude in x_l is at the first position",
    0.0,
    1.0,
)
MASSIVE_WINDOWS = Metric(
    "massive_windows",
    "share",
    "Windows with a massive activation",
    f"share of windows with a massive activation in x_l: a value with a magnitude above {MAGNITUDE:g} and at least {RATIO:,g} "
    "times the median magnitude in the window’s x_l",
    0.0,
    1.0,
)
MASSIVE_FIRST = Metric(
    "massive_first",
    "activations",
    "Massive activations at the first position",
    "number of massive activations at the first position of a window",
    0.0,
)
MASSIVE_LATER = Metric(
    "massive_later",
    "activations",
    "Massive activations at later positions",
    "number of massive activations at all later positions of a window together",
    0.0,
)
RELATIVE = Metric(
    "relative",
    "activations",
    f"Activations of {RATIO:,g} times the median",
    f"number of values in a window’s x_l with at least {RATIO:,g} times the median magnitude, whatever their magnitude",
    0.0,
)
METRICS = (
    LARGEST,
    SECOND,
    THIRD,
    MEDIAN,
    LARGEST_RATIO,
    LARGEST_FIRST,
    MASSIVE_WINDOWS,
    MASSIVE_FIRST,
    MASSIVE_LATER,
    RELATIVE,
)

WRITTEN = Metric(
    "written",
    "activations",
    "Massive activations written",
    "number of values of a window that are massive in x_{l+1} and not in x_l",
    0.0,
)
REMOVED = Metric(
    "removed",
    "activations",
    "Massive activations removed",
    "number of values of a window that are massive in x_l and not in x_{l+1}",
    0.0,
)
WRITING = Metric(
    "written_windows",
    "share",
    "Windows in which the layer writes one",
    "share of windows in which the layer writes at least one massive activation",
    0.0,
    1.0,
)
REMOVING = Metric(
    "removed_windows",
    "share",
    "Windows in which the layer removes one",
    "share of windows in which the layer removes at least one massive activation",
    0.0,
    1.0,
)
BLOCK_METRICS = (WRITTEN, REMOVED, WRITING, REMOVING)

SHARE = Metric(
    "massive_share",
    "share",
    "Windows in which the dimension is massive",
    "share of windows in which the dimension has a massive activation in x_l at the position",
    0.0,
    1.0,
)
VALUE = Metric(
    "massive_value",
    "activation",
    "Value of the massive activations",
    "mean value, with its sign, of the dimension’s massive activations in x_l at the position",
)
DIMENSION_METRICS = (SHARE, VALUE)

MASSIVE_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/massive.parquet: by depth, means over windows."""
MASSIVE_BLOCKS_TABLE = {"layer": pl.Int32, "position": pl.String, **ESTIMATE}
"""tables/massive_blocks.parquet: which layers write massive activations and which remove them."""
MASSIVE_DIMENSIONS_TABLE = {"layer": pl.Int32, "dimension": pl.Int32, "position": pl.String, **ESTIMATE}
"""tables/massive_dimensions.parquet: the dimensions with at least one massive activation. Empty if there is none."""
MASSIVE_EXTREMES_TABLE = {
    "layer": pl.Int32,
    "value": pl.Float64,
    "median": pl.Float64,
    "ratio": pl.Float64,
    "dimension": pl.Int32,
    "place": pl.Int32,
    "token": pl.Int32,
    "text": pl.String,
    "document": pl.Int64,
    "windows": pl.Int64,
    "tokens": pl.Int64,
}
"""tables/massive_extremes.parquet: the value of x_l with the largest magnitude in the whole text. It describes this text: more
text can only give a larger one, so it has no interval."""
MASSIVE_TOKENS_TABLE = {
    "position": pl.String,
    "rank": pl.Int32,
    "token": pl.Int32,
    "text": pl.String,
    "count": pl.Int64,
    "documents": pl.Int64,
}
"""tables/massive_tokens.parquet: the tokens at whose positions massive activations were found most often. Empty if there is
none. Counts describe this text."""

MASSIVE_SHARD = {
    "document": pl.Int64,
    "quantity": pl.String,
    "layer": pl.Int32,
    "position": pl.String,
    "dimension": pl.Int32,
    "token": pl.Int32,
    "count": pl.Int64,
    "sum": pl.Float64,
    "place": pl.Int32,
    "median": pl.Float64,
}
"""A shard of `massive`: sums over a document's windows, with rows of zero sum left out except by depth."""

EXPERIMENT = Experiment(
    name="massive",
    title="Massive activations: where they are, which layers write and remove them.",
    question="Which values of the residual stream are massive, in which dimensions and at which positions, and which layers "
    "write and remove them?",
    make="depthscope.experiments.massive:make",
    tables={
        "massive": Table(
            columns=MASSIVE_TABLE,
            metrics=METRICS,
            in_terminal=(LARGEST, MEDIAN, LARGEST_RATIO, MASSIVE_FIRST, MASSIVE_LATER),
        ),
        "massive_blocks": Table(columns=MASSIVE_BLOCKS_TABLE, metrics=BLOCK_METRICS),
        "massive_dimensions": Table(columns=MASSIVE_DIMENSIONS_TABLE, metrics=DIMENSION_METRICS),
        "massive_extremes": Table(columns=MASSIVE_EXTREMES_TABLE),
        "massive_tokens": Table(columns=MASSIVE_TOKENS_TABLE),
    },
    with_command="sinks",
    source="Sun et al. 2024 (Massive Activations in Large Language Models)",
)
