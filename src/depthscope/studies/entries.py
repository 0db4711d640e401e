"""What a study writes into its manifest about itself: settings that must agree to resume, and facts of model and text."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from depthscope.data.windows import Windows
from depthscope.experiments.experiment import Running
from depthscope.models.noise_floor import noise_floor
from depthscope.printable import printable
from depthscope.schema.manifest import (
    AdapterEntry,
    ClusteredEntry,
    ModelEntry,
    NoiseFloorEntry,
    PackedEntry,
    Settings,
    TextEntry,
)
from depthscope.studies import precision
from depthscope.studies.provenance import versions
from depthscope.studies.studied import Studied


def settings_entry(subject: Studied, made: Sequence[Running]) -> Settings:
    """What determines the study's numbers: a run directory holds one of these."""
    model, windows = subject.model, subject.windows
    aim = subject.settings.precision
    per_unit = subject.windows_per_unit
    settings = Settings(
        model=model.name,
        revision=model.revision,
        weights=model.weight_hash(),
        **model.identity(),
        adapter=None if model.adapter is None else AdapterEntry(**asdict(model.adapter)),
        gguf=model.gguf,
        dtype=model.facts.dtype,
        device=model.device.type,
        attention_backend=model.facts.attention_backend,
        data=printable(subject.corpus.source),  # a file name that is not UTF-8 cannot be stored as it is
        tokens=windows.tokens,
        window=windows.length,
        bos=windows.bos,
        chat=subject.corpus.chat,
        pack=windows.separator,
        cluster=subject.corpus.cluster,
        token_hash=windows.token_hash(),
        windows_per_unit=per_unit,
        experiments={experiment.name: dict(experiment.settings) for experiment in made},
    )
    if aim is None:
        return settings
    aimed = replace(settings, windows_per_unit=None, most_windows_per_unit=per_unit)
    goal = precision.aim_of(made)
    return precision.with_goal(aimed, aim, "" if goal is None else goal.name)


def facts_entry(subject: Studied) -> dict[str, Any]:
    """What is found out about model and text, by the manifest's keys. Runs the model once, for the noise floor."""
    first = subject.windows.part(0, 1)
    floor = noise_floor(subject.model, first.batch()[0], first.called)
    return {
        "noise_floor": None if floor is None else floor.kl,
        "noise_floor_of": None if floor is None else NoiseFloorEntry(**asdict(floor)),
        "model": ModelEntry(**asdict(subject.model.facts)),
        "unused_tensors": list(subject.model.unused),
        "text": text_entry(subject.windows),
        "versions": versions(),
    }


def text_entry(windows: Windows) -> TextEntry:
    """How the windows were made, and of how many documents."""
    packed, clustered = windows.packed, windows.clustered
    return TextEntry(
        documents=windows.documents,
        documents_read=windows.read,
        too_short=windows.too_short,
        skipped=windows.skipped,
        given_up=windows.given_up,
        token_entropy=windows.token_entropy,
        special_tokens=windows.special_tokens,
        packed=None if packed is None else PackedEntry(**packed),
        clustered=None if clustered is None else ClusteredEntry(**clustered),
    )
