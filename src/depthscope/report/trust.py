"""How far to trust a run: its data, its noise floor, and what could not be measured.

Everything comes from the manifest; missing entries are reported as unknown, never guessed.
"""

import math

from depthscope.edit_registry import title_of
from depthscope.report.measured import SweepValues, Value, scientific, spoken
from depthscope.report.method import BOS, Entries
from depthscope.report.wording import counted_documents, counted_units, largest_cluster, listed
from depthscope.schema.dtypes import FINER
from depthscope.schema.manifest import (
    GgufEntry,
    Manifest,
    NoiseFloorEntry,
    PrecisionOutcome,
    Settings,
    TextEntry,
)
from depthscope.schema.sweep import KL

INTERVALS = (
    "95%, over {units}, not tokens, for one number at a time: one in twenty such intervals is expected to miss. They apply "
    "to more {unit}s of the same kind, not to other kinds of text or other training seeds."
)


def trust(manifest: Manifest, measured: SweepValues | None) -> Entries:
    """(topic, statement) pairs, from the text to the versions."""
    settings = manifest.settings
    return [
        ("Text", _text(manifest, measured)),
        ("Intervals", _intervals(manifest.text)),
        *([("Precision of the sweep", said)] if (said := precision_goal(manifest)) else []),
        *([] if settings.gguf is None else [("Weights", _gguf(settings.gguf))]),
        ("BOS", _bos(settings.bos)),
        ("Precision", _precision(settings)),
        ("Noise floor", noise_floor(manifest, measured)),
        *_not_done(manifest.not_done),
        ("Versions", _versions(manifest)),
    ]


def _intervals(text: TextEntry) -> str:
    """What intervals are over and apply to; of clusters also how many there are, and how unequal."""
    if text.clustered is None:
        return INTERVALS.format(units="documents", unit="document")
    said = INTERVALS.format(units=counted_units(text, text.documents), unit="cluster")
    return f"{said} Documents with the same {text.clustered.field} are one cluster; {largest_cluster(text.clustered)}."


def noise_floor(manifest: Manifest, measured: SweepValues | None) -> str:
    """The KL between the model in the run's dtype and in a finer one, or a statement that it was not measured."""
    dtype, floor, of = manifest.settings.dtype, manifest.noise_floor, manifest.noise_floor_of
    if isinstance(floor, float) and not math.isfinite(floor):  # of a version that did not refuse such runs
        return "Its measurement gave NaN or infinity, so the model’s predictions on the text’s first window are not finite."
    if not isinstance(floor, int | float):
        own = f" It is the level of {dtype} rounding error." if dtype == "float32" else ""
        if floor is None:
            return f"It could not be measured: the model’s code fixes its own dtype, or no finer dtype exists.{own}"
        return f"Not measured in this run.{own}"
    finer, tokens = FINER.get(str(dtype), "a finer dtype"), ""
    if isinstance(of, NoiseFloorEntry):
        dtype, finer = of.dtype, of.finer
        tokens = f", mean over {of.tokens:,} tokens"
    said = (
        f"KL {scientific(floor)} nats between the model’s predictions in {dtype} and in {finer}{tokens}: "
        "a KL of that size is rounding error."
    )
    return f"{said}{_beside(floor, measured)}"


def precision_goal(manifest: Manifest) -> str | None:
    """Whether a run with a precision goal reached it, and with how much text; None for other runs.

    The value at a million tokens is a projection: half-widths scale as 1 / sqrt(tokens).
    """
    found = manifest.precision
    if found is None:
        return None
    rows = "edit and layer" if manifest.settings.precision_of is None else "cell"
    said = f"KL of every {rows} within ±{_share(found.goal)}: {_reached(found, manifest.text)}. {_widest(found)}"
    return (
        f"{said}{_share_measured(found)} Each 95% is per row, not for the {found.rows} rows together. These intervals are "
        f"valid together {_looks(found)}, and so are wider than those in tables and figures."
    )


def _reached(found: PrecisionOutcome, text: TextEntry) -> str:
    tokens, paper = found.tokens, found.paper_tokens
    used = f"{tokens:,} tokens of {counted_units(text, found.documents)}"
    if found.reached:
        fewer = f" instead of the paper’s {paper:,}, {scientific(paper / tokens)} times fewer" if tokens < paper else ""
        return f"reached with {used}{fewer}"
    if found.documents < found.fewest_documents:
        return (
            f"not reached, since it needs at least {counted_units(text, found.fewest_documents)}: the text has "
            f"{found.documents}"
        )
    ended = "the text ended" if found.text_ended else "the token limit was reached"
    count = f"{found.rows - found.rows_reached} of {found.rows}"
    missed = [f"{row.row} ±{_share(row.half_width_relative, found.goal)}" for row in found.missed]
    return f"not reached after {used}, when {ended}, for {count}: {listed(missed)}"


