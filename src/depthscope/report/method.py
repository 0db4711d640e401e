"""The page's facts about model and text, and its description of the method, from the manifest.

A manifest of another version may lack entries; missing ones are skipped.
"""

from typing import Any

from depthscope.report.measured import SweepValues, spoken
from depthscope.report.wording import counted_units
from depthscope.schema.manifest import GgufEntry, Manifest
from depthscope.schema.sweep import ENTROPY, LOSS

Entries = list[tuple[str, str]]
LAYOUTS = {"sequential": "attention, then MLP", "parallel": "attention and MLP in parallel"}
BOS = {
    "none": "windows have no BOS token",
    "window": "each window begins with the tokenizer’s BOS token",
}
ESTIMATOR = (
    "Tokens of one document are not independent, so the unit of sampling is the document. With S the sum of a quantity "
    "over the n tokens of a document, the mean is the ratio estimator ΣS / Σn over documents, with the linearised "
    "variance D / (D − 1) · Σ(S − mean · n)² / (Σn)² for D documents (Cochran 1977, section 6.3; the cluster-robust "
    "variance of Liang and Zeger 1986 for a mean). Intervals are 95% intervals from Student's t with D − 1 degrees of freedom, "
    "clipped to the range of the quantity. They hold for one layer at a time, not for all layers jointly. "
    "CKA’s come from a jackknife over documents on the arctanh scale, corrected for its bias, those of stage boundaries from "
    "resampling documents. "
    "“Too close to call” means that two intervals overlap."
)
PACKED = (
    "Short documents are joined whole, {separator} after each, until they fill a window; the remainder of the last is not "
    "used. {documents:,} documents were used; {windows_with_boundary:,} windows hold several, and {positions_after_boundary:,} "
    "positions follow another document in their window, which attention sees. Measurements there depend on it, so such a "
    "window, a pack, counts as one document wherever documents are counted or resampled."
)
CLUSTERED = (
    "Documents with the same {field} are one cluster, which takes the place of the document wherever documents are counted, "
    "resampled, or split into training and test: {documents:,} documents were used, in {clusters}. Windows are ordered by "
    "cluster."
)
REPLAY = (
    "Each edit changes the order in which the residual stream visits the model’s own blocks; nothing is retrained. "
    "p is the next-token distribution of the unmodified model, q that of the edited one, at the same position of the same "
    "text. Logarithms are natural. Other quantities are defined below their figures."
)


def facts(manifest: Manifest, measured: SweepValues | None) -> list[tuple[str, Entries]]:
    """Facts about the model and the text: (heading, entries) pairs."""
    model, settings, text = manifest.model, manifest.settings, manifest.text
    tied = None if model.tied is None else "tied to the embedding" if model.tied else "a separate matrix"
    units = text.documents
    if units is None and measured:
        units = measured.documents
    grouped = text.clustered or text.packed
    independent = counted_units(text, units) if text.clustered else _count(units) if grouped else None
    own = [
        (f"Own {metric.title.lower()} per token", spoken(value, metric))
        for metric in (LOSS, ENTROPY)
        if measured and (value := measured.baseline(metric))
    ]
    return [
        (
            "Model",
            _there(
                ("Layers", model.layers),
                ("d_model", model.d_model),
                ("Parameters", _count(model.parameters)),
                ("Layout", LAYOUTS.get(model.layout or "", model.layout)),
                ("Norm", model.norm),
                ("Unembedding", tied),
                ("Vocabulary", _count(model.vocabulary)),
                ("Context", _with(_count(model.context), "tokens")),
                ("Family", model.family),
                ("Weights", None if settings.gguf is None else f"GGUF, {settings.gguf}"),
                ("Computed in", _joined(settings.dtype, settings.device, " on ")),
            ),
        ),
        (
            "Text",
            _there(
                ("Source", settings.data),
                ("Tokens", _count(settings.tokens)),
                ("Documents", _count(grouped.documents if grouped else units)),
                ("Clusters" if text.clustered else "Independent units", independent),
                ("Windows of", _with(_count(settings.window), "tokens")),
            )
            + own,
        ),
    ]


def method(manifest: Manifest) -> dict[str, Any]:
    """How the run was measured: text, estimator, and what identifies the run."""
    settings = manifest.settings
    return {
        "replay": REPLAY,
        "text": _text(manifest),
        "estimator": ESTIMATOR,
        "identity": _there(
            ("Model", settings.model),
            ("Revision", settings.revision),
            ("Weights, SHA-256", settings.weights),
            *_gguf(settings.gguf),
            ("Tokens, SHA-256", settings.token_hash),
            ("Attention backend", settings.attention_backend),
        ),
    }


def _gguf(entry: GgufEntry | None) -> Entries:
    if entry is None:
        return []
    return [("GGUF file", entry.file), ("GGUF file, SHA-256", entry.sha256)]


def _text(manifest: Manifest) -> str:
    """How the text was split into windows, in sentences."""
    settings, text = manifest.settings, manifest.text
    said = []
    if window := settings.window:
        spans = "documents shorter than one are joined" if text.packed else "no window spans two documents"
        said.append(
            f"Each document is split into windows of {_count(window)} tokens; the remainder at its end is not used, and "
            f"{spans}. Windows come from as many documents as possible. Every position of a window is "
            "measured, and its next token is known, including that of the last position."
        )
    if text.packed:
        said.append(PACKED.format(**text.packed.to_json()))
    if text.clustered:
        clusters = counted_units(text, text.documents)
        said.append(CLUSTERED.format(field=text.clustered.field, documents=text.clustered.documents, clusters=clusters))
    if (bos := settings.bos) is not None:
        said.append(f"BOS policy “{bos}”: {BOS.get(bos, 'as the run recorded it')}.")
    if settings.chat:
        said.append(
            "Documents are chats, formatted by the tokenizer’s chat template; its special tokens are kept as tokens."
        )
    if skipped := text.skipped:
        said.append(f"{_count(skipped)} row{' has' if skipped == 1 else 's have'} no text.")
    if text.given_up:
        said.append("Reading ended early, because too many consecutive documents were shorter than a window.")
    if (short := text.too_short) is not None:
        said.append(
            f"{_count(short)} document{' was' if short == 1 else 's were'} shorter than one window and left out."
            if short
            else "No document was too short for a window."
        )
    return " ".join(said)


def _there(*entries: tuple[str, Any]) -> Entries:
    return [(name, str(value)) for name, value in entries if value is not None]


def _count(value: int | None) -> str | None:
    """A count with thousands separators, also in millions or billions if large: `6.17 M (6,174,336)`."""
    if value is None:
        return None
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter} ({value:,})"
    return f"{value:,}"


def _with(value: str | None, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _joined(first: str | None, second: str | None, by: str) -> str | None:
    return by.join(part for part in (first, second) if part) or None
