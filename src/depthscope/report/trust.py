"""How far a run is to be trusted: what it rests on, what rounding alone would give, and what could not be done.

From the manifest; an entry of it that is not there is said to be unknown, never guessed.
"""

from typing import Any

from depthscope.report.measured import Measured, Value, spoken
from depthscope.report.method import BOS, Entries
from depthscope.report.palette import SHOWN
from depthscope.schema.sweep import KL

FINER = {"float32": "float64", "float16": "float32", "bfloat16": "float32"}
"""What a dtype is compared with to see what its rounding does."""
INTERVALS = (
    "95%, over documents, not tokens, for one number at a time: of twenty such intervals one is expected to miss. They speak "
    "for more documents of the same kind, not for other kinds of text, and not for other seeds of training."
)


def trust(manifest: dict[str, Any], measured: Measured | None) -> Entries:
    """(what, what is to be said of it), from the text to the versions."""
    settings = manifest.get("settings", {})
    return [
        ("Text", _text(manifest, measured)),
        ("Intervals", INTERVALS),
        ("BOS", _bos(settings.get("bos"))),
        ("Precision", _precision(settings)),
        ("Noise floor", noise_floor(manifest, measured)),
        *_not_done(manifest.get("not_done", {})),
        ("Versions", _versions(manifest)),
    ]


def noise_floor(manifest: dict[str, Any], measured: Measured | None) -> str:
    """What the KL is between the model in the run's dtype and in a finer one; that it was not measured, where it was not."""
    dtype = manifest.get("settings", {}).get("dtype")
    floor, of = manifest.get("noise_floor"), manifest.get("noise_floor_of") or {}
    if not isinstance(floor, int | float):
        own = f" It is that of {dtype} rounding." if dtype == "float32" else ""
        if "noise_floor" in manifest:
            return f"It could not be measured: the model’s code fixes a dtype of its own, or none is finer.{own}"
        return f"Not measured in this run.{own}"
    finer = of.get("finer") or FINER.get(str(dtype), "a finer dtype")
    tokens = f", mean over {of['tokens']:,} tokens" if of.get("tokens") else ""
    said = (
        f"KL {scientific(floor)} nats between the model’s predictions in {of.get('dtype') or dtype} and in {finer}{tokens}: "
        "a KL of that size is rounding."
    )
    return f"{said}{_beside(floor, measured)}"


def _beside(floor: float, measured: Measured | None) -> str:
    """The smallest KL of the sweep beside the floor."""
    found = [
        (value.mean, f"{edit}({layer})", value)
        for (edit, layer, metric), value in (measured.values if measured else {}).items()
        if metric == KL.name and edit in SHOWN
    ]
    if not found:
        return ""
    mean, where, value = min(found, key=lambda one: one[0])
    least = f" The smallest KL of the sweep, {where}, is {spoken(Value(value.mean, value.low, value.high), KL)}"
    if floor > 0 and mean > floor:
        return f"{least}, {scientific(mean / floor)} times the floor."
    return f"{least}, above the floor." if mean > floor else f"{least}: no more than the floor."


def scientific(value: float) -> str:
    """Two significant digits, with a power of ten where plain figures would be long: `3.1 × 10⁻¹²`, `0.020`, `240`."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    figures, power = f"{value:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{figures} × 10{raised}"


def _text(manifest: dict[str, Any], measured: Measured | None) -> str:
    settings, text = manifest.get("settings", {}), manifest.get("text", {})
    tokens, window = settings.get("tokens"), settings.get("window")
    documents = text.get("documents", measured.documents if measured else None)
    said = f"{tokens:,} tokens" if tokens else "An unknown number of tokens"
    said += f" of {documents:,} document{'' if documents == 1 else 's'}" if documents else ""
    said += f", in windows of {window:,}" if window else ""
    if settings.get("data") == "bookshelf":
        said += ". Documents here are passages of nine novels, which are more alike than documents of a mixed corpus"
    return f"{said}."


def _bos(policy: str | None) -> str:
    return "Unknown." if policy is None else f"Policy “{policy}”: {BOS.get(policy, 'as the run recorded it')}."


def _precision(settings: dict[str, Any]) -> str:
    dtype, device, backend = (settings.get(key) for key in ("dtype", "device", "attention_backend"))
    if dtype is None:
        return "Unknown."
    said = f"{dtype} on {device}" if device else str(dtype)
    return f"{said}, attention by {backend}; sums in float64." if backend else f"{said}; sums in float64."


def _not_done(reasons: dict[str, str]) -> Entries:
    if not reasons:
        return [("Not done", "Nothing that was asked for was left out.")]
    return [(f"Not done: {SHOWN[what].title if what in SHOWN else what}", f"{why}.") for what, why in reasons.items()]


def _versions(manifest: dict[str, Any]) -> str:
    versions = _listed(manifest.get("versions", {})) or "Unknown"
    begun = [_listed(earlier) for earlier in manifest.get("earlier_versions", [])]
    return f"{versions}.{''.join(f' Begun with {one}.' for one in begun)}"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
