"""What a probe must beat: labels predicted from the last tokens alone, and control tasks (Hewitt and Liang 2019).

A probe on a context's last token may do no more than recognise that token. Two references show how far that goes. The n-gram
baseline reads no activation: it predicts the label that most training examples with the same last tokens have. A control task
gives each last token a random label: it can only be learnt by recognising tokens, so that accuracy on it is what the probe
owes to doing so, and the accuracy above that is its selectivity ("Designing and Interpreting Probes with Control Tasks", EMNLP
2019).
"""

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64


def ngram_labels(
    tokens: Int[np.ndarray, "examples order"],
    labels: Bool[np.ndarray, " examples"],
    training: Bool[np.ndarray, " examples"],
) -> Bool[np.ndarray, " examples"]:
    """For each example the label of most training examples with the same last tokens; `tokens` has the last one last.

    Where no training example has the same `order` last tokens, or as many have one label as the other, one token less is
    compared; with none left the label is that of most training examples, in a tie no.
    """
    predicted = np.full(len(tokens), bool(labels[training].mean() > 0.5))
    for order in range(1, tokens.shape[1] + 1):
        _, kind = np.unique(tokens[:, -order:], axis=0, return_inverse=True)
        kind = kind.ravel()
        votes = np.zeros(kind.max() + 1, dtype=np.int64)
        np.add.at(votes, kind[training], np.where(labels[training], 1, -1))
        predicted = np.where(votes[kind] == 0, predicted, votes[kind] > 0)
    return predicted


def control_labels(
    tokens: Int[np.ndarray, " examples"], share: float, generator: np.random.Generator
) -> Bool[np.ndarray, " examples"]:
    """A random label for each distinct token, the same for all its examples; about `share` of the examples get yes.

    Tokens are labelled yes in random order until there are enough examples. The last one is if that comes closer to `share`, so
    that the number of yes is off by at most half the examples of one token.
    """
    _, kind, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    order: Int64[np.ndarray, " kinds"] = generator.permutation(len(counts))
    before = np.cumsum(counts[order]) - counts[order]
    yes = np.zeros(len(counts), dtype=bool)
    yes[order] = before + counts[order] / 2 <= share * len(tokens)
    return yes[kind.ravel()]


def control_classes(
    tokens: Int[np.ndarray, " examples"], shares: Float64[np.ndarray, " classes"], generator: np.random.Generator
) -> Int64[np.ndarray, " examples"]:
    """A random class for each distinct token, the same for all its examples; about `shares` of the examples get each class.

    Tokens in random order fill the classes one after the other; a token on the border of two goes to the one that has its
    middle. Hewitt and Liang draw each token's class independently from `shares`, which holds them only on average: with few
    distinct tokens a control task could be much easier or harder than the task.
    """
    _, kind, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    order = generator.permutation(len(counts))
    middle = (np.cumsum(counts[order]) - counts[order] / 2) / len(tokens)
    class_of = np.empty(len(counts), dtype=np.int64)
    class_of[order] = np.minimum(np.searchsorted(np.cumsum(shares), middle), len(shares) - 1)
    return class_of[kind.ravel()]


def classes_by_token(
    tokens: Int[np.ndarray, " examples"],
    labels: Int64[np.ndarray, " examples"],
    training: Bool[np.ndarray, " examples"],
) -> Int64[np.ndarray, " examples"]:
    """For each example the class that most training examples with the same token have.

    Of equally frequent classes the lowest; for a token that is not among the training examples their most frequent class.
    """
    _, kind = np.unique(tokens, return_inverse=True)
    kind, classes = kind.ravel(), int(labels.max()) + 1
    votes = np.zeros((kind.max() + 1, classes), dtype=np.int64)
    np.add.at(votes, (kind[training], labels[training]), 1)
    known = votes.sum(1) > 0
    return np.where(known, votes.argmax(1), votes.sum(0).argmax())[kind]
