"""Linear probes: how well a logistic regression tells two classes from numbers read off a model.

scikit-learn's LogisticRegression with an L2 penalty, 1/2 ‖w‖² + C · Σ loss, on features standardised by mean and standard
deviation of the training examples. Everything that is chosen (weights, the order of features, C, thresholds) is chosen on
training examples; test examples are only counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

STRENGTH = 1.0
"""C of probes on few features; with far more examples than features the penalty hardly matters."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""C of probes on many features: the best of these on a fifth of the training documents."""
EXACT_UP_TO = 256
"""Newton's method up to so many features, which ends at the optimum; L-BFGS for more."""
MOST_ITERATIONS = 2_000


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe: it says yes where (features − mean) / spread · weights + bias > 0."""

    mean: Float64[np.ndarray, " features"]
    spread: Float64[np.ndarray, " features"]
    weights: Float64[np.ndarray, " features"]
    bias: float

    def predict(self, features: Float[np.ndarray, "examples features"]) -> Bool[np.ndarray, " examples"]:
        """The class of each example."""
        return ((features - self.mean) / self.spread) @ self.weights + self.bias > 0


def fit_probe(
    features: Float[np.ndarray, "examples features"], labels: Bool[np.ndarray, " examples"], strength: float = STRENGTH
) -> Probe:
    """A logistic regression with C = `strength`. Raises ValueError where all labels are the same."""
    from sklearn.linear_model import LogisticRegression  # a second to import, and only needed here

    exact = features.astype(np.float64)
    mean, spread = exact.mean(0), exact.std(0)
    spread[spread == 0] = 1.0  # a dead neuron says nothing: its weight stays 0
    solver = "newton-cholesky" if features.shape[1] <= EXACT_UP_TO else "lbfgs"
    regression: Any = LogisticRegression(C=strength, solver=solver, max_iter=MOST_ITERATIONS)
    regression.fit((exact - mean) / spread, labels)
    return Probe(mean, spread, regression.coef_[0].astype(np.float64), float(regression.intercept_[0]))


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled examples for training and test, and the document of each."""

    training: Bool[np.ndarray, " examples"]
    labels: Bool[np.ndarray, " examples"]
    documents: Int64[np.ndarray, " examples"]

    def fit(self, features: Float[np.ndarray, "examples features"], strength: float = STRENGTH) -> Probe:
        """A probe on the training examples."""
        return fit_probe(features[self.training], self.labels[self.training], strength)

    def right(self, predicted: Bool[np.ndarray, " examples"]) -> Bool[np.ndarray, " test"]:
        """Whether each test example's prediction is right."""
        return (predicted == self.labels)[~self.training]

    def trained(self, predicted: Bool[np.ndarray, " examples"]) -> float:
        """Share of training examples whose prediction is right."""
        return float((predicted == self.labels)[self.training].mean())


@dataclass(frozen=True, slots=True)
class SingleProbes:
    """A probe on each feature alone, features as they came."""

    training_accuracy: Float64[np.ndarray, " features"]
    right: Bool[np.ndarray, "features test"]

    @property
    def order(self) -> Int64[np.ndarray, " features"]:
        """Features by training accuracy, the best first; of equals the one that came first."""
        return np.argsort(-self.training_accuracy, kind="stable")

    def part(self, features: Int64[np.ndarray, " some"]) -> "SingleProbes":
        """Those of some features."""
        return SingleProbes(self.training_accuracy[features], self.right[features])


def single_probes(features: Float[np.ndarray, "examples features"], split: Split) -> SingleProbes:
    """Probes on every feature alone."""
    columns = (features[:, [i]] for i in range(features.shape[1]))
    predicted = [split.fit(column).predict(column) for column in columns]
    return SingleProbes(
        np.array([split.trained(one) for one in predicted]), np.stack([split.right(one) for one in predicted])
    )


def probes_together(
    features: Float[np.ndarray, "examples features"], alone: SingleProbes, split: Split, most: int
) -> Bool[np.ndarray, "sizes test"]:
    """Whether the probe on the best k features together is right on each test example, for k = 1 … `most`.

    Which are best is told by `alone`: training examples only.
    """
    best = [features[:, alone.order[:k]] for k in range(1, most + 1)]
    return np.stack([split.right(split.fit(chosen).predict(chosen)) for chosen in best])


def wide_probe(
    features: Float[np.ndarray, "examples features"], split: Split, seed: int, strengths: Sequence[float] = STRENGTHS
) -> Probe:
    """A probe on many features, of the strength that does best on a fifth of the training documents held out of the fit."""
    numbers = np.random.default_rng(seed).permutation(np.unique(split.documents[split.training]))
    held_out = split.training & np.isin(split.documents, numbers[: max(1, len(numbers) // 5)])
    kept = split.training & ~held_out
    best = strengths[0]
    if held_out.any() and len(np.unique(split.labels[kept])) == 2:
        tried = [fit_probe(features[kept], split.labels[kept], strength) for strength in strengths]
        accuracy = [float((probe.predict(features[held_out]) == split.labels[held_out]).mean()) for probe in tried]
        best = strengths[int(np.argmax(accuracy))]
    return split.fit(features, best)


def best_threshold(scores: Float64[np.ndarray, " examples"], labels: Bool[np.ndarray, " examples"]) -> float:
    """The threshold above which saying yes is most often right; of equals the lowest. A score, or −inf (always yes)."""
    order = np.argsort(scores, kind="stable")
    ascending, yes = scores[order], labels[order]
    # right[i]: with the i lowest scores called no and the others yes
    right = np.concatenate([[0], np.cumsum(~yes)]) + yes.sum() - np.concatenate([[0], np.cumsum(yes)])
    thresholds = np.concatenate([[-np.inf], ascending])
    parted = np.concatenate([[True], ascending[:-1] < ascending[1:], [True]])
    return float(thresholds[np.argmax(np.where(parted, right, -1))])
