"""Per-token measures of one next-token distribution against another, with only one slice of logits in memory at a time.

For logits z_q = W h_q of the edited model and z_p = W h_p of the unmodified model, with p and q their softmax:

    KL(p‖q) = Σ p (log p − log q) = Σ p z_p − Σ p z_q + logsumexp(z_q) − logsumexp(z_p)
            = (h_p − h_q) · (Wᵀp) + logsumexp(z_q) − logsumexp(z_p)

so that one pass over slices of the vocabulary gives everything for an edited route (maximum, sum of exp, sum of z·exp: see
`reductions`), and the cross term is a dot product with Wᵀp, computed once for the baseline. If the model applies a nonlinear
map to its logits (a soft cap), the cross term is computed slice by slice instead. Slices are multiplied in the model's dtype
and reduced in float32; sums over slices and the final differences are float64, because KL is a small difference of large
numbers. The log normaliser of a route equal to the baseline is the same number, so its KL is exactly 0.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthscope.engine.reductions import Reductions, reductions_for
from depthscope.engine.sizes import sizes_for
from depthscope.engine.top_tokens import TopTokens
from depthscope.models.unembedding import Unembedding
from depthscope.shapes import Hidden, LogitSlice, PerToken, PerTokenExact, PerTokenFlag, PerTokenIndex

Slices = list[tuple[int, int]]
COPIED_SHARE = 8
"""A slice of which fewer than one in so many rows are searched has these rows copied. Measured: copying a row of 2,048 logits
costs as much as the maximum of eight."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What one pass over the vocabulary computes of next-token distributions, per token. Information is in nats."""

    hidden: Hidden
    log_normaliser: PerTokenExact
    entropy: PerTokenExact
    top: PerTokenIndex
    """The most likely token; among equally likely tokens the one with the lowest id."""

    def split(self, tokens: int) -> list["Distribution"]:
        """The same in pieces of at most `tokens` tokens."""
        return [Distribution(*rows) for rows in zip(*(column.split(tokens) for column in self.columns()), strict=True)]

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four fields."""
        return self.hidden, self.log_normaliser, self.entropy, self.top


@dataclass(frozen=True, slots=True)
class Reference:
    """The unmodified model's distributions p, with what the cross term of KL needs."""

    own: Distribution
    mean_weight: Tensor | None
    """Wᵀp, shaped [tokens, d_model] in float64 (logit scale included); None if logits are not linear in `hidden`."""
    slice_width: int
    reductions: Reductions

    @property
    def capped(self) -> bool:
        """Whether the cross term has to be computed slice by slice."""
        return self.mean_weight is None

    def rows(self, start: int, stop: int) -> "Reference":
        """Only tokens `start … stop-1`."""
        own, mean = self.own, self.mean_weight
        part = Distribution(*(column[start:stop] for column in own.columns()))
        return replace(self, own=part, mean_weight=None if mean is None else mean[start:stop])


class ByMeasure(dict[str, Tensor]):
    """Values by the name of the measure (`schema.measures`): `measured["kl"]`, or `measured.kl`."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{name} was not measured: expected one of {', '.join(self)}") from None


class TokenMeasures(ByMeasure):
    """Measures of each token, shaped [tokens]: float32 in the measure's unit, agreement bool."""

    def split(self, tokens: int) -> list["TokenMeasures"]:
        """In pieces of `tokens` tokens."""
        columns = {name: column.split(tokens) for name, column in self.items()}
        pieces = len(next(iter(columns.values())))
        return [TokenMeasures({name: parts[i] for name, parts in columns.items()}) for i in range(pieces)]


class _Accumulator:
    """Maxima and sums of every slice, combined at the end."""

    def __init__(self, tokens: int, slices: int, device: torch.device, reductions: Reductions) -> None:
        self.slice_sums = reductions.slice_sums
        self.columns = torch.empty(3, slices, tokens, device=device)
        self.places: list[Tensor] = []
        """For each slice the index of its first maximum, if this form of the sums returns it."""

    def add(self, index: int, logits: LogitSlice) -> None:
        """Add slice number `index`; `logits` may be overwritten."""
        *sums, place = self.slice_sums(logits)
        for column, values in zip(self.columns, sums, strict=True):
            column[index] = values
        if place is not None:
            self.places.append(place)

    def first_highest(self) -> PerTokenIndex:
        """The first slice that contains the overall largest logit."""
        return self.columns[0].max(0).indices

    def top(self, slice_width: int) -> PerTokenIndex:
        """The first token with the largest logit, from the indices."""
        first = self.first_highest()
        return torch.stack(self.places).gather(0, first[None])[0] + first * slice_width

    def finish(self) -> tuple[PerTokenExact, PerTokenExact]:
        """Log normaliser and entropy."""
        maxima, totals, weighted = self.columns.double()
        maximum = maxima.amax(0)
        shift = maxima - maximum
        scale = shift.exp()
        # A fully masked slice needs no special case, as exp(−inf) = 0, except that 0 · −inf would be NaN.
        offset = torch.where(shift.isinf(), 0.0, shift)
        total = (totals * scale).sum(0)
        log_total = total.log()
        return maximum + log_total, log_total - ((weighted + totals * offset) * scale).sum(0) / total


