"""Reference runs: results of studies that ship with the package, so that a new model can be drawn over them.

    data/reference/NAME/run.json, stages.json, tables/*.parquet

Each is a run directory reduced to what figures of other models need: no shards, no weights, no text, no paths. The entry
`reference` of its manifest records where the model came from, its licence and the date. Imports no torch.
"""

import json
import re
import shutil
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.run.store import MANIFEST, RunDirectory
from depthscope.schema.manifest import Manifest

ALL = "all"
REFERENCE = "reference"
"""The manifest's entry: title, source and licence of the model, and the date of the run."""
TABLES = {
    "sweep": None,
    "lens": None,
    "tuned_lens": None,
    "norms": None,
    "attention": None,
    "neuron_counts": None,
    "similarity": None,
    "influence": None,
    "heads": pl.col("rank") <= 5,
    "probes": pl.col("draw").is_null(),
}
"""The tables that are kept, some of them only in part."""
DROPPED = ("revision", "device", "kernels", "earlier_kernels", "earlier_versions", "units", "unsealed")
"""Entries of a manifest that say where a run was made or which shards it has, not what it found."""
COLUMNS = ("table", "edit", "layer", "metric", "unit", "mean", "ci_low", "ci_high", "tokens", "documents")
CURVES = ("sweep", "lens", "norms", "attention", "influence")
"""Tables of estimates by layer, which the frame holds."""


def reference_folder() -> Path:
    """The package's folder of reference runs."""
    return Path(str(files("depthscope"))) / "data" / "reference"


def reference_names(folder: Path | None = None) -> list[str]:
    """Names of the reference runs, in alphabetical order."""
    return sorted(file.parent.name for file in (folder or reference_folder()).glob(f"*/{MANIFEST}"))


def reference_runs(names: str | Sequence[str] = ALL, folder: Path | None = None) -> list[RunDirectory]:
    """Reference runs by name, or all of them. Raises RunError, listing the names, if there is none of a name."""
    folder = folder or reference_folder()
    there = reference_names(folder)
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    if wanted == [ALL]:
        wanted = there
    if unknown := [name for name in wanted if name not in there]:
        raise RunError(
            f"there is no reference run {unknown[0]!r}: expected {ALL}, or some of {', '.join(there) or 'none'}, "
            "separated by commas"
        )
    return [RunDirectory.reading(folder / name) for name in dict.fromkeys(wanted)]


def about(run: RunDirectory) -> dict[str, str]:
    """A reference run's title, source, licence, date and quantisation; empty for any other run."""
    facts = run.manifest.others.get(REFERENCE)
    return {key: value for key, value in facts.items() if isinstance(value, str)} if isinstance(facts, dict) else {}


def reference(names: str | Sequence[str] = ALL) -> pl.DataFrame:
    """Curves of the reference models that ship with depthscope, as a polars frame.

    `names` is `all` or some of the names, separated by commas. Columns: model, relative_depth, quantisation (null for plain
    weights), dtype, date, depthscope (the version that measured), licence, then table, edit (null outside the sweep), layer,
    metric, unit, mean, ci_low, ci_high (95%, over documents of one source), tokens, documents. Information is in nats. Only
    measurements: no weights and no text. Raises RunError for an unknown name.
    """
    return pl.concat([_frame(run) for run in reference_runs(names)])


def _frame(run: RunDirectory) -> pl.DataFrame:
    facts = about(run)
    parts = []
    for name in (name for name in CURVES if name in run.tables()):
        table = run.table(name).with_columns(pl.lit(name).alias("table"))
        if "edit" not in table.columns:
            table = table.with_columns(pl.lit(None, dtype=pl.String).alias("edit"))
        last = max((run.manifest.model.layers or 1) - (0 if name == "lens" else 1), 1)
        depth = pl.when(pl.col("layer") >= 0).then(pl.col("layer") / last)
        parts.append(table.select(*COLUMNS, depth.alias("relative_depth")))
    constant = {
        "model": run.path.name,
        "quantisation": facts.get("quantisation"),
        "dtype": run.settings.dtype,
        "date": facts.get("date"),
        "depthscope": run.manifest.versions.get("depthscope"),
        "licence": facts.get("licence"),
    }
    known = [pl.lit(value, dtype=pl.String).alias(name) for name, value in constant.items()]
    return pl.concat(parts).select(known[0], "relative_depth", *known[1:], *COLUMNS)


def store_reference(run: RunDirectory, name: str, facts: dict[str, str | None], folder: Path | None = None) -> Path:
    """Reduce a complete run to a reference run `name` and return its directory; what was there is replaced.

    `facts` say title, source and licence of the model. Raises RunError if the run is incomplete or lacks a sweep.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise RunError(f"{name!r} is no name of a reference run: expected lower-case letters, digits, '.', '_' and '-'")
    if not run.complete:
        raise RunError(f"{run.path} is incomplete, so it cannot become a reference run: finish the study first")
    run.table("sweep")
    target = (folder or reference_folder()) / name
    shutil.rmtree(target, ignore_errors=True)
    reduced = RunDirectory(target, _reduced(run, name, facts))
    for table in (table for table in TABLES if table in run.tables()):
        kept, rows = TABLES[table], run.table(table)
        reduced.write_table(
            table, rows if kept is None or kept.meta.root_names()[0] not in rows.columns else rows.filter(kept)
        )
    if (stages := run.stages) is not None:
        reduced.write_stages(stages)
    reduced.update(tables=reduced.tables())
    return target


def _reduced(run: RunDirectory, name: str, facts: dict[str, str | None]) -> Manifest:
    """The manifest without paths, with the reference's name as the model's."""
    content = run.manifest.to_json()
    content["settings"] |= {"model": name, "revision": None}
    content["model"] |= {"name": name, "revision": None}
    made = date.fromtimestamp((run.path / "tables" / "sweep.parquet").stat().st_mtime)
    content[REFERENCE] = {
        "date": f"{made}",
        "quantisation": run.settings.gguf.quantisation if run.settings.gguf else content["model"]["quantisation"],
        **facts,
    }
    kept = {key: value for key, value in content.items() if key not in DROPPED}
    if paths := [text for text in _texts(kept) if re.search(r"(^|\s)(/|~/|[A-Za-z]:\\)", text)]:
        raise RunError(
            f"the manifest of {run.path} holds paths of this machine, such as {paths[0]!r}: give its data a name"
        )
    return Manifest.from_json(json.loads(json.dumps(kept)))


def _texts(content: Any) -> list[str]:
    """All texts in JSON content."""
    if isinstance(content, dict):
        return [text for value in content.values() for text in _texts(value)]
    if isinstance(content, list):
        return [text for value in content for text in _texts(value)]
    return [content] if isinstance(content, str) else []
