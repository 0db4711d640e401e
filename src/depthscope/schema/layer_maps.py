"""Maps: every range of layers dropped or run twice, every pair exchanged or dropped together; the best cells of each map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import AGREEMENT, KL, LOSS, metrics_of
from depthscope.schema.metric import Metric
from depthscope.schema.token_classes import BY_CLASS

MEASURED = (KL, AGREEMENT, LOSS)
"""What is measured per token."""
LOSS_CHANGE = metrics_of([LOSS])["loss_change"]
INTERACTION = Metric(
    "interaction",
    "nats",
    "Interaction",
    "KL of the pair minus the KLs of dropping each of its two layers alone: above 0, the two are worth more together than "
    "apart (each can stand in for the other); below 0, less",
)
METRICS = (KL, AGREEMENT, LOSS_CHANGE, INTERACTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapKind:
    """A kind of map: a value for each range or pair of layers."""

    name: str
    """As in the tables; on the command line with hyphens."""
    title: str
    definition: str
    edit: str
    """The registered edit with the two layers as its arguments."""
    pair: bool = False
    """Whether a cell is two layers, `layer` < `other`, rather than the range from `layer` to `other`."""


KINDS = {
    kind.name: kind
    for kind in (
        MapKind(
            name="drop_range",
            title="Ranges dropped",
            definition="the layers from `layer` to `other` are skipped",
            edit="drop",
        ),
        MapKind(
            name="repeat_range",
            title="Ranges run twice",
            definition="the layers from `layer` to `other` run twice as a whole: `0 … other`, then `layer … L−1`",
            edit="repeat_range",
        ),
        MapKind(
            name="swap_pair",
            title="Pairs exchanged",
            definition="the two layers change places, the others stay",
            edit="exchange",
            pair=True,
        ),
        MapKind(
            name="drop_pair",
            title="Pairs dropped",
            definition="the two layers are skipped, the others stay",
            edit="drop",
            pair=True,
        ),
    )
}
SINGLE = "drop"
"""The `kind` of the single drops that interactions are computed from: `layer` and `other` are equal."""

LOWEST, HIGHEST = "lowest", "highest"


@dataclass(frozen=True, slots=True)
class Best:
    """What is reported as the best cell: the lowest or the highest of a metric, of a whole map or of each length of ranges."""

    kind: str
    metric: Metric
    extreme: str = LOWEST
    by_length: bool = False


BEST = (
    Best("drop_range", KL, by_length=True),
    Best("repeat_range", LOSS_CHANGE),
    Best("repeat_range", KL),
    Best("swap_pair", KL),
    Best("drop_pair", KL),
    Best("drop_pair", INTERACTION),
    Best("drop_pair", INTERACTION, HIGHEST),
)

MAP_TABLE = {"kind": pl.String, "layer": pl.Int32, "other": pl.Int32, **ESTIMATE}
"""tables/map.parquet. Each interval is that of its cell alone. `interaction` exists for pairs only."""

MAP_BEST_TABLE = {
    "kind": pl.String,
    "layers": pl.Int32,
    "extreme": pl.String,
    "layer": pl.Int32,
    "other": pl.Int32,
    **ESTIMATE,
    "cells": pl.Int64,
}
"""tables/map_best.parquet. Intervals cover all cells of the kind at once, so they hold although the cell was picked."""


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        known = ", ".join(name.replace("_", "-") for name in KINDS)
        raise DepthscopeError(f"unknown kind of map {', '.join(unknown) or '(none given)'}: expected some of {known}")


def _check_band(band: Any) -> None:
    if band < 1:
        raise DepthscopeError(f"a band of {shown(band)} layers: expected at least 1")


KIND = Option(
    name="kind",
    type=tuple,
    default=None,
    help=f"Which maps, separated by commas: {', '.join(name.replace('_', '-') for name in KINDS)}.",
    shown_default="all",
    check=_check_kinds,
)
BAND = Option(
    name="band",
    type=int,
    default=None,
    help="The most layers of a range, and the largest distance between the two layers of a pair. The number of cells then "
    "grows with the depth, not with its square.",
    shown_default="no limit",
    check=_check_band,
)

EXPERIMENT = Experiment(
    name="map",
    title="Drop or repeat every range of layers, exchange or drop every pair.",
    question="Which ranges of layers can be dropped or run twice, and which pairs exchanged or dropped together, at what cost? "
    "Every cell is measured, and the best cells have intervals that hold although they were picked.",
    make="depthscope.experiments.layer_maps:make",
    tables={
        "map": Table(columns=MAP_TABLE, metrics=METRICS),
        "map_best": Table(columns=MAP_BEST_TABLE, metrics=METRICS),
    },
    options=(KIND, BAND, BY_CLASS),
    source="Gromov et al. 2024 (ranges dropped), Lad et al. 2025 (ranges repeated)",
    in_study=False,
)
