"""Measures that are functions of whole next-token distributions, computed on a few rows at a time.

The built-in measures need only sums over the vocabulary, so `divergence` never holds more than a slice of logits. A user's
measure is a function of all of p and q: it is called with a few rows at a time, so that no array exceeds NUMBERS, whatever
the number of tokens and the size of the vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.engine.divergence import TokenMeasures
from depthscope.errors import DepthscopeError
from depthscope.models.unembedding import Unembedding
from depthscope.schema.measures import Measure
from depthscope.shapes import Hidden, Logits, PerToken, PerTokenIndex

NUMBERS = 2**23
"""The most log-probabilities of one distribution in memory at once: 32 MiB in float32."""


def apply_functions(
    head: Unembedding,
    measures: Sequence[Measure],
    own: Hidden,
    hidden: Float[Tensor, "edited d_model"],
    next_token: PerTokenIndex,
) -> TokenMeasures:
    """The measures with a function, for edited distributions q against the unmodified model's p, token by token.

    `own` is what the unembedding reads in the unmodified model, `hidden` what it reads from one or several edited routes: the
    same tokens, one or more times in sequence. Raises DepthscopeError if a function does not return one number per row.
    """
    found = {measure.name: torch.empty(len(hidden), device=hidden.device) for measure in measures}
    rows = max(1, NUMBERS // head.vocabulary)
    for start in range(0, len(own), rows):
        stop = min(start + rows, len(own))
        p = _log_probabilities(head, own[start:stop])
        for copy in range(0, len(hidden), len(own)):  # compute p once for all routes that end together
            q = _log_probabilities(head, hidden[copy + start : copy + stop])
            for measure in measures:
                found[measure.name][copy + start : copy + stop] = _called(measure, p, q, next_token[start:stop])
    return TokenMeasures(found)


def _log_probabilities(head: Unembedding, hidden: Hidden) -> Logits:
    return head.logits(hidden).float().log_softmax(-1)


def _called(measure: Measure, p: Logits, q: Logits, next_token: PerTokenIndex) -> PerToken:
    assert measure.per_token is not None
    values = measure.per_token(p, q, next_token)
    if not isinstance(values, Tensor) or values.shape != next_token.shape or values.is_complex():
        found = f"a tensor shaped {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise DepthscopeError(
            f"measure {measure.name} returned {found}: expected one number per token, a tensor shaped {list(next_token.shape)}"
        )
    return values.float()
