"""A prompt as the tabs use it: token ids, tokens as text, and the baseline run, each computed once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import polars as pl
import torch

from depthscope.data.token_classes import vocabulary_of
from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError
from depthscope.experiments.neurons import Neurons
from depthscope.experiments.prompt_lens import prompt_lens
from depthscope.experiments.tuned_lens import TunedLens
from depthscope.explore.attention import HeadScores, head_scores
from depthscope.explore.surgery import LAST, MEAN, Surgery, operate
from depthscope.models.model import Model
from depthscope.shapes import TokenIds

LONGEST = 512
"""Most tokens of a prompt, whatever the model's context: keeps the page readable and fast."""
KEPT = 4
"""Number of prompts whose results are cached."""
TOP = 10
"""Number of tokens shown of a distribution."""


class Prompt:
    """A prompt and its cached results. To be used within Session.reading."""

    def __init__(
        self, model: Model, ids: TokenIds, tokens: list[str], cut: bool, tuned: TunedLens | None = None
    ) -> None:
        self.model = model
        self.tuned = tuned
        self.ids = ids
        self.tokens = tokens
        """As displayed."""
        self.cut = cut
        """Whether the text was truncated to these tokens."""
        self._surgeries: dict[str, Surgery] = {}

    @property
    def note(self) -> str:
        """How many tokens there are, and whether the text was truncated."""
        length = len(self.tokens)
        if not self.cut:
            return f"{length} token{'' if length == 1 else 's'}; no special tokens are added."
        whose = f"the context of {self.model.name}" if length == self.model.context else "the maximum here"
        return f"The text is too long: only its first {length} tokens are used ({whose})."

    @cached_property
    def baseline(self) -> Baseline:
        """The baseline run. Targets, which only the loss needs, are the prompt itself."""
        return Baseline(self.model, self.ids, self.ids, named=lambda _row: "the prompt")

    @cached_property
    def lens(self) -> pl.DataFrame:
        """The logit lens: PROMPT_LENS with five tokens per cell."""
        return prompt_lens(self.model, self.ids, top=5)

    @cached_property
    def tuned_lens(self) -> pl.DataFrame | None:
        """The same of the tuned lens, if there is one."""
        return None if self.tuned is None else prompt_lens(self.model, self.ids, top=5, lens=self.tuned)

    @cached_property
    def head_scores(self) -> HeadScores:
        """Every head's attention to the previous and to the first token."""
        return head_scores(self.baseline)

    def surgery(self, averaged: str) -> Surgery:
        """Every swap and drop, with KL measured as `averaged`, one of surgery.AVERAGED."""
        averaged = MEAN if averaged == MEAN else LAST
        if averaged not in self._surgeries:
            self._surgeries[averaged] = operate(self.model, self.baseline, TOP, averaged)
        return self._surgeries[averaged]


class Session:
    """A model shared by several users, one request at a time: hooks and attention settings change the model's state."""

    def __init__(self, model: Model, tuned: TunedLens | None = None) -> None:
        self.model = model
        self.tuned = tuned
        """A lens trained for the model, shown next to the logit lens."""
        self.vocabulary = vocabulary_of(model)
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._turn = threading.RLock()

    @cached_property
    def neurons(self) -> Neurons:
        """The model's MLP neurons. Raises UnsupportedError if they cannot be read."""
        return Neurons(self.model)

    @contextmanager
    def using(self) -> Iterator[Model]:
        """Exclusive use of the model within the context."""
        with self._turn, self.model.measuring():
            yield self.model

    @contextmanager
    def reading(self, text: str) -> Iterator[Prompt]:
        """A prompt by its text. Raises DataError, with a message for the page, if there is nothing to read."""
        with self.using():
            yield self._prompt(text)

    def _prompt(self, text: str) -> Prompt:
        if text not in self._prompts:
            self._prompts[text] = self._tokenized(text)
        self._prompts.move_to_end(text)
        while len(self._prompts) > KEPT:
            self._prompts.popitem(last=False)
        return self._prompts[text]

    def _tokenized(self, text: str) -> Prompt:
        if not text:
            raise DataError("Enter a text to analyse.")
        most = min(self.model.context or LONGEST, LONGEST)
        # A browser may send lone surrogates, which no tokenizer accepts. Tokens longer than 64 characters are rare.
        taken = text.encode("utf-8", "replace").decode()[: 64 * most]
        found = self.model.tokenize(taken)
        if not found:
            raise DataError("The tokenizer produces no tokens for this text. Enter another.")
        ids = torch.tensor([found[:most]], dtype=torch.int64)
        self.model.check_ids(ids)
        tokens = [self.vocabulary.shown(one) for one in found[:most]]
        return Prompt(
            self.model, ids.to(self.model.device), tokens, len(found) > most or len(taken) < len(text), self.tuned
        )
