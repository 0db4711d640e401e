"""The baseline run: one pass of the unmodified model on a batch of tokens, from which every experiment on the text starts."""

from collections.abc import Iterator, Sequence
from copy import copy
from enum import Flag, auto
from typing import Any

from torch import Tensor

from depthscope.engine.divergence import Reference, TokenMeasures, measure_baseline, reference
from depthscope.engine.reductions import Reductions
from depthscope.errors import NumericError
from depthscope.models.finite import REMEDY, Named, all_finite, first_row, require_finite_streams, window_of_batch
from depthscope.models.model import Model
from depthscope.models.patterns import attention_patterns
from depthscope.models.state import State, copied, mapped
from depthscope.models.writes import Writes
from depthscope.routes import ATTN, MLP, Step
from depthscope.shapes import Hidden, Pattern, Residual, TokenIds


class Keep(Flag):
    """What is kept of the baseline run besides its residual streams."""

    NOTHING = 0
    WRITES = auto()
    """What attention and MLP of every block added to the residual stream."""
    SILENCED = auto()
    """Every block's output with its MLP ablated and, in a parallel block, with its attention ablated: both follow from the
    baseline run (Model.shares_components)."""
    ROUTES = auto()
    """The measures of routes, for readings that measure the same routes."""
    TOP_TOKENS = auto()
    """The most likely tokens at every depth, where a lens is read: they are collected in the lens's own pass."""


class Baseline:
    """The unmodified model on token windows: residual streams at all depths, and what is computed from them on demand.

    `targets` are the next tokens at each position, `keep` selects what else of the run is kept. Create and use it under
    `model.measuring()`. Raises DataError for token ids outside the vocabulary or a window longer than the context, and
    NumericError where the unmodified model gives NaN or infinity, naming the block and, by `named`, the window: nothing that
    starts from a baseline has to check it again.
    """

    def __init__(
        self,
        model: Model,
        ids: TokenIds,
        targets: TokenIds,
        *,
        keep: Keep = Keep.NOTHING,
        slice_width: int | None = None,
        reductions: Reductions | None = None,
        named: Named = window_of_batch,
    ) -> None:
        model.check_ids(ids)
        model.check_ids(targets)
        self.model, self.named, self.keep = model, named, keep
        self.ids, self.targets = ids.to(model.device), targets.to(model.device)
        self.slice_width, self.reductions = slice_width, reductions
        self.entry = model.stack.enter(self.ids)
        self.residuals: list[Residual] = [self.entry.residual]
        """x_0 … x_L: before each block, and after the last."""
        self.states: list[State] = [copied(self.entry.state)]
        """For each residual stream, the state that earlier blocks have passed on."""
        self.writes: list[Writes] = []
        """What each block's components wrote; empty unless kept."""
        self.silenced: dict[Step, Residual] = {}
        """Outputs of blocks on the baseline's residual streams with a component ablated; empty unless kept."""
        # Computed on first use, then cached.
        self._hidden: Hidden | None = None
        self._reference: Reference | None = None
        self._measured: TokenMeasures | None = None
        self.shared: dict[Any, Any] = {}
        """What one reading of this run has computed and others use, by a key that says what it is."""
        try:
            for block in range(model.depth):
                self.residuals.append(self._after(block, self.residuals[-1], keep))
        except RuntimeError:  # some operations refuse NaN; if that is not the reason, the error is another one
            require_finite_streams(model, self.residuals, named)
            raise
        require_finite_streams(model, self.residuals, named)

    def part(self, start: int, stop: int) -> "Baseline":
        """The baseline of windows `start … stop-1`, without running the model again."""
        part, rows, length = copy(self), slice(start, stop), self.ids.shape[1]
        part.ids, part.targets = self.ids[rows], self.targets[rows]
        part.named = lambda row: self.named(start + row)
        part.entry = self.model.stack.enter(part.ids)
        part.residuals = [residual[rows] for residual in self.residuals]
        part.states = [mapped(state, lambda kept: kept[rows]) for state in self.states]
        part.writes = [written.rows(rows) for written in self.writes]
        part.silenced = {step: residual[rows] for step, residual in self.silenced.items()}
        tokens = start * length, stop * length
        part._hidden = None if self._hidden is None else self._hidden[slice(*tokens)]
        part._reference = None if self._reference is None else self._reference.rows(*tokens)
        part._measured = None
        part.shared = {}
        return part

    def reduced_with(self, slice_width: int | None, reductions: Reductions | None) -> "Baseline":
        """The same run with its passes over the vocabulary computed in this form; itself if nothing changes."""
        wanted = slice_width or self.slice_width, reductions or self.reductions
        if wanted == (self.slice_width, self.reductions):
            return self
        other = copy(self)
        other.slice_width, other.reductions = wanted
        other._reference = other._measured = None
        other.shared = {}
        return other

    @property
    def flat_targets(self) -> Tensor:
        """The next tokens, flattened to [tokens]."""
        return self.targets.flatten().long()

    @property
    def hidden(self) -> Hidden:
        """What the unembedding reads, flattened to one row per position. Raises NumericError where it is not finite."""
        if self._hidden is None:
            hidden = self.model.unembedding.hidden(self.residuals[-1])
            self._require_finite([hidden], "what the unembedding reads, after the final norm")
            self._hidden = hidden
        return self._hidden

    @property
    def reference(self) -> Reference:
        """The unmodified model's next-token distributions p. Raises NumericError where they are not finite."""
        if self._reference is None:
            found = reference(self.model.unembedding, self.hidden, self.slice_width, self.reductions)
            self._require_finite([found.own.log_normaliser, found.own.entropy], "the logits")
            self._reference = found
        return self._reference

    @property
    def measured(self) -> TokenMeasures:
        """The unmodified model measured against itself; not checked for NaN or infinity."""
        if self._measured is None:
            self._measured = measure_baseline(self.model.unembedding, self.reference, self.flat_targets)
        return self._measured

    def patterns(self) -> Iterator[Pattern | None]:
        """Each block's attention pattern in turn, None for a block without one."""
        return attention_patterns(self.model, self.ids, self.residuals, self.named)

    def _require_finite(self, columns: Sequence[Tensor], what: str) -> None:
        """Of columns with a row per position, which follow from the last residual stream."""
        if all_finite(columns):
            return
        rows = [row for column in columns if (row := first_row(column[:, None])) is not None]
        raise NumericError(
            f"{self.model.name} has NaN or infinity in {what}, although the residual stream is finite, in "
            f"{self.named(min(rows) // self.ids.shape[1])}. {REMEDY}"
        )

    def _after(self, block: int, residual: Residual, keep: Keep) -> Residual:
        state = copied(self.states[-1])
        self.states.append(state)
        if not keep & (Keep.WRITES | Keep.SILENCED):
            return self.model.visit(Step(block), residual, self.entry.arguments, state)
        with self.model.writers.watched(block) as written:
            after = self.model.visit(Step(block), residual, self.entry.arguments, state)
        if Keep.WRITES in keep:
            self.writes += written
        if Keep.SILENCED in keep:
            self.silenced[Step(block, (MLP,))] = residual + written[0].attention
            if self.model.require_components().parallel:
                self.silenced[Step(block, (ATTN,))] = residual + written[0].mlp
        return after


def pieces(ids: TokenIds, targets: TokenIds, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows in pieces of at most `tokens` tokens, but at least one window."""
    at_once = max(1, tokens // ids.shape[1])
    parts: Sequence[tuple[Tensor, ...]] = (ids.split(at_once), targets.split(at_once))
    yield from zip(*parts, strict=True)
