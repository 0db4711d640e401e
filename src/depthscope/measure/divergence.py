"""Per-token measures of one next-token distribution against another, without ever holding more than a slice of logits.

For logits z_q = W h_q of the edited model and z_p = W h_p of the model itself, with p and q their softmax:

    KL(p‖q) = Σ p (log p − log q) = Σ p z_p − Σ p z_q + logsumexp(z_q) − logsumexp(z_p)
            = (h_p − h_q) · (Wᵀp) + logsumexp(z_q) − logsumexp(z_p)

so that one pass over slices of the vocabulary gives an edited route everything (running maximum, sum of exp, sum of z·exp,
argmax), and the cross term is a dot product with Wᵀp, computed once for the baseline. Where the model bends its logits (a
soft cap) the cross term is taken slice by slice instead. Slices are multiplied in the model's dtype and reduced in float32;
sums over slices and the final differences are float64, because KL is a small difference of large numbers. The log
normaliser of a route equal to the baseline is the same number, so its KL is exactly 0.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from depthscope.models.head import Head
from depthscope.shapes import Hidden, LogitSlice, PerToken, PerTokenExact, PerTokenFlag, PerTokenIndex

SLICE = 2048
"""Vocabulary entries in one slice. Fixed, not sized to the tokens, so that a token's sums are added up in the same order
whatever it is computed together with."""
ROWS = 256
"""Tokens whose slices are worked on at once: 2 MiB of float32 logits, so that the passes over them find them in the cache."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What one pass over the vocabulary tells of next-token distributions, per token. Information in nats."""

    hidden: Hidden
    log_normaliser: PerTokenExact
    entropy: PerTokenExact
    top: PerTokenIndex
    """The most likely token; of equals the one with the lowest id."""

    def split(self) -> list["Distribution"]:
        """The same in pieces of at most ROWS tokens."""
        columns = (self.hidden, self.log_normaliser, self.entropy, self.top)
        return [Distribution(*rows) for rows in zip(*(column.split(ROWS) for column in columns), strict=True)]


@dataclass(frozen=True, slots=True)
class Reference:
    """The model's own distributions p, with what the cross term of KL needs."""

    own: Distribution
    mean_weight: Tensor | None
    """Wᵀp, shaped [tokens, d_model] in float64 (logit scale included); None where logits are not linear in `hidden`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """M1-M4 of the paper, per token: KL(p‖q), top-1 agreement, H(q) and −log q(next token), in nats."""

    kl: PerToken
    agreement: PerTokenFlag
    entropy: PerToken
    loss: PerToken


class _Accumulator:
    """Running maximum, sum of exp, sum of (z − max)·exp and argmax over slices of logits."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        self.maximum = torch.full((tokens,), -torch.inf, device=device)
        self.total = torch.zeros(tokens, dtype=torch.float64, device=device)
        self.weighted = torch.zeros(tokens, dtype=torch.float64, device=device)
        self.top = torch.zeros(tokens, dtype=torch.int64, device=device)

    def add(self, logits: LogitSlice, start: int) -> None:
        """Take in a slice; `logits` is overwritten."""
        highest, place = logits.max(-1)
        self.top = torch.where(highest > self.maximum, place + start, self.top)
        maximum = torch.maximum(highest, self.maximum)
        # exp(−inf) = 0 makes the first slice need no special case, but 0 · −inf would be NaN.
        shift = (self.maximum - maximum).double()
        scale, offset = shift.exp(), torch.where(shift.isinf(), 0.0, shift)
        self.weighted = (self.weighted + self.total * offset) * scale
        self.total = self.total * scale
        below = logits.sub_(maximum[:, None])
        weights = below.exp()
        self.total += weights.sum(-1)
        self.weighted += weights.mul_(below).sum(-1)
        self.maximum = maximum

    def finish(self, hidden: Hidden) -> Distribution:
        log_total = self.total.log()
        return Distribution(hidden, self.maximum.double() + log_total, log_total - self.weighted / self.total, self.top)


def _slices(head: Head, width: int) -> list[tuple[int, int]]:
    return [(start, min(start + width, head.vocabulary)) for start in range(0, head.vocabulary, width)]