def _looks(found: PrecisionOutcome) -> str:
    return "after every document" if found.looks is None else f"at {len(found.looks)} planned looks"


def _share_measured(found: PrecisionOutcome) -> str:
    """Rows known early were left out of later text."""
    share = found.measured_share
    if share is None or share >= 1:
        return ""
    return f" A row that was known was not measured any more: on average a row was measured on {share:.0%} of these tokens."


def _widest(found: PrecisionOutcome) -> str:
    widest, paper, projected = found.widest, found.paper_tokens, found.projected_at_paper_tokens
    if widest is None or projected is None:
        return ""
    own = _share(widest.half_width_relative, found.goal)
    floor = found.rows_under_noise_floor
    apart = f", excluding {floor} below the noise floor" if floor else ""
    if found.tokens >= paper:
        return f"The widest{apart}, {widest.row}, is ±{own}."
    return (
        f"The widest{apart}, {widest.row}, is ±{own}; with {paper:,} tokens it would be about "
        f"±{_share(projected)} (projected by the square root law, not measured)."
    )


def _share(value: float, limit: float | None = None) -> str:
    """A share in per cent, with enough digits to show on which side of `limit` it lies."""
    percent = 100 * value
    digits = next((n for n in (2, 3, 4) if limit is None or float(f"{percent:.{n}g}") != round(100 * limit, 9)), 5)
    return f"{float(f'{percent:.{digits}g}'):g}%"


def _beside(floor: float, measured: SweepValues | None) -> str:
    """The smallest KL of the sweep compared with the noise floor."""
    shown = measured.edits if measured else []
    found = [
        (value.mean, f"{edit}({layer})", value)
        for (edit, layer, metric), value in (measured.values if measured else {}).items()
        if metric == KL.name and edit in shown
    ]
    if not found:
        return ""
    mean, where, value = min(found, key=lambda one: one[0])
    least = f" The smallest KL of the sweep, {where}, is {spoken(Value(value.mean, value.low, value.high), KL)}"
    if floor > 0 and mean > floor:
        return f"{least}, {scientific(mean / floor)} times the floor."
    return f"{least}, above the floor." if mean > floor else f"{least}: not above the floor."


def _text(manifest: Manifest, measured: SweepValues | None) -> str:
    settings = manifest.settings
    tokens, window = settings.tokens, settings.window
    documents = counted_documents(manifest.text, measured.documents if measured else None)
    said = f"{tokens:,} tokens" if tokens else "An unknown number of tokens"
    said += f" of {documents}" if documents else ""
    said += f", in windows of {window:,}" if window else ""
    if settings.data == "bookshelf":
        said += ". Documents here are passages of nine novels, which are more similar than documents of a mixed corpus"
    return f"{said}."


def _gguf(entry: GgufEntry) -> str:
    said = f"{entry} ({entry.file}, tensors: {', '.join(f'{n} {kind}' for kind, n in entry.tensor_types.items())})."
    said = said[:1].upper() + said[1:]
    if entry.quantised:
        said += " Quantised and dequantised again, this is a real model, but not exactly the published one."
    return said


def _bos(policy: str | None) -> str:
    return "Unknown." if policy is None else f"Policy “{policy}”: {BOS.get(policy, 'as the run recorded it')}."


def _precision(settings: Settings) -> str:
    dtype, device, backend = settings.dtype, settings.device, settings.attention_backend
    if dtype is None:
        return "Unknown."
    said = f"{dtype} on {device}" if device else dtype
    return f"{said}, attention by {backend}; sums in float64." if backend else f"{said}; sums in float64."


def _not_done(reasons: dict[str, str]) -> Entries:
    if not reasons:
        return [("Not done", "Everything requested was measured.")]
    return [(f"Not done: {title_of(what)}", f"{why}.") for what, why in reasons.items()]


def _versions(manifest: Manifest) -> str:
    versions = _listed(manifest.versions) or "Unknown"
    begun = [_listed(earlier) for earlier in manifest.earlier_versions]
    return f"{versions}.{''.join(f' Started with {one}.' for one in begun)}"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
