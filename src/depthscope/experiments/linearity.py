"""Linearity (Razzhigaev et al. 2024): how close each block is to an affine map, and what it costs to replace it by one.

`prepare` fits the maps on documents that are not measured (`linear_fit`). The reading measures on the others how much of
x_{l+1} and of the write x_{l+1} − x_l each map explains, and runs the model with each block replaced by its map, and dropped.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeasures, RouteMeter
from depthscope.errors import RouteError
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.experiments.fit_text import FitText, fit_text
from depthscope.experiments.linear_fit import fitted_maps
from depthscope.experiments.linear_maps import ON_ALL, RIDGE, LinearMaps
from depthscope.experiments.linearity_tables import KEYS, OF_EDITS, SQUARES, SUMMED, VARIANT, LinearityTables, names_of
from depthscope.models.model import Model
from depthscope.routes import Replaced, Route
from depthscope.schema.linearity import NOT_FIRST, POSITIONS
from depthscope.schema.measures import AGREEMENT, KL, LOSS
from depthscope.shapes import Residual

NAME = "linearity"


class Linearity:
    """Linearity of every block. A reading of the shared pass."""

    name = NAME

    def __init__(self, model: Model, text: FitText) -> None:
        self.model, self.text = model, text
        self.settings: dict[str, Any] = {"fit": text.record(), "ridge": RIDGE}
        self.maps: LinearMaps | None = None
        self.blocks, self.not_done = _replaceable(model)
        """Blocks that can be dropped and replaced, and why the others cannot."""
        own = Route.own(model.depth).visits
        routes = []
        for block in self.blocks:
            linear = Replaced(block, by="linear", function=partial(self._after, block))
            routes += [Route(model.depth, (*own[:block], *middle, *own[block + 1 :])) for middle in ((linear,), ())]
        self.meter = RouteMeter(model, routes, measures=(KL, AGREEMENT, LOSS))
        self.keep, self.readouts = self.meter.keep, len(routes) + 1
        missing = () if len(self.blocks) == model.depth else tuple(metric.name for metric in OF_EDITS)
        self.rows = Rows(KEYS, names_of(model.depth), SUMMED, undefined=missing)

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self.meter.halved

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the maps in the run directory."""
        self.maps = fitted_maps(self.model, self.text, directory, tell)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        shape = len(SUMMED), self.model.depth, len(windows), windows.length
        values = np.full((*shape[:2], len(POSITIONS), *shape[2:]), np.nan)
        for layer in range(self.model.depth):
            for place, positions in enumerate(POSITIONS):
                values[: len(SQUARES), layer, place] = self._squares(baseline, layer, VARIANT[positions])
        if self.blocks:
            values[len(SQUARES) :, self.blocks] = _edited(self.meter.against(baseline))[:, :, None]
        later = list(POSITIONS).index(NOT_FIRST)
        values[:, :, later, :, 0] = 0
        counts = np.full((self.model.depth, len(POSITIONS), len(windows)), windows.length)
        counts[:, later] -= 1
        sums = np.ascontiguousarray(values).sum(-1).reshape(len(SUMMED), -1, len(windows))
        return self.rows.shard(sums, counts.reshape(-1, len(windows)), windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """LINEARITY_TABLE, LINEARITY_MEAN_TABLE and LINEARITY_EXTREMES_TABLE."""
        assert self.maps is not None, "prepare fits the maps"
        found = LinearityTables(self.model.depth, self.maps, self.text.windows.documents)
        for document in self.rows.documents(shards):
            found.add(document)
        return {NAME: found.by_layer(), "linearity_mean": found.means(), "linearity_extremes": found.extremes()}

    def _after(self, block: int, stream: Residual) -> Residual:
        assert self.maps is not None
        return self.maps.after(ON_ALL, block, stream)

    def _squares(self, baseline: Baseline, layer: int, variant: int) -> Float64[np.ndarray, "3 windows length"]:
        """Per position the SQUARES of a block's map."""
        assert self.maps is not None
        maps, (before, after) = self.maps, baseline.residuals[layer : layer + 2]
        before, after = (stream.to(torch.promote_types(maps.matrix.dtype, stream.dtype)) for stream in (before, after))
        write, mean_write = after - before, maps.write[variant, layer]
        parts = (
            write - maps.written(variant, layer, before),
            after - (maps.centre[variant, layer] + mean_write),
            write - mean_write,
        )
        return torch.stack([part.double().square().sum(-1) for part in parts]).cpu().numpy()


def _replaceable(model: Model) -> tuple[list[int], dict[str, str]]:
    """The blocks without which the model can be run, and the reasons for the others (a later block reads what one stores)."""
    possible, refused = [], {}
    for block in range(model.depth):
        own = Route.own(model.depth).visits
        try:
            model.check_route(Route(model.depth, (*own[:block], *own[block + 1 :])))
        except RouteError as error:
            refused[f"{NAME}({block})"] = str(error)
        else:
            possible.append(block)
    return possible, refused


def _edited(measured: RouteMeasures) -> Float64[np.ndarray, "4 blocks windows length"]:
    """The columns OF_EDITS of the routes: the unmodified model's, then each block's replaced and dropped."""
    kl, agreement, loss = (measured[one.name].double().numpy() for one in (KL, AGREEMENT, LOSS))
    return np.stack([kl[1::2], kl[2::2], agreement[1::2], loss[1::2] - loss[0]])


def make(subject: Subject) -> Linearity:
    """Linearity of a model. Raises DataError if there is too little text to fit on."""
    options = subject.options
    text = fit_text(
        subject.corpus,
        subject.model,
        subject.windows,
        bos=subject.bos,
        tokens=options["fit_tokens"],
        data=options["fit_data"],
    )
    return Linearity(subject.model, text)
