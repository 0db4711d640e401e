"""How far a run is to be trusted: what it rests on, what rounding alone would give, and what could not be done.

From the manifest; an entry of it that is not there is said to be unknown, never guessed.
"""

from typing import Any

from depthscope.report.measured import Measured, Value, scientific, spoken
from depthscope.report.method import BOS, Entries
from depthscope.report.palette import SHOWN
from depthscope.report.wording import counted_documents, listed
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
        *([("Precision of the sweep", said)] if (said := precision_goal(manifest)) else []),
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


def precision_goal(manifest: dict[str, Any]) -> str | None:
    """Whether a run with a precision as its goal reached it, and with how much text; None for other runs.

    What a million tokens would give is a projection: half-widths as the square root of the number of tokens.
    """
    found = manifest.get("precision")
    if not found:
        return None
    said = f"KL of every edit and layer within ±{_share(found['goal'])}: {_reached(found)}. {_widest(found)}"
    return (
        f"{said} These intervals hold although one looked after every piece of text, and so are wider than those in tables "
        "and figures."
    )


def _reached(found: dict[str, Any]) -> str:
    tokens, paper = found["tokens"], found["paper_tokens"]
    used = f"{tokens:,} tokens of {found['documents']:,} documents"
    if found["reached"]:
        fewer = f" instead of the paper’s {paper:,}, {scientific(paper / tokens)} times fewer" if tokens < paper else ""
        return f"reached with {used}{fewer}"
    if found["documents"] < found["fewest_documents"]:
        return f"not reached, since it takes {found['fewest_documents']} documents at least: the text has {found['documents']}"
    ended = "the text ended" if found["text_ended"] else "no more was to be read"
    count = f"{found['rows'] - found['rows_reached']} of {found['rows']}"
    missed = [
        f"{row['edit']}({row['layer']}) ±{_share(row['half_width_relative'], found['goal'])}" for row in found["missed"]
    ]
    return f"not reached after {used}, where {ended}, by {count}: {listed(missed)}"


def _widest(found: dict[str, Any]) -> str:
    widest, paper = found["widest"], found["paper_tokens"]
    if widest is None:
        return ""
    own = _share(widest["half_width_relative"], found["goal"])
    projected = _share(found["projected_at_paper_tokens"])
    floor = found["rows_under_noise_floor"]
    apart = f", {floor} under the noise floor apart" if floor else ""
    if found["tokens"] >= paper:
        return f"The widest{apart}, {widest['edit']}({widest['layer']}), is ±{own}."
    return (
        f"The widest{apart}, {widest['edit']}({widest['layer']}), is ±{own}; with {paper:,} tokens it would be about "
        f"±{projected} (projected by the square root law, not measured)."
    )


def _share(value: float, limit: float | None = None) -> str:
    """A share in per cent, with so many digits that it is seen on which side of `limit` it lies."""
    percent = 100 * value
    digits = next((n for n in (2, 3, 4) if limit is None or float(f"{percent:.{n}g}") != round(100 * limit, 9)), 5)
    return f"{float(f'{percent:.{digits}g}'):g}%"


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


def _text(manifest: dict[str, Any], measured: Measured | None) -> str:
    settings, text = manifest.get("settings", {}), manifest.get("text", {})
    tokens, window = settings.get("tokens"), settings.get("window")
    documents = counted_documents(text, measured.documents if measured else None)
    said = f"{tokens:,} tokens" if tokens else "An unknown number of tokens"
    said += f" of {documents}" if documents else ""
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
