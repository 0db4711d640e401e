"""The page's facts about model and text, and its account of how the run was measured, from the manifest.

A manifest of another version may lack an entry: what is not there is not said.
"""

from typing import Any

from depthscope.report.measured import Measured, spoken
from depthscope.schema.sweep import ENTROPY, LOSS

Entries = list[tuple[str, str]]
LAYOUTS = {"sequential": "attention, then MLP", "parallel": "attention and MLP in parallel"}
BOS = {
    "none": "no BOS token is put before a window",
    "window": "each window begins with the tokenizer’s BOS token",
}
ESTIMATOR = (
    "Tokens of one document are not independent, so the unit of sampling is the document. With S the sum of a quantity "
    "over the n tokens of a document, the mean is the ratio estimator ΣS / Σn over documents, and its variance is the "
    "linearised one, D / (D − 1) · Σ(S − mean · n)² / (Σn)² for D documents (Cochran 1977, section 6.3; the cluster-robust "
    "variance of Liang and Zeger 1986 for a mean). Intervals are 95% ones by Student's t with D − 1 degrees of freedom, "
    "cut to the range the quantity can have. They are for one layer at a time, not for all layers together. "
    "Those of CKA are from a jackknife over documents, those of the stages’ boundaries from resampling documents. "
    "“Too close to call” says that two of them overlap."
)
PACKED = (
    "Short documents are joined whole, {separator} after each, until they fill a window; what then is left of the last is not "
    "used. {documents:,} documents were used; {windows_with_boundary:,} windows hold several, and {positions_after_boundary:,} "
    "positions follow another document in their window, which attention sees. What is measured there depends on it, so such a "
    "window, a pack, counts as one document wherever documents are counted or resampled."
)
REPLAY = (
    "Each edit changes the order in which the residual stream visits the model’s own blocks; nothing is retrained. "
    "p is the next-token distribution of the model as it is, q that of the edited one, at the same position of the same text. "
    "Logarithms are natural. What each other number is stands beneath its figures."
)


def facts(manifest: dict[str, Any], measured: Measured | None) -> list[tuple[str, Entries]]:
    """What was taken apart and on what text: (heading, entries) each."""
    model, settings, text = (manifest.get(key, {}) for key in ("model", "settings", "text"))
    tied = {True: "tied to the embedding", False: "a matrix of its own"}.get(model.get("tied"))
    units = text.get("documents", measured.documents if measured else None)
    packed = text.get("packed") or {}
    own = [
        (f"Own {metric.title.lower()} per token", spoken(value, metric))
        for metric in (LOSS, ENTROPY)
        if measured and (value := measured.baseline(metric))
    ]
    return [
        (
            "Model",
            _there(
                ("Layers", model.get("layers")),
                ("d_model", model.get("d_model")),
                ("Parameters", _count(model.get("parameters"))),
                ("Layout", LAYOUTS.get(model.get("layout"), model.get("layout"))),
                ("Norm", model.get("norm")),
                ("Unembedding", tied),
                ("Vocabulary", _count(model.get("vocabulary"))),
                ("Context", _with(_count(model.get("context")), "tokens")),
                ("Family", model.get("family")),
                ("Computed in", _joined(settings.get("dtype"), settings.get("device"), " on ")),
            ),
        ),
        (
            "Text",
            _there(
                ("Source", settings.get("data")),
                ("Tokens", _count(settings.get("tokens"))),
                ("Documents", _count(packed.get("documents", units))),
                ("Independent units", _count(units) if packed else None),
                ("Windows of", _with(_count(settings.get("window")), "tokens")),
            )
            + own,
        ),
    ]


def method(manifest: dict[str, Any]) -> dict[str, Any]:
    """How it was measured: text, estimator, and what tells this run from another."""
    settings = manifest.get("settings", {})
    return {
        "replay": REPLAY,
        "text": _text(manifest),
        "estimator": ESTIMATOR,
        "identity": _there(
            ("Model", settings.get("model")),
            ("Revision", settings.get("revision")),
            ("Weights, SHA-256", settings.get("weights")),
            ("Tokens, SHA-256", settings.get("token_hash")),
            ("Attention backend", settings.get("attention_backend")),
        ),
    }


def _text(manifest: dict[str, Any]) -> str:
    """How the text was cut, in sentences."""
    settings, text = manifest.get("settings", {}), manifest.get("text", {})
    said = []
    packed = text.get("packed")
    if window := settings.get("window"):
        spans = "documents shorter than one are joined" if packed else "no window spans two documents"
        said.append(
            f"Each document is cut into windows of {_count(window)} tokens; what is left at its end is not used, and "
            f"{spans}. Windows come from as many documents as possible. Every position of a window is "
            "measured, and its next token is known, the last one’s too."
        )
    if packed:
        said.append(PACKED.format(**packed))
    if (bos := settings.get("bos")) is not None:
        said.append(f"BOS policy “{bos}”: {BOS.get(bos, 'as the run recorded it')}.")
    if settings.get("chat"):
        said.append("Documents are chats, written by the tokenizer’s chat template, whose special tokens are tokens.")
    if skipped := text.get("skipped"):
        said.append(f"{_count(skipped)} row{' has' if skipped == 1 else 's have'} no text.")
    if text.get("given_up"):
        said.append("Reading ended early, because one document after the other was shorter than a window.")
    if (short := text.get("too_short")) is not None:
        said.append(
            f"{_count(short)} document{' was' if short == 1 else 's were'} shorter than one window and left out."
            if short
            else "No document was too short for a window."
        )
    return " ".join(said)


def _there(*entries: tuple[str, Any]) -> Entries:
    return [(name, str(value)) for name, value in entries if value is not None]


def _count(value: int | None) -> str | None:
    """A count with thousands set apart, and in millions or billions where it is large: `6.17 M (6,174,336)`."""
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
