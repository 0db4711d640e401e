"""A study: experiments on one model and one text, in one run directory."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.models.model import Model
from depthscope.run.local import Unit, run_units, work_units
from depthscope.run.store import COMPLETE, RunDirectory
from depthscope.studies import sweep

UNIT_TOKENS = 1024
"""Tokens of a work unit: what is lost when a run is killed, and how often the progress bar moves."""
VERSIONED = ("depthscope", "torch", "transformers", "tokenizers", "numpy", "polars")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What decides the numbers of a study besides model and text."""

    edits: tuple[str, ...] = tuple(sweep.EDITS)
    per_token: bool = False
    window: int | None = None
    bos: str = "auto"
    unit_tokens: int = UNIT_TOKENS


Progress = Callable[[str, int, int], None]
"""Told (experiment, units done, units in all)."""


def run_study(
    model: Model, corpus: Corpus, out: str | Path, settings: StudySettings, progress: Progress | None = None
) -> RunDirectory:
    """Do what is not done yet of a study in directory `out`, then make its tables.

    Raises RunMismatchError when `out` was made with other settings, and what reading text or measuring raises.
    """
    windows = make_windows(corpus, model, length=settings.window, bos=settings.bos)
    kinds, not_done = sweep.possible_edits(settings.edits, model)
    experiment = sweep.Sweep(model, windows, kinds, settings.per_token)
    per_unit = max(1, settings.unit_tokens // windows.length)
    units = work_units(len(windows), per_unit)
    described = _settings(model, corpus, windows, kinds, settings, per_unit)
    facts = {
        "model": asdict(model.facts),
        "text": {"documents": windows.documents, "too_short": windows.too_short},
        "edits": {edit.route.name: f"{edit.kind}({edit.layer})" for edit in experiment.edits},
        "not_done": not_done,
        "versions": versions(),
    }
    with RunDirectory.writing(out, described, facts) as run:
        done = 0

        def tell(_unit: Unit, _fresh: bool) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(sweep.NAME, done, len(units))

        run_units(run, sweep.NAME, units, experiment.work, tell)
        run.write_table(sweep.NAME, sweep.sweep_table(run.shards(sweep.NAME, len(units))))
        run.update(status=COMPLETE)
    return run


def _settings(
    model: Model, corpus: Corpus, windows: Windows, kinds: Sequence[str], settings: StudySettings, per_unit: int
) -> dict[str, Any]:
    return {
        "model": model.name,
        "revision": model.revision,
        "weights": model.weight_hash(),
        "dtype": model.facts.dtype,
        "device": model.device.type,
        "attention_backend": model.facts.attention_backend,
        "data": corpus.source,
        "tokens": windows.tokens,
        "window": windows.length,
        "bos": windows.bos,
        "token_hash": windows.token_hash(),
        "windows_per_unit": per_unit,
        "sweep": {"edits": list(kinds), "per_token": settings.per_token},
    }


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}