def _slices(head: Unembedding, width: int) -> list[tuple[int, int]]:
    return [(start, min(start + width, head.vocabulary)) for start in range(0, head.vocabulary, width)]


def reference(
    head: Unembedding, hidden: Hidden, slice_width: int | None = None, reductions: Reductions | None = None
) -> Reference:
    """The baseline's distributions and Wᵀp, in two passes. All comparisons with it use the same slices and form."""
    sizes = sizes_for(hidden.device, hidden.shape[1])
    slice_width = slice_width or sizes.slice_width
    reductions = reductions or reductions_for(hidden.device, preferred=sizes.reductions)[0]
    slices = _slices(head, slice_width)
    owns = [_distribution(head, rows, slices, slice_width, reductions) for rows in hidden.split(sizes.rows)]
    means = [_mean_weight(head, own, slices) for own in owns] if head.map.linear else []
    return Reference(_joined(owns), head.map(torch.cat(means)) if means else None, slice_width, reductions)


def _distribution(
    head: Unembedding, hidden: Hidden, slices: Slices, slice_width: int, reductions: Reductions
) -> Distribution:
    accumulator = _Accumulator(hidden.shape[0], len(slices), hidden.device, reductions)
    for index, (start, stop) in enumerate(slices):
        logits = head.slice(hidden, start, stop)
        if not reductions.places:
            accumulator.places.append(logits.float().argmax(-1))
        accumulator.add(index, logits)
    log_normaliser, entropy = accumulator.finish()
    return Distribution(hidden, log_normaliser, entropy, accumulator.top(slice_width))


def _mean_weight(head: Unembedding, own: Distribution, slices: Slices) -> Tensor:
    mean = torch.zeros(own.hidden.shape, dtype=torch.float64, device=own.hidden.device)
    for start, stop in slices:
        p = _probabilities(own, head.slice(own.hidden, start, stop).float())
        mean += (p.to(head.weight.dtype) @ head.weight[start:stop]).double()
    return mean


def compare(
    head: Unembedding, base: Reference, hidden: Hidden, targets: Tensor, top: TopTokens | None = None
) -> TokenMeasures:
    """Measure edited distributions q against the baseline p, token by token.

    `hidden` is what the unembedding reads from one or several edited routes: the baseline's tokens, one or more times in
    sequence. `targets` are the next tokens of the baseline's tokens, shaped [tokens]. `top` collects the most likely tokens
    of q in the same pass.
    """
    copies = hidden.shape[0] // base.own.hidden.shape[0]
    slices, at_once = _slices(head, base.slice_width), sizes_for(hidden.device, hidden.shape[1]).rows
    own = Distribution(*(_repeated(column, copies) for column in base.own.columns())) if base.capped else None
    rows, tops = hidden.split(at_once), _repeated(base.own.top, copies).split(at_once)
    owns = [None] * len(rows) if own is None else own.split(at_once)
    parts = [_against(head, base, *part, slices, top) for part in zip(rows, tops, owns, strict=True)]
    log_normaliser, entropy, agreement, cross = (torch.cat(column) for column in zip(*parts, strict=True))
    linear_cross, next_logit = _row_products(head, base, hidden, targets)
    divergence = (cross if linear_cross is None else linear_cross) + (
        log_normaliser - _repeated(base.own.log_normaliser, copies)
    )
    return TokenMeasures(
        kl=divergence.clamp_(min=0).float(),  # rounding can leave −1e-8 where p and q are equal
        agreement=agreement,
        entropy=entropy.clamp(min=0).float(),
        loss=(log_normaliser - next_logit.double()).float(),
    )


def _repeated(column: Tensor, copies: int) -> Tensor:
    return column if copies == 1 else column.repeat(copies, *(1,) * (column.ndim - 1))


