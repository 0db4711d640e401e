"""The sweep, the lens and maps by class of the predicted token, and the layers that a class depends on most and least."""

from collections.abc import Sequence

import polars as pl

from depthscope.schema import layer_maps, lens, sweep
from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL
from depthscope.schema.token_classes import BY_CLASS

MOST_ROWS = 1 << 16
"""Rows of a table by class before metrics: edits or cells × classes. Shards have as many rows for each document."""

KL_RATIO = Metric(
    "kl_ratio",
    "ratio",
    "KL relative to all tokens",
    "mean KL over the tokens of the class divided by mean KL over all tokens, of the same edit (or depth) and layer: above 1, "
    "these predictions depend more on the layer than others do; the interval is paired by document",
    0.0,
)

CLASSED = {"classing": pl.String, "token_class": pl.String}
SWEEP_CLASSES_TABLE = {"edit": pl.String, "layer": pl.Int32, **CLASSED, **ESTIMATE}
"""tables/sweep_classes.parquet: rows of the sweep on each class of predicted tokens that the text has."""
LENS_CLASSES_TABLE = {"layer": pl.Int32, **CLASSED, **ESTIMATE}
"""tables/lens_classes.parquet: rows of the lens (the one without training) on each class of predicted tokens."""
MAP_CLASSES_TABLE = {"kind": pl.String, "layer": pl.Int32, "other": pl.Int32, **CLASSED, **ESTIMATE}
"""tables/map_classes.parquet: cells of the maps on each class of predicted tokens."""

LOWEST, HIGHEST = layer_maps.LOWEST, layer_maps.HIGHEST
_PICKED = {**CLASSED, "extreme": pl.String, "layer": pl.Int32, **ESTIMATE, "cells": pl.Int64}
SWEEP_CLASS_LAYERS_TABLE = {"edit": pl.String, **_PICKED}
"""tables/sweep_class_layers.parquet: of each edit and class the layers with the highest and the lowest `kl_ratio`. Intervals
cover all layers and classes of the edit at once, so they hold although the layer was picked."""
LENS_CLASS_LAYERS_TABLE = _PICKED
"""tables/lens_class_layers.parquet: of each class the depths with the highest and the lowest `kl_ratio`. Intervals cover all
depths and classes at once."""

COMPANIONS = {"sweep": "sweep_classes", "lens": "lens_classes", "map": "map_classes"}
"""The experiments that can be broken down, and those that do it."""


def companions(names: Sequence[str]) -> list[str]:
    """The experiments that break down those of these names that can be."""
    return [COMPANIONS[name] for name in names if name in COMPANIONS]


SWEEP_CLASSES = Experiment(
    name="sweep_classes",
    title="The sweep by class of the predicted token.",
    question="Which predictions depend on which layers: the sweep's measures over the tokens of each class, and the KL of each "
    "class relative to that of all tokens.",
    make="depthscope.experiments.class_tables:sweep_classes",
    tables={
        "sweep_classes": Table(columns=SWEEP_CLASSES_TABLE, metrics=(*sweep.METRICS.values(), KL_RATIO)),
        "sweep_class_layers": Table(columns=SWEEP_CLASS_LAYERS_TABLE, metrics=(KL_RATIO,)),
    },
    options=(sweep.EDITS, BY_CLASS),
    with_command="sweep",
    source="frequency bands: Gupta et al. 2025",
    in_study=False,
    deep=True,
)
LENS_CLASSES = Experiment(
    name="lens_classes",
    title="The lens by class of the predicted token.",
    question="Which predictions are formed at which depth: the lens's measures over the tokens of each class.",
    make="depthscope.experiments.class_tables:lens_classes",
    tables={
        "lens_classes": Table(columns=LENS_CLASSES_TABLE, metrics=(*lens.METRICS, KL_RATIO)),
        "lens_class_layers": Table(columns=LENS_CLASS_LAYERS_TABLE, metrics=(KL_RATIO,)),
    },
    options=(PROTOCOL, lens.LENS, BY_CLASS),
    with_command="lens",
    source="frequency bands: Gupta et al. 2025",
    in_study=False,
    deep=True,
)
MAP_CLASSES = Experiment(
    name="map_classes",
    title="Maps by class of the predicted token.",
    question="Which predictions depend on which ranges and pairs of layers: the maps' measures over the tokens of each class.",
    make="depthscope.experiments.class_tables:map_classes",
    tables={
        "map_classes": Table(
            columns=MAP_CLASSES_TABLE,
            metrics=(layer_maps.KL, layer_maps.AGREEMENT, layer_maps.LOSS_CHANGE, KL_RATIO),
        )
    },
    options=(layer_maps.KIND, layer_maps.BAND, BY_CLASS),
    with_command="map",
    source="frequency bands: Gupta et al. 2025",
    in_study=False,
)
