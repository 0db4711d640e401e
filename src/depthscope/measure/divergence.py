"""Per-token measures of one next-token distribution against another, without ever holding more than a slice of logits.

For logits z_q = W h_q of the edited model and z_p = W h_p of the model itself, with p and q their softmax:

    KL(p‖q) = Σ p (log p − log q) = Σ p z_p − Σ p z_q + logsumexp(z_q) − logsumexp(z_p)
            = (h_p − h_q) · (Wᵀp) + logsumexp(z_q) − logsumexp(z_p)

so that one pass over slices of the vocabulary gives an edited route everything (maximum, sum of exp, sum of z·exp: see
`slice_sums`), and the cross term is a dot product with Wᵀp, computed once for the baseline. Where the model bends its logits (a
soft cap) the cross term is taken slice by slice instead. Slices are multiplied in the model's dtype and reduced in float32;
sums over slices and the final differences are float64, because KL is a small difference of large numbers. The log
normaliser of a route equal to the baseline is the same number, so its KL is exactly 0.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from depthscope.measure.sizes import sizes_for
from depthscope.measure.slice_sums import SliceSums, plain
from depthscope.models.head import Head
from depthscope.shapes import Hidden, LogitSlice, PerToken, PerTokenExact, PerTokenFlag, PerTokenIndex

Slices = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What one pass over the vocabulary tells of next-token distributions, per token. Information in nats."""

    hidden: Hidden
    log_normaliser: PerTokenExact
    entropy: PerTokenExact
    top: PerTokenIndex
    """The most likely token; of equals the one with the lowest id."""

    def split(self, tokens: int) -> list["Distribution"]:
        """The same in pieces of at most so many tokens."""
        return [Distribution(*rows) for rows in zip(*(column.split(tokens) for column in self.columns()), strict=True)]

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four of them."""
        return self.hidden, self.log_normaliser, self.entropy, self.top


@dataclass(frozen=True, slots=True)
class Reference:
    """The model's own distributions p, with what the cross term of KL needs."""

    own: Distribution
    mean_weight: Tensor | None
    """Wᵀp, shaped [tokens, d_model] in float64 (logit scale included); None where logits are not linear in `hidden`."""
    slice_width: int
    sums: SliceSums

    def rows(self, start: int, stop: int) -> "Reference":
        """Tokens `start … stop-1` of it."""
        own, mean = self.own, self.mean_weight
        part = Distribution(*(column[start:stop] for column in own.columns()))
        return replace(self, own=part, mean_weight=None if mean is None else mean[start:stop])

    def repeated(self, times: int) -> "Reference":
        """It `times` times, end to end: for several routes on the same tokens."""
        if times == 1:
            return self
        own, mean = self.own, self.mean_weight
        many = Distribution(*(torch.cat([column] * times) for column in own.columns()))
        return replace(self, own=many, mean_weight=None if mean is None else mean.repeat(times, 1))


@dataclass(frozen=True, slots=True)
class Measured:
    """M1-M4 of the paper, per token: KL(p‖q), top-1 agreement, H(q) and −log q(next token), in nats."""

    kl: PerToken
    agreement: PerTokenFlag
    entropy: PerToken
    loss: PerToken

    def split(self, tokens: int) -> list["Measured"]:
        """In pieces of `tokens` tokens."""
        columns = (column.split(tokens) for column in (self.kl, self.agreement, self.entropy, self.loss))
        return [Measured(*rows) for rows in zip(*columns, strict=True)]


class _Accumulator:
    """Maxima and sums of every slice, put together at the end."""

    def __init__(self, tokens: int, slices: int, device: torch.device, sums: SliceSums) -> None:
        self.sums = sums
        self.columns = torch.empty(3, slices, tokens, device=device)

    def add(self, index: int, logits: LogitSlice) -> None:
        """Take in slice number `index`; `logits` may be overwritten."""
        for column, values in zip(self.columns, self.sums(logits), strict=True):
            column[index] = values

    def highest(self) -> tuple[PerToken, PerTokenIndex]:
        """The largest logit, and the first slice that has it."""
        return self.columns[0].max(0)

    def finish(self) -> tuple[PerTokenExact, PerTokenExact]:
        """Log normaliser and entropy."""
        maxima, totals, weighted = self.columns.double()
        maximum = maxima.amax(0)
        shift = maxima - maximum
        scale = shift.exp()
        # exp(−inf) = 0 makes a slice that was masked out need no special case, but 0 · −inf would be NaN.
        offset = torch.where(shift.isinf(), 0.0, shift)
        total = (totals * scale).sum(0)
        log_total = total.log()
        return maximum + log_total, log_total - ((weighted + totals * offset) * scale).sum(0) / total


def _slices(head: Head, width: int) -> list[tuple[int, int]]:
    return [(start, min(start + width, head.vocabulary)) for start in range(0, head.vocabulary, width)]