def _row_products(
    head: Unembedding, base: Reference, hidden: Hidden, targets: Tensor
) -> tuple[PerTokenExact | None, PerToken]:
    """The cross term, if logits are linear in `hidden`, and the next token's logit. Float64 tensors are never larger than
    one copy of the baseline's tokens."""
    fused, own, mean = base.reductions.row_products, base.own.hidden, base.mean_weight
    if fused is not None and mean is not None and hidden.dtype != torch.float64:
        cross, raw = fused(own, hidden, mean, head.weight, targets)
        return cross, head.mapped(raw, _repeated(targets, hidden.shape[0] // own.shape[0]))
    copies = hidden.split(own.shape[0])
    following = torch.cat([head.next_token_logits(one, targets) for one in copies])
    if mean is None:
        return None, following
    return torch.cat([((own.double() - one.double()) * mean).sum(-1) for one in copies]), following


def _against(
    head: Unembedding,
    base: Reference,
    hidden: Hidden,
    top: PerTokenIndex,
    own: Distribution | None,
    slices: Slices,
    several: TopTokens | None,
) -> tuple[PerTokenExact, PerTokenExact, PerTokenFlag, PerTokenExact]:
    """Log normaliser, entropy, agreement and, if logits are not linear in what the unembedding reads, Σ p (z_p − z_q)."""
    accumulator = _Accumulator(hidden.shape[0], len(slices), hidden.device, base.reductions)
    cross = torch.zeros(hidden.shape[0], dtype=torch.float64, device=hidden.device)
    searched = _TopToken(top, base.slice_width)
    for index, (start, stop) in enumerate(slices):
        logits = head.slice(hidden, start, stop)
        if own is not None:
            cross += _capped_cross(base.reductions, head.slice(own.hidden, start, stop), logits, own)
        if several is not None:
            several.look(start, logits)
        if not base.reductions.places:
            searched.look(index, logits)
        accumulator.add(index, logits)
    if base.reductions.places:
        return (*accumulator.finish(), accumulator.top(base.slice_width) == top, cross)
    return (*accumulator.finish(), searched.agrees(accumulator.first_highest()), cross)


def _capped_cross(reductions: Reductions, own_logits: LogitSlice, logits: LogitSlice, own: Distribution) -> PerToken:
    if reductions.capped_cross is not None and logits.dtype != torch.float64:
        return reductions.capped_cross(own_logits, logits, own.log_normaliser)
    own_logits = own_logits.float()
    return (_probabilities(own, own_logits) * (own_logits - logits.float())).sum(-1)


class _TopToken:
    """Whether given tokens are the most likely ones. Searches only the slices that contain them, and takes the maximum of the
    other logits: on a CPU an argmax costs far more than a maximum, and more than everything else computed from the logits.
    (On an accelerator, selecting rows would wait for the device.)"""

    def __init__(self, tokens: PerTokenIndex, slice_width: int) -> None:
        self.slice = tokens // slice_width
        self.place = tokens % slice_width
        self.first = torch.zeros_like(tokens, dtype=torch.bool)

    def look(self, index: int, logits: LogitSlice) -> None:
        """Check for each token in this slice whether it is the slice's first maximum."""
        rows = (self.slice == index).nonzero()[:, 0]
        if not len(rows):
            return
        place = self.place[rows]
        # Of most rows the maximum is taken where they lie; few rows are copied, which costs more for each.
        whole = len(rows) * COPIED_SHARE > len(logits)
        searched, at = (logits, rows) if whole else (logits[rows], torch.arange(len(rows), device=logits.device))
        own = logits[rows, place]
        searched[at, place] = -torch.inf
        others = searched.amax(-1)
        if whole:
            others = others[rows]
            logits[rows, place] = own
        self.first[rows] = own > others
        if len(tied := (own == others).nonzero()[:, 0]):  # the first of them counts
            self.first[rows[tied]] = logits[rows[tied]].argmax(-1) == place[tied]

    def agrees(self, first_slice: PerTokenIndex) -> PerTokenFlag:
        """The result, given the first slice that contains the overall largest logit."""
        return self.first & (self.slice == first_slice)


def _joined(parts: list[Distribution]) -> Distribution:
    columns = zip(*(part.columns() for part in parts), strict=True)
    return Distribution(*(torch.cat(column) for column in columns))


def measure_baseline(head: Unembedding, base: Reference, targets: Tensor) -> TokenMeasures:
    """The baseline measured against itself: KL 0, agreement 1, its entropy and loss."""
    own = base.own
    return TokenMeasures(
        kl=torch.zeros(own.top.shape[0], device=own.top.device),
        agreement=torch.ones_like(own.top, dtype=torch.bool),
        entropy=own.entropy.clamp(min=0).float(),
        loss=(own.log_normaliser - _row_products(head, base, own.hidden, targets)[1].double()).float(),
    )


def _probabilities(own: Distribution, logits: LogitSlice) -> LogitSlice:
    """exp(logits − log normaliser), the normaliser subtracted in two float32 parts so that no digits are lost."""
    high = own.log_normaliser.float()
    low = (own.log_normaliser - high.double()).float()
    return ((logits - high[:, None]) - low[:, None]).exp()
