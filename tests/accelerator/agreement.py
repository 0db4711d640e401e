"""What a model measures on a device, and whether that is what it measures elsewhere, up to the rounding of float32."""

import polars as pl
import torch

import depthscope as ds
from depthscope.engine.measure_routes import RouteMeasures, RouteMeter
from depthscope.models.model import Model
from depthscope.routes import Route

IDS = (torch.arange(26).view(2, 13) * 7) % 97


def measured(model: Model) -> RouteMeasures:
    """Routes of every kind that the model can run."""
    edits = [ds.drop(1), ds.swap(0), ds.repeat(2), ds.parallel(1, 2)]
    if model.components is not None:
        edits += [ds.drop_attn(0), ds.drop_mlp(3)]
    routes = [edit(Route.own(model.depth)) for edit in edits]
    ids = IDS.to(model.device)
    return RouteMeter(model, routes).measure(ids[:, :-1], ids[:, 1:])


def require_same(found: RouteMeasures, expected: RouteMeasures) -> None:
    """Of nearly equal logits another one may be the largest."""
    for name, column in expected.items():
        if name != "agreement":
            torch.testing.assert_close(found[name], column, atol=2e-4, rtol=2e-3, msg=name)
    assert float((found.agreement == expected.agreement).float().mean()) > 0.98


def require_same_table(found: pl.DataFrame, expected: pl.DataFrame, name: str) -> None:
    """The same rows, and nearly the same numbers; which of nearly equal things is named first may differ."""
    assert found.columns == expected.columns, name
    assert found.height == expected.height, name
    for column, kind in expected.schema.items():
        if kind.is_float():
            ours, theirs = (table[column].fill_null(0.0).to_torch() for table in (found, expected))
            near = 0.02 * float(theirs.abs().nansum()) / max(1, len(theirs)) + 1e-4
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=0.05,
                atol=near,
                equal_nan=True,
                msg=lambda said, at=f"{name}.{column}": f"{at}: {said}",
            )