def distribution(head: Head, hidden: Hidden, slice_width: int = SLICE) -> Distribution:
    """Next-token distributions of `hidden` in one pass over the vocabulary."""
    return _joined([_distribution(head, rows, slice_width) for rows in hidden.split(ROWS)])


def _distribution(head: Head, hidden: Hidden, slice_width: int) -> Distribution:
    accumulator = _Accumulator(hidden.shape[0], hidden.device)
    for start, stop in _slices(head, slice_width):
        accumulator.add(head.slice(hidden, start, stop), start)
    return accumulator.finish(hidden)


def reference(head: Head, hidden: Hidden, slice_width: int = SLICE) -> Reference:
    """The baseline's distributions and Wᵀp, in two passes."""
    own = distribution(head, hidden, slice_width)
    if not head.map.linear:
        return Reference(own, None)
    means = [_mean_weight(head, rows, slice_width) for rows in own.split()]
    return Reference(own, head.map(torch.cat(means)))


def _mean_weight(head: Head, own: Distribution, slice_width: int) -> Tensor:
    mean = torch.zeros(own.hidden.shape, dtype=torch.float64, device=own.hidden.device)
    for start, stop in _slices(head, slice_width):
        p = _probabilities(own, head.slice(own.hidden, start, stop))
        mean += (p.to(head.weight.dtype) @ head.weight[start:stop]).double()
    return mean


def compare(head: Head, base: Reference, hidden: Hidden, targets: Tensor, slice_width: int = SLICE) -> Measured:
    """Measure edited distributions q against the baseline p, token by token.

    `hidden` is what the edited route gives the unembedding, `targets` the next tokens, shaped [tokens].
    """
    own = base.own
    if base.mean_weight is None:
        parts = [
            _distribution_and_cross(head, rows, own_rows, slice_width)
            for rows, own_rows in zip(hidden.split(ROWS), own.split(), strict=True)
        ]
        q, cross = _joined([part for part, _ in parts]), torch.cat([cross for _, cross in parts])
    else:
        q = distribution(head, hidden, slice_width)
        cross = ((own.hidden.double() - hidden.double()) * base.mean_weight).sum(-1)
    divergence = cross + (q.log_normaliser - own.log_normaliser)
    return Measured(
        kl=divergence.clamp_(min=0).float(),  # rounding can leave −1e-8 where p and q are equal
        agreement=q.top == own.top,
        entropy=q.entropy.clamp(min=0).float(),
        loss=(q.log_normaliser - head.next_token_logits(hidden, targets).double()).float(),
    )


def _distribution_and_cross(
    head: Head, hidden: Hidden, own: Distribution, slice_width: int
) -> tuple[Distribution, PerTokenExact]:
    """The distributions q and Σ p (z_p − z_q), where logits are not linear in what the unembedding reads."""
    accumulator = _Accumulator(hidden.shape[0], hidden.device)
    cross = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    for start, stop in _slices(head, slice_width):
        logits, own_logits = head.slice(hidden, start, stop), head.slice(own.hidden, start, stop)
        cross += (_probabilities(own, own_logits) * (own_logits - logits)).sum(-1)
        accumulator.add(logits, start)
    return accumulator.finish(hidden), cross


def _joined(parts: list[Distribution]) -> Distribution:
    if len(parts) == 1:
        return parts[0]
    columns = zip(*((part.hidden, part.log_normaliser, part.entropy, part.top) for part in parts), strict=True)
    return Distribution(*(torch.cat(column) for column in columns))


def measure_baseline(head: Head, base: Reference, targets: Tensor) -> Measured:
    """The baseline measured against itself: KL 0, agreement 1, its own entropy and loss."""
    own = base.own
    zeros = partial(torch.zeros, own.top.shape[0], device=own.top.device)
    return Measured(
        kl=zeros(),
        agreement=torch.ones_like(own.top, dtype=torch.bool),
        entropy=own.entropy.clamp(min=0).float(),
        loss=(own.log_normaliser - head.next_token_logits(own.hidden, targets).double()).float(),
    )


def _probabilities(own: Distribution, logits: LogitSlice) -> LogitSlice:
    """exp(logits − log normaliser), the normaliser taken off in two float32 parts so that none of its digits are lost."""
    high = own.log_normaliser.float()
    low = (own.log_normaliser - high.double()).float()
    return ((logits - high[:, None]) - low[:, None]).exp()
