"""Where does the variance of a mean KL come from, and what would reading less of it save? From recorded KL per token.

    python -m benchmarks.precision.variance FOLDER [FOLDER …]

Per model the median over rows (edits at layers) and, as the row that decides when a run stops, the row with the largest
variance relative to its mean. All variances are relative to the squared mean:

- `documents` and `windows`: between documents, and between windows of a document (one-way components of variance, from
  documents with several recorded windows). Reading one window of a document costs one window and gives documents + windows;
  `whole` is how many times as many windows whole documents take for the same standard error;
- `tokens`: of how many independent tokens a window's mean has the variance, from the variance of tokens within windows;
- `share`: the share of positions to read out that gives the smallest variance for its time if the readout is half or four
  fifths of the work, with what is then saved in time;
- `R²`: of what the unmodified model says of a window, for the window's KL, least squares adjusted for the number of controls.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from benchmarks.precision.record import CONTROLS, Recorded

READOUT = (0.5, 0.8)
"""Share of the work that the readout is: in small models, and in Gemma's with 262,144 tokens of vocabulary."""


def components(
    means: Float64[np.ndarray, "windows rows"], document: np.ndarray
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """Variance between documents and between windows of a document, relative to the squared mean; unequal group sizes."""
    numbers, place, counts = np.unique(document, return_inverse=True, return_counts=True)
    groups = np.stack([np.bincount(place, means[:, row]) / counts for row in range(means.shape[1])], 1)
    total, windows = len(means), len(means) - len(numbers)
    within = ((means - groups[place]) ** 2).sum(0) / windows
    between = (counts[:, None] * (groups - means.mean(0)) ** 2).sum(0) / (len(numbers) - 1)
    size = (total - (counts**2).sum() / total) / (len(numbers) - 1)
    return np.maximum((between - within) / size, 0) / means.mean(0) ** 2, within / means.mean(0) ** 2


def explained(means: Float64[np.ndarray, "windows rows"], controls: np.ndarray) -> Float64[np.ndarray, " rows"]:
    """Adjusted R² of a least squares fit of each row by the controls."""
    count, used = controls.shape
    design = np.hstack([np.ones((count, 1)), controls])
    left = means - design @ np.linalg.lstsq(design, means, rcond=None)[0]
    return 1 - (left**2).sum(0) / (count - used - 1) / means.var(0, ddof=1)


def best_share(independent: float, rest: float, readout: float) -> tuple[float, float]:
    """The share of positions with the least variance × time, and the time saved; variance = rest + independent / share."""
    shares = np.linspace(0.02, 1, 99)
    product = (rest + independent / shares) * (1 - readout + readout * shares)
    best = int(np.argmin(product))
    return float(shares[best]), float(1 - product[best] / product[-1])


def report(folder: Path) -> None:
    """Print the table of a model."""
    recorded = Recorded.read(folder)
    length = recorded.kl.shape[2]
    kl = recorded.kl.astype(np.float64)
    means = kl.mean(2)
    squared = means.mean(0) ** 2
    documents, windows = components(means, recorded.document)
    inside = kl.var(2, ddof=1).mean(0) / squared
    effective = inside / np.maximum(means.var(0, ddof=1) / squared, 1e-12)
    controls = recorded.controls.astype(np.float64).mean(2)
    print(f"\n{folder.name}: {len(means)} windows of {length} tokens, {len(np.unique(recorded.document))} documents")
    print(f"windows per document in the text {recorded.windows_of.mean():.1f}")
    size = recorded.windows_of.mean()
    whole = (documents + windows / size) * size / (documents + windows)
    fits = explained(means, controls)
    widest = int(np.argmax(documents + windows))
    for name, pick in (("median row", np.median), (recorded.edits[widest], lambda column: column[widest])):
        independent, rest = (
            float(pick(inside)) / length,
            float(pick(documents + windows)) - float(pick(inside)) / length,
        )
        said = [f"{name}: documents {pick(documents):.4f}, windows {pick(windows):.4f}, whole {pick(whole):.2f} times"]
        said.append(f"a window is worth {pick(effective):.0f} independent tokens")
        for readout in READOUT:
            share, saved = best_share(independent, max(rest, 0.0), readout)
            said.append(f"readout {readout:.0%} of the work: best share {share:.2f}, saves {saved:.0%}")
        said.append(f"R² of all controls {pick(fits):.2f}")
        print("; ".join(said))
    alone = [float(np.median(explained(means, controls[:, [i]]))) for i in range(len(CONTROLS))]
    print("R² of one control, median row: " + ", ".join(f"{a} {b:.2f}" for a, b in zip(CONTROLS, alone, strict=True)))


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description="Components of the variance of recorded KL.")
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        report(folder)


if __name__ == "__main__":
    main()
