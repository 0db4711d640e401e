"""The model's own run on a batch of tokens: the one pass that every experiment on the text starts from."""

from collections.abc import Iterator, Sequence
from copy import copy
from enum import Flag, auto
from functools import cached_property

from torch import Tensor

from depthscope.engine.divergence import Measured, Reference, measure_baseline, reference
from depthscope.engine.reductions import Reductions
from depthscope.models.model import Model
from depthscope.models.patterns import attention_patterns
from depthscope.models.state import State, copied, mapped
from depthscope.models.writes import Writes
from depthscope.routes import ATTN, MLP, Step
from depthscope.shapes import Pattern, Residual, TokenIds


class Keep(Flag):
    """What is kept of the model's own run besides its residual streams."""

    NOTHING = 0
    WRITES = auto()
    """What attention and MLP of every block added to the residual stream."""
    SILENCED = auto()
    """Every block's output with its MLP silenced and, in a parallel block, with its attention silenced: they follow from the
    own run (Model.shares_components)."""


class Baseline:
    """The unedited model on token windows: residual streams of all depths, and what follows from them when asked for.

    `targets` are the tokens that follow each position, `keep` is what else of the run is wanted. To be made and used under
    `model.measuring()`. Raises DataError for token ids outside the vocabulary or a window longer than the context.
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
    ) -> None:
        model.check_ids(ids)
        model.check_ids(targets)
        self.model = model
        self.ids, self.targets = ids.to(model.device), targets.to(model.device)
        self.slice_width, self.reductions = slice_width, reductions
        self.entry = model.stack.enter(self.ids)
        self.residuals: list[Residual] = [self.entry.residual]
        """x_0 … x_L: before each block, and after the last."""
        self.states: list[State] = [copied(self.entry.state)]
        """With each residual stream what blocks up to there have handed on."""
        self.writes: list[Writes] = []
        """What each block's components wrote; empty unless kept."""
        self.silenced: dict[Step, Residual] = {}
        """Outputs of blocks on their own residual streams with a component silenced; empty unless kept."""
        for block in range(model.depth):
            self.residuals.append(self._after(block, self.residuals[-1], keep))

    def part(self, start: int, stop: int) -> "Baseline":
        """Windows `start … stop-1` of it, without running the model again."""
        part, rows, length = copy(self), slice(start, stop), self.ids.shape[1]
        part.ids, part.targets = self.ids[rows], self.targets[rows]
        part.entry = self.model.stack.enter(part.ids)
        part.residuals = [residual[rows] for residual in self.residuals]
        part.states = [mapped(state, lambda kept: kept[rows]) for state in self.states]
        part.writes = [written.rows(rows) for written in self.writes]
        part.silenced = {step: residual[rows] for step, residual in self.silenced.items()}
        part.__dict__.pop("measured", None)
        if "reference" in self.__dict__:
            part.__dict__["reference"] = self.reference.rows(start * length, stop * length)
        return part

    @property
    def flat_targets(self) -> Tensor:
        """The next tokens laid end to end, shaped [tokens]."""
        return self.targets.flatten().long()

    @cached_property
    def reference(self) -> Reference:
        """The model's own next-token distributions p."""
        hidden = self.model.head.hidden(self.residuals[-1])
        return reference(self.model.head, hidden, self.slice_width, self.reductions)

    @cached_property
    def measured(self) -> Measured:
        """The model measured against itself; not yet checked to be finite."""
        return measure_baseline(self.model.head, self.reference, self.flat_targets)

    def patterns(self) -> Iterator[Pattern | None]:
        """Each block's attention pattern in turn, None where it has none."""
        return attention_patterns(self.model, self.ids, self.residuals)

    def _after(self, block: int, residual: Residual, keep: Keep) -> Residual:
        state = copied(self.states[-1])
        self.states.append(state)
        if not keep:
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
    """Windows in pieces of at most `tokens` tokens; one window at least."""
    at_once = max(1, tokens // ids.shape[1])
    parts: Sequence[tuple[Tensor, ...]] = (ids.split(at_once), targets.split(at_once))
    yield from zip(*parts, strict=True)
