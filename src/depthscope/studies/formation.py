"""When in training the effect of each layer forms: the step at which half of the change in KL is done, layer by layer."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from depthscope.edit_registry import is_edit_name
from depthscope.errors import DepthscopeError, RunError
from depthscope.experiments.sweep import NAME as SWEEP
from depthscope.experiments.sweep import summed
from depthscope.run.series import Member, SeriesDirectory, trajectories
from depthscope.run.store import RunDirectory
from depthscope.schema.formation import CHANGE, FORMATION_TABLE, HALF_CHANGE
from depthscope.schema.formation import NAME as FORMATION
from depthscope.schema.series import MemberEntry
from depthscope.schema.sweep import BASELINE_EDIT, KL
from depthscope.statistics.half_change import HalfChange, half_change
from depthscope.studies.threads import same_sums

Key = tuple[str, int]


def write_formation(series: SeriesDirectory) -> dict[str, str]:
    """Write SERIES/tables/formation.parquet where training runs have sweeps; returns why some have none, by model and text."""
    frames, lacking = [], {}
    for members in trajectories(series):
        entry = members[0][0]
        try:
            with same_sums():
                frames.append(formation(members))
        except DepthscopeError as error:
            lacking[f"{entry.trained} on {entry.text}"] = str(error)
    if frames:
        series.write_table(FORMATION, pl.concat(frames))
    return lacking


def formation(members: Sequence[Member]) -> pl.DataFrame:
    """The FORMATION_TABLE of one training run on one text.

    Raises RunError where checkpoints lack a step or a sweep, or were measured on different tokens.
    """
    entries, runs = zip(*members, strict=True)
    steps = [entry.step for entry in entries]
    if None in steps or len(set(steps)) < len(steps):
        named = ", ".join(entry.checkpoint or "" for entry in entries)
        raise RunError(f"expected checkpoints with different steps in their names, such as step1000, got {named}")
    if len({run.settings.token_hash for run in runs}) > 1:
        raise RunError(
            "the checkpoints were measured on different tokens: expected the same text and tokenizer for all"
        )
    places = np.log1p(np.array(steps, dtype=np.float64))
    sums, tokens, keys = _sums(runs)
    found = half_change(sums, tokens, places)
    return _table(entries[-1], keys, found, int(tokens.sum()), len(tokens))


def _sums(
    runs: Sequence[RunDirectory],
) -> tuple[Float64[np.ndarray, "documents checkpoints rows"], Int64[np.ndarray, " documents"], list[Key]]:
    """KL summed over each document's tokens, the tokens, and the rows (edit, layer) that every checkpoint has."""
    frames = []
    for run in runs:
        units = run.manifest.units.get(SWEEP)
        if units is None:
            raise RunError(f"{run.path} has no sweep: expected one at every checkpoint")
        shards = pl.concat(summed(run.shards(SWEEP, units), run.settings.window or 1))
        kept = shards.filter(pl.col("edit") != BASELINE_EDIT)
        frames.append(kept.group_by("edit", "layer", "document").agg(pl.col("tokens").sum(), pl.col(KL.name).sum()))
    shared = set(frames[0].select("edit", "layer").rows())
    for frame in frames[1:]:
        shared &= set(frame.select("edit", "layer").rows())
    keys = sorted(key for key in shared if is_edit_name(key[0]))
    if not keys:
        raise RunError("the checkpoints' sweeps have no edit in common: expected the same --edits for all")
    order = pl.DataFrame(keys, schema={"edit": pl.String, "layer": pl.Int32}, orient="row").with_row_index("row")
    documents = frames[0]["document"].unique().sort()
    stacked = []
    for frame in frames:
        rows = order.join(frame, on=["edit", "layer"]).sort("document", "row")
        stacked.append(rows[KL.name].to_numpy().reshape(len(documents), len(keys)))
    first = frames[0].filter(edit=keys[0][0], layer=keys[0][1]).sort("document")
    return np.stack(stacked, 1), first["tokens"].to_numpy(), keys


def _table(entry: MemberEntry, keys: Sequence[Key], found: HalfChange, tokens: int, documents: int) -> pl.DataFrame:
    edits, layers = zip(*keys, strict=True)
    parts = (
        (HALF_CHANGE, *(np.expm1(values) for values in (found.place, found.low, found.high))),
        (CHANGE, found.change, found.change_low, found.change_high),
    )
    frames = [
        pl.DataFrame(
            {
                "study": [entry.name] * len(keys),
                "trained": [entry.trained] * len(keys),
                "text": [entry.text] * len(keys),
                "edit": edits,
                "layer": layers,
                "metric": [metric.name] * len(keys),
                "unit": [metric.unit] * len(keys),
                "mean": mean,
                "ci_low": low,
                "ci_high": high,
                "tokens": [tokens] * len(keys),
                "documents": [documents] * len(keys),
            },
            schema=FORMATION_TABLE,
        )
        for metric, mean, low, high in parts
    ]
    return pl.concat(frames).with_columns(pl.col("mean", "ci_low", "ci_high").fill_nan(None))
