"""Record the KL of every token under every edit of a sweep, for windows drawn at random from each document.

    python -m benchmarks.precision.record MODEL OUT [--data bookshelf] [--window N] [--edits …] [--documents N] [--each 2]
                                          [--dtype auto]

The first random window of every document is read first, then the second of each. OUT gets one file per window, so a run that
is stopped keeps what it has and goes on later. Recorded besides: what the unmodified model says of the same tokens, as
candidates for control variates (its entropy and loss, the KL of the logit lens at three depths, and how far each block turns
the residual stream).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch.nn.functional import cosine_similarity

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare
from depthscope.experiments.sweep import Sweep, possible_edits
from depthscope.models.load import load
from depthscope.models.model import Model

CONTROLS = ("entropy", "loss", "lens 1/4", "lens 1/2", "lens 3/4", "block turn")


@dataclass(frozen=True, slots=True)
class Recorded:
    """Values of recorded windows, a document's windows together."""

    edits: list[str]
    """Such as `drop(3)`."""
    document: Int64[np.ndarray, " windows"]
    windows_of: Int64[np.ndarray, " windows"]
    """How many windows the text has of the window's document."""
    kl: Float32[np.ndarray, "windows edits length"]
    controls: Float32[np.ndarray, "windows controls length"]

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Everything in a folder. Raises FileNotFoundError if there is nothing."""
        parts = [np.load(path) for path in sorted(folder.glob("*.npz"))]
        if not parts:
            raise FileNotFoundError(f"{folder} has no recorded windows: run benchmarks.precision.record first")
        order = np.argsort([int(part["document"]) for part in parts], kind="stable")
        columns = {
            name: np.stack([parts[i][name] for i in order]) for name in ("document", "windows_of", "kl", "controls")
        }
        return cls(edits=parts[0]["edits"].tolist(), **columns)


def in_turns(windows: Windows, documents: int | None, each: int) -> Int64[np.ndarray, " rows"]:
    """Row numbers: a random window of every document, then another one of each, documents in random order."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.unique(windows.document))[:documents]
    drawn = [rng.permutation(np.flatnonzero(windows.document == number)) for number in numbers]
    return np.array([rows[turn] for turn in range(each) for rows in drawn if turn < len(rows)])


def controls(model: Model, baseline: Baseline) -> Float32[np.ndarray, "controls tokens"]:
    """The CONTROLS of one window."""
    depths = [round(model.depth * share) for share in (0.25, 0.5, 0.75)]
    hidden = [model.unembedding.hidden(baseline.residuals[depth]) for depth in depths]
    lens = [compare(model.unembedding, baseline.reference, one, baseline.flat_targets).kl for one in hidden]
    streams = torch.stack([stream.flatten(0, 1).float() for stream in baseline.residuals])
    turn = 1 - cosine_similarity(streams[1:], streams[:-1], dim=-1).mean(0)
    return torch.stack([baseline.measured.entropy, baseline.measured.loss, *lens, turn]).float().numpy()


def record(model: Model, windows: Windows, rows: Int64[np.ndarray, " rows"], sweep: Sweep, out: Path) -> None:
    """Record these windows, except those that are there."""
    counts = dict(windows.per_document())
    edits = [f"{edit.kind}({edit.layer})" for edit in sweep.edits]
    for turn, row in enumerate(rows.tolist()):
        path = out / f"{turn:05}.npz"
        if path.exists():
            continue
        window = windows.part(row, row + 1)
        with model.measuring():
            baseline = Baseline(model, *window.batch(), keep=sweep.keep, named=window.called)
            kl = sweep.values(baseline)[[measure.name for measure in sweep.measures].index("kl"), 1:]
            own = controls(model, baseline)
        document = int(window.document[0])
        found: dict[str, Any] = {"kl": kl, "controls": own, "edits": np.array(edits)}
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, document=document, windows_of=counts[document], **found)
        partial.rename(path)


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description="Record the KL of every token of a sweep.")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="bookshelf")
    parser.add_argument("--window", type=int)
    parser.add_argument("--edits")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--each", type=int, default=2, help="windows of each document")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load(options.model, dtype=options.dtype)
    windows = make_windows(Corpus(source=options.data, tokens=1_000_000), model, length=options.window)
    kinds, _ = possible_edits(options.edits and options.edits.split(","), model)
    sweep = Sweep(model, windows.length, kinds)
    record(model, windows, in_turns(windows, options.documents, options.each), sweep, options.out)


if __name__ == "__main__":
    main()
