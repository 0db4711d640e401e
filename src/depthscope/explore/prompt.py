"""A prompt as the tabs use it: token ids, tokens as text, and the baseline run, each computed once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch
from torch import Tensor

from depthscope.allocator import kept_meanwhile
from depthscope.data.token_classes import vocabulary_of
from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError
from depthscope.experiments.lenses import Lens, lenses_of
from depthscope.experiments.neurons import Neurons
from depthscope.experiments.prompt_lens import prompt_lens
from depthscope.explore.attention import HeadScores, head_scores
from depthscope.explore.surgery import LAST, MEAN, Surgery, operate
from depthscope.models.model import Model
from depthscope.shapes import TokenIds

LONGEST = 512
"""Most tokens of a prompt, whatever the model's context: keeps the page readable and fast."""
MOST_CHARACTERS = 64 * LONGEST
"""Most characters of a prompt that are read at all. Tokens longer than 64 characters are rare."""
MOST_KEPT = 256 * 2**20
"""Most bytes of results that are cached, of all prompts together. The prompt being read is kept however large it is."""
KEPT = 64
"""Most prompts whose results are cached: one for each page that may be open."""
TOP = 10
"""Number of tokens shown of a distribution."""


class Prompt:
    """A prompt and its cached results. To be used within Session.reading."""

    def __init__(self, model: Model, ids: TokenIds, tokens: list[str], cut: bool, lenses: Mapping[str, Lens]) -> None:
        self.model = model
        self.lenses = lenses
        self.ids = ids
        self.tokens = tokens
        """As displayed."""
        self.cut = cut
        """Whether the text was truncated to these tokens."""
        self._surgeries: dict[str, Surgery] = {}
        self._read: dict[str, pl.DataFrame] = {}

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

    def lens(self, name: str) -> pl.DataFrame:
        """PROMPT_LENS of one of the session's lenses, with five tokens per cell."""
        if name not in self._read:
            self._read[name] = prompt_lens(self.model, self.ids, top=5, lens=self.lenses[name])
        return self._read[name]

    @cached_property
    def head_scores(self) -> HeadScores:
        """Every head's attention to the previous and to the first token."""
        return head_scores(self.baseline)

    @property
    def held(self) -> int:
        """Bytes of the tensors and tables computed so far."""
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in _tensors(vars(self))}
        return sum(storages.values()) + int(sum(table.estimated_size() for table in self._read.values()))

    def surgery(self, averaged: str) -> Surgery:
        """Every swap and drop, with KL measured as `averaged`, one of surgery.AVERAGED."""
        averaged = MEAN if averaged == MEAN else LAST
        if averaged not in self._surgeries:
            self._surgeries[averaged] = operate(self.model, self.baseline, TOP, averaged)
        return self._surgeries[averaged]


class Session:
    """A model shared by several users, one request at a time: hooks and attention settings change the model's state."""

    def __init__(self, model: Model, lenses: Mapping[str, Lens] | None = None) -> None:
        self.model = model
        self.lenses = lenses_of(model, {})[0] if lenses is None else lenses
        """The lenses that can be shown, by their names in LENSES."""
        self.vocabulary = vocabulary_of(model)
        self._prompts: OrderedDict[tuple[str, bool], Prompt] = OrderedDict()
        self._held: dict[tuple[str, bool], int] = {}
        self._turn = threading.RLock()

    @cached_property
    def neurons(self) -> Neurons:
        """The model's MLP neurons. Raises UnsupportedError if they cannot be read."""
        return Neurons(self.model)

    @contextmanager
    def using(self) -> Iterator[Model]:
        """Exclusive use of the model within the context."""
        with self._turn, kept_meanwhile(), self.model.measuring():
            yield self.model

    @contextmanager
    def reading(self, text: str) -> Iterator[Prompt]:
        """A prompt by its text. Raises DataError, with a message for the page, if there is nothing to read."""
        with self.using():
            prompt = self._prompt(text)
            try:
                yield prompt
            finally:
                self._let_go(prompt)

    def _prompt(self, text: str) -> Prompt:
        # Cut before anything else: what follows costs memory and time for every character.
        asked = text[:MOST_CHARACTERS], len(text) > MOST_CHARACTERS
        if asked not in self._prompts:
            self._prompts[asked] = self._tokenized(*asked)
            self._held[asked] = 0
        self._prompts.move_to_end(asked)
        return self._prompts[asked]

    def _let_go(self, prompt: Prompt) -> None:
        """Drop the prompts not used for the longest time, until the rest is within the bounds."""
        last = next(reversed(self._prompts))
        self._held[last] = prompt.held
        while len(self._prompts) > KEPT or (sum(self._held.values()) > MOST_KEPT and len(self._prompts) > 1):
            oldest, _ = self._prompts.popitem(last=False)
            del self._held[oldest]

    def _tokenized(self, text: str, more: bool) -> Prompt:
        if not text:
            raise DataError("Enter a text to analyse.")
        most = min(self.model.context or LONGEST, LONGEST)
        # A browser may send lone surrogates, which no tokenizer accepts.
        taken = text.encode("utf-8", "replace").decode()[: 64 * most]
        found = self.model.tokenize(taken)
        if not found:
            raise DataError("The tokenizer produces no tokens for this text. Enter another.")
        ids = torch.tensor([found[:most]], dtype=torch.int64)
        self.model.check_ids(ids)
        tokens = [self.vocabulary.shown(one) for one in found[:most]]
        cut = more or len(found) > most or len(taken) < len(text)
        return Prompt(self.model, ids.to(self.model.device), tokens, cut, self.lenses)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that a result consists of; not those of the model."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Model | Lens | torch.nn.Module):
        return
    else:
        members: Any = ()
        if isinstance(value, Mapping):
            members = value.values()
        elif isinstance(value, list | tuple):
            members = value
        elif is_dataclass(value):
            members = (getattr(value, one.name) for one in fields(value))
        elif isinstance(value, Baseline):
            members = vars(value).values()
        for member in members:
            yield from _tensors(member)
