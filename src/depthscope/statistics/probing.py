"""Linear probes: how well a logistic regression separates two classes by values read from a model.

scikit-learn's LogisticRegression with an L2 penalty, 1/2 ‖w‖² + C · Σ loss, on features standardised by mean and standard
deviation of the training examples. Everything that is fitted or selected (weights, the order of features, C, thresholds)
uses only training examples; test examples are only evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

STRENGTH = 1.0
"""C of probes on few features; with far more examples than features the penalty hardly matters."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for C of probes on many features: the best on a fifth of the training documents is used."""
EXACT_UP_TO = 256
"""Newton's method, which ends at the optimum, up to this many features; L-BFGS for more."""
MOST_ITERATIONS = 2_000


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe: it predicts the positive class where (features − mean) / spread · weights + bias > 0."""

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
    """A logistic regression with C = `strength`. Raises ValueError if all labels are the same."""
    from sklearn import config_context  # the import takes a second and is only needed here
    from sklearn.linear_model import LogisticRegression

    exact = features.astype(np.float64)
    mean, spread = exact.mean(0), exact.std(0)
    spread[spread == 0] = 1.0  # a constant feature becomes 0, and so does its weight
    solver = "newton-cholesky" if features.shape[1] <= EXACT_UP_TO else "lbfgs"
    regression: Any = LogisticRegression(C=strength, solver=solver, max_iter=MOST_ITERATIONS)
    with config_context(skip_parameter_validation=True):  # a study fits a thousand small probes
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
        """Whether the prediction is correct, for each test example."""
        return (predicted == self.labels)[~self.training]

    def trained(self, predicted: Bool[np.ndarray, " examples"]) -> float:
        """Share of training examples whose prediction is correct."""
        return float((predicted == self.labels)[self.training].mean())


@dataclass(frozen=True, slots=True)
class SingleProbes:
    """A probe on each feature alone, in the given order."""

    training_accuracy: Float64[np.ndarray, " features"]
    right: Bool[np.ndarray, "features test"]

    @property
    def order(self) -> Int64[np.ndarray, " features"]:
        """Features by training accuracy, the best first; ties in the given order."""
        return np.argsort(-self.training_accuracy, kind="stable")

    def part(self, features: Int64[np.ndarray, " some"]) -> "SingleProbes":
        """The probes of some of the features."""
        return SingleProbes(self.training_accuracy[features], self.right[features])


def single_probes(features: Float[np.ndarray, "examples features"], split: Split) -> SingleProbes:
    """Probes on every feature alone."""
    columns = (features[:, [i]] for i in range(features.shape[1]))
    predicted = [split.fit(column).predict(column) for column in columns]
    return SingleProbes(
        np.array([split.trained(one) for one in predicted]), np.stack([split.right(one) for one in predicted])
    )


def probes_together(
    features: Float[np.ndarray, "examples features"], alone: SingleProbes, split: Split, sizes: Sequence[int]
) -> Bool[np.ndarray, "sizes test"]:
    """Whether the probe on the best k features together is correct on each test example, for each k of `sizes`.

    Features are ranked by `alone`, that is, on training examples only.
    """
    best = [features[:, alone.order[:k]] for k in sizes]
    return np.stack([split.right(split.fit(chosen).predict(chosen)) for chosen in best])


def wide_probe(
    features: Float[np.ndarray, "examples features"], split: Split, seed: int, strengths: Sequence[float] = STRENGTHS
) -> Probe:
    """A probe on many features, with the strength that is best on a held-out fifth of the training documents."""
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
    """The threshold above which predicting yes is most often correct; among ties the lowest. A score, or −inf (always yes)."""
    order = np.argsort(scores, kind="stable")
    ascending, yes = scores[order], labels[order]
    # right[i]: with no for the i lowest scores and yes for the others
    right = np.concatenate([[0], np.cumsum(~yes)]) + yes.sum() - np.concatenate([[0], np.cumsum(yes)])
    thresholds = np.concatenate([[-np.inf], ascending])
    # Equal scores cannot be on both sides of a threshold.
    parted = np.concatenate([[True], ascending[:-1] < ascending[1:], [True]])
    return float(thresholds[np.argmax(np.where(parted, right, -1))])
