"""Requests of tasks for log-likelihoods, as tokens, and their answers under many routes at once.

What such a task asks of a model is always the same: the log-likelihood of some tokens after others. Requests of one length
share a batch and are never padded, so that a request's answer is the same in any batch (padding changes what models with
positions by length, or routed experts, compute). Work is shared over edits instead: all routes are one plan on each batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from depthscope.engine.baseline import Baseline
from depthscope.engine.execute import first_broken
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import DataError, NumericError
from depthscope.experiments.task_batches import in_halves
from depthscope.models.finite import REMEDY
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.shapes import Hidden

MOST_LOGITS = 1 << 25
"""Logits in memory at once: 128 MiB in float32."""

LogLikelihoods = Float64[np.ndarray, "routes requests"]
Greedy = Bool[np.ndarray, "routes requests"]


@dataclass(frozen=True, slots=True, order=True)
class TokenRequest:
    """A context and its continuation as token ids, the context shortened on the left to what the model can read."""

    length: int
    """Tokens that the model reads: all but the last."""
    scored: int
    """Tokens of the continuation, at the end of `ids`."""
    ids: tuple[int, ...]

    @property
    def alike(self) -> tuple[object, ...]:
        """See `task_batches.Request`."""
        return (self.length,)

    @property
    def cost(self) -> int:
        """See `task_batches.Request`."""
        return self.length


def token_request(context: Sequence[int], continuation: Sequence[int], longest: int) -> TokenRequest:
    """A request for a model that reads `longest` tokens. Raises DataError where it cannot be answered.

    Too long a context loses its first tokens, as in the harness.
    """
    if not context or not 1 <= len(continuation) <= longest:
        raise DataError(
            f"a request of {len(context):,} tokens of context and {len(continuation):,} to score: expected at least one of "
            f"each, and no more to score than the model's context, {longest:,}"
        )
    ids = (*context, *continuation)[-(longest + 1) :]
    return TokenRequest(len(ids) - 1, len(continuation), ids)


class RouteScorer:
    """Log-likelihoods of requests under the unmodified model and a list of routes.

    Raises RouteError for a route that the model cannot run.
    """

    def __init__(self, model: Model, routes: Sequence[Route]) -> None:
        self.model = model
        self.routes = (Route.own(model.depth), *routes)
        self._meter = RouteMeter(model, routes, measures=())

    def score(self, requests: Sequence[TokenRequest]) -> tuple[LogLikelihoods, Greedy]:
        """Log-likelihood in nats of each continuation, and whether all of its tokens are the most likely ones.

        Row 0 is the unmodified model, row i + 1 is `routes[i]`. The requests have one length. Call it under
        `model.measuring()`. What does not fit into memory is done in halves. Raises DataError for ids outside the vocabulary,
        NumericError, with route and request, for NaN or infinity, and MemoryShortError where one request does not fit.
        """
        named = f"a request of {requests[0].length} tokens under {len(self.routes)} routes"
        parts = in_halves(self._score, requests, named)
        logs, greedy = (np.concatenate(found, 1) for found in zip(*parts, strict=True))
        return logs, greedy

    def _score(self, requests: Sequence[TokenRequest]) -> tuple[LogLikelihoods, Greedy]:
        ids = torch.tensor([request.ids for request in requests])
        baseline = Baseline(self.model, ids[:, :-1], ids[:, 1:], keep=self._meter.keep, named=_named)
        start = requests[0].length - max(request.scored for request in requests)
        targets = baseline.targets[:, start:]
        # Positions before a shorter continuation are read with the others and left out of its sum.
        counted = np.array(
            [[place >= targets.shape[1] - one.scored for place in range(targets.shape[1])] for one in requests]
        )
        found = np.empty((len(self.routes), len(requests)))
        greedy = np.empty((len(self.routes), len(requests)), dtype=bool)
        for groups, hidden in self._meter.ends(baseline, start):
            for routes, one in zip(groups, hidden.split(targets.numel()), strict=True):
                logs, best = (part.view(targets.shape).cpu().numpy() for part in self._tokens(one, targets.flatten()))
                if not np.isfinite(logs[counted]).all():
                    self._refuse(self.routes[routes[0]], baseline, np.isfinite(logs) | ~counted)
                for route in routes:
                    found[route] = np.where(counted, logs.astype(np.float64), 0).sum(1)
                    greedy[route] = (best | ~counted).all(1)
        return found, greedy

    def _tokens(
        self, hidden: Hidden, targets: Int64[Tensor, " tokens"]
    ) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
        """log p of each target, in float32 or finer, and whether it is the most likely token."""
        rows = max(1, MOST_LOGITS // self.model.unembedding.vocabulary)
        logs, best = [], []
        for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = self.model.unembedding.logits(some)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logs.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
            best.append(logits.argmax(1) == wanted)
        return torch.cat(logs), torch.cat(best)

    def _refuse(self, route: Route, baseline: Baseline, fine: Bool[np.ndarray, "requests seq"]) -> None:
        row = int(np.flatnonzero(~fine.all(1))[0])
        at = first_broken(self.model, route, baseline.ids[row : row + 1])
        raise NumericError(
            f"NaN or infinity in a log-likelihood on the route {route.name!r} of {self.model.name}, {_named(row)}, {at}. "
            f"{REMEDY}, or leave the edit out"
        )


def _named(row: int) -> str:
    return f"request {row} of the batch"
