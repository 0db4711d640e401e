"""Linear probes for two or more classes: multinomial logistic regression, and the depth where a curve is highest.

scikit-learn's LogisticRegression with an L2 penalty, 1/2 ‖W‖² + C · Σ loss, on features standardised by mean and standard
deviation of the training examples. Probes of one property at many depths are compared, so C is the same for all of them: chosen
for each depth, it would add noise to the curve and multiply its cost.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from depthscope.statistics.estimate import LEVEL
from depthscope.statistics.simultaneous import FEWEST

STRENGTH = 0.01
"""C."""
MOST_ITERATIONS = 1_000
REPLICATES = 2_000


@dataclass(frozen=True, slots=True)
class ClassSplit:
    """Examples with their classes, for training and test."""

    labels: Int64[np.ndarray, " examples"]
    training: Bool[np.ndarray, " examples"]

    def right(self, predicted: Int64[np.ndarray, " examples"]) -> Bool[np.ndarray, " test"]:
        """Whether the prediction is correct, for each test example."""
        return (predicted == self.labels)[~self.training]

    def shares(self) -> Float64[np.ndarray, " classes"]:
        """The share of each class among all examples."""
        return np.bincount(self.labels) / len(self.labels)

    def probe_right(
        self, features: Float[np.ndarray, "examples features"], strength: float = STRENGTH
    ) -> Bool[np.ndarray, " test"]:
        """Whether a probe fitted on the training examples is correct, for each test example.

        If all training examples have one class, that class is predicted.
        """
        from sklearn.linear_model import LogisticRegression  # the import takes a second and is only needed here

        labels = self.labels[self.training]
        if labels.min() == labels.max():
            return self.labels[~self.training] == labels[0]
        exact = features.astype(np.float64)
        mean, spread = exact[self.training].mean(0), exact[self.training].std(0)
        spread[spread == 0] = 1.0  # a constant feature becomes 0, and so does its weight
        standard = (exact - mean) / spread
        regression: Any = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
        regression.fit(standard[self.training], labels)
        return regression.predict(standard[~self.training]) == self.labels[~self.training]


def highest_interval(
    sums: Float64[np.ndarray, "documents places"],
    tokens: Float64[np.ndarray, " documents"],
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[int, int] | None:
    """Between which places the highest of several means over tokens lies: percentiles of its place over bootstrap replicates.

    In each replicate documents are drawn with replacement, the same ones for all places, and the first of the highest means
    counts. None from fewer than FEWEST documents: a replicate would often draw nearly the same document throughout.
    """
    documents = len(tokens)
    if documents < FEWEST:
        return None
    drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
    place = (drawn @ sums / (drawn @ tokens)[:, None]).argmax(1)
    low, high = np.quantile(place, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return int(low), int(high)
