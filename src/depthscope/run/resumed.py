"""Whether a run can be resumed with the settings asked for, and what it keeps of its first start. Imports no torch."""

from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.errors import RunMismatchError
from depthscope.run import recovery
from depthscope.schema.manifest import BY_LIBRARY, IDENTITY, INFORMATION, Manifest, Settings


def require_same(path: Path, manifest: Manifest, settings: Settings, facts: dict[str, Any]) -> None:
    """Raise RunMismatchError unless the settings agree in everything that both know and that decides a number.

    Runs of earlier versions lack entries of IDENTITY, which then cannot be compared; without them, a name or path is all that
    is known of model and text, and is compared too. Where other versions of transformers or tokenizers are used, entries of
    the configuration that only one of the two has and the tokenizer's hash are not compared: `token_hash` is.
    """
    there, asked = manifest.settings.to_json(), settings.to_json()
    both = manifest.settings.experiments.keys() & settings.experiments.keys()
    identified = all("configuration" in content for content in (there, asked))
    unknown = {name for name in IDENTITY if name not in there or name not in asked}
    same_libraries = _same_libraries(manifest, facts)
    flat_there, flat_asked = (dict(_flat(_only(content, both))) for content in (there, asked))
    differences = {}
    for key in sorted(flat_there.keys() | flat_asked.keys()):
        entry = key.partition(".")[0]
        in_both = key in flat_there and key in flat_asked
        rewritten = not same_libraries and entry in BY_LIBRARY and (entry == "tokenizer" or not in_both)
        if entry in unknown or rewritten or (identified and key in INFORMATION):
            continue
        if (stored := flat_there.get(key)) != (wanted := flat_asked.get(key)):
            differences[key] = (stored, wanted)
    if differences and recovery.made_with(path, settings):
        raise RunMismatchError(str(path), differences, f"{recovery.EXCHANGED}, or give another --out.")
    if differences:
        raise RunMismatchError(str(path), differences)


def as_first_named(manifest: Manifest, facts: dict[str, Any]) -> dict[str, Any]:
    """Facts with the model's name as the run has it: one that was moved is recorded as an uninterrupted run would."""
    model = facts.get("model")
    if model is None or manifest.settings.configuration is None:
        return facts
    named = replace(model, name=manifest.settings.model, revision=manifest.settings.revision)
    return {**facts, "model": named}


def earlier_versions(manifest: Manifest, facts: dict[str, Any]) -> list[dict[str, str]]:
    """The manifest's earlier versions, with those it has now if shards may have been made with them."""
    before = manifest.versions
    changed = before and before != facts.get("versions", before) and not manifest.complete
    return [*manifest.earlier_versions, before] if changed else manifest.earlier_versions


def _same_libraries(manifest: Manifest, facts: dict[str, Any]) -> bool:
    """Whether the run was made with the versions of transformers and tokenizers that are used now."""
    now = facts.get("versions", {})
    return all(manifest.versions.get(name) == now.get(name) for name in ("transformers", "tokenizers"))


def _only(settings: dict[str, Any], experiments: Set[str]) -> dict[str, Any]:
    """Settings with only some of the experiments."""
    kept = {name: own for name, own in settings.get("experiments", {}).items() if name in experiments}
    return {**settings, "experiments": kept}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