def reference(head: Head, hidden: Hidden, slice_width: int | None = None, sums: SliceSums = plain) -> Reference:
    """The baseline's distributions and Wᵀp, in two passes. Whatever is compared with it uses the same slices and `sums`."""
    sizes = sizes_for(hidden.device.type)
    slice_width = slice_width or sizes.slice_width
    slices = _slices(head, slice_width)
    owns = [_distribution(head, rows, slices, sums) for rows in hidden.split(sizes.rows)]
    means = [_mean_weight(head, own, slices) for own in owns] if head.map.linear else []
    return Reference(_joined(owns), head.map(torch.cat(means)) if means else None, slice_width, sums)


def _distribution(head: Head, hidden: Hidden, slices: Slices, sums: SliceSums) -> Distribution:
    accumulator = _Accumulator(hidden.shape[0], len(slices), hidden.device, sums)
    places = []
    for index, (start, stop) in enumerate(slices):
        logits = head.slice(hidden, start, stop)
        places.append(logits.float().argmax(-1) + start)
        accumulator.add(index, logits)
    log_normaliser, entropy = accumulator.finish()
    first = accumulator.highest()[1]
    return Distribution(hidden, log_normaliser, entropy, torch.stack(places).gather(0, first[None])[0])


def _mean_weight(head: Head, own: Distribution, slices: Slices) -> Tensor:
    mean = torch.zeros(own.hidden.shape, dtype=torch.float64, device=own.hidden.device)
    for start, stop in slices:
        p = _probabilities(own, head.slice(own.hidden, start, stop).float())
        mean += (p.to(head.weight.dtype) @ head.weight[start:stop]).double()
    return mean


def compare(head: Head, base: Reference, hidden: Hidden, targets: Tensor) -> Measured:
    """Measure edited distributions q against the baseline p, token by token.

    `hidden` is what the edited route gives the unembedding, `targets` the next tokens, shaped [tokens].
    """
    own = base.own
    slices, at_once = _slices(head, base.slice_width), sizes_for(hidden.device.type).rows
    parts = [
        _against(head, base, rows, own_rows, slices)
        for rows, own_rows in zip(hidden.split(at_once), own.split(at_once), strict=True)
    ]
    log_normaliser, entropy, agreement, cross = (torch.cat(column) for column in zip(*parts, strict=True))
    if base.mean_weight is not None:
        cross = ((own.hidden.double() - hidden.double()) * base.mean_weight).sum(-1)
    divergence = cross + (log_normaliser - own.log_normaliser)
    return Measured(
        kl=divergence.clamp_(min=0).float(),  # rounding can leave −1e-8 where p and q are equal
        agreement=agreement,
        entropy=entropy.clamp(min=0).float(),
        loss=(log_normaliser - head.next_token_logits(hidden, targets).double()).float(),
    )


def _against(
    head: Head, base: Reference, hidden: Hidden, own: Distribution, slices: Slices
) -> tuple[PerTokenExact, PerTokenExact, PerTokenFlag, PerTokenExact]:
    """Log normaliser, entropy, agreement and, where logits are not linear in what the unembedding reads, Σ p (z_p − z_q)."""
    accumulator = _Accumulator(hidden.shape[0], len(slices), hidden.device, base.sums)
    cross = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    top = _TopToken(own.top, base.slice_width)
    for index, (start, stop) in enumerate(slices):
        logits = head.slice(hidden, start, stop)
        if base.mean_weight is None:
            own_logits = head.slice(own.hidden, start, stop).float()
            cross += (_probabilities(own, own_logits) * (own_logits - logits.float())).sum(-1)
        top.look(index, logits, logits.device.type)
        accumulator.add(index, logits)
    return (*accumulator.finish(), top.agrees(accumulator.highest()[1]), cross)


class _TopToken:
    """Whether given tokens are the most likely ones. Only their own slices are searched: an argmax of all costs more than
    everything else that is read from the logits."""

    def __init__(self, tokens: PerTokenIndex, slice_width: int) -> None:
        self.slice = tokens // slice_width
        self.place = tokens % slice_width
        self.first = torch.zeros_like(tokens, dtype=torch.bool)

    def look(self, index: int, logits: LogitSlice, device: str) -> None:
        """Whether a token in this slice is the first of the slice's largest. `device` is the type of where logits are."""
        if device != "cpu":  # picking rows would make the program wait for the device, slice after slice
            self.first = torch.where(self.slice == index, logits.argmax(-1) == self.place, self.first)
            return
        rows = (self.slice == index).nonzero()[:, 0]
        if len(rows):
            self.first[rows] = logits[rows].argmax(-1) == self.place[rows]

    def agrees(self, first_slice: PerTokenIndex) -> PerTokenFlag:
        """Given the first slice that has the largest logit of all."""
        return self.first & (self.slice == first_slice)


def _joined(parts: list[Distribution]) -> Distribution:
    columns = zip(*(part.columns() for part in parts), strict=True)
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
