"""The tokenizer in a model's folder: loaded from checked files, and tried on a short text within a time limit.

A tokenizer is a program of its own: patterns, tables, and code of the tokenizers library. A pattern that needs exponential
time is stopped by that library (after ten million steps at one place of the text), which ends in a panic. One that is slow
without that is noticed on the text it is tried on.
"""

import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from depthscope.errors import ModelError
from depthscope.models.admitted import TOKENIZERS
from depthscope.models.configuration import model_errors
from depthscope.models.model import PROBE_TEXT
from depthscope.models.quiet import quiet

SECONDS = 5.0
"""How long tokenizing a beginning of PROBE_TEXT may take; milliseconds are usual."""
LENGTHS = (4, 16, 64, len(PROBE_TEXT))
"""Characters of the beginnings that are tried, so that a slow pattern is noticed on few."""


def load_tokenizer(place: Path, source: str, config: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a private folder of checked files, None where there is none (the model can still be studied on token
    ids).

    Raises ModelError where it cannot be loaded, or takes more than SECONDS for a few characters.
    """
    if not any((place / name).exists() for name in TOKENIZERS):
        return None
    with model_errors(f"the tokenizer of {source} cannot be loaded", None, place, source), quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(place), config=config, trust_remote_code=False)
        tokenizer.name_or_path = config.name_or_path
    try_tokenizer(tokenizer, source)
    return tokenizer


def try_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Tokenize a short text. Raises ModelError where that fails or takes more than SECONDS."""
    for length in LENGTHS:
        started = time.perf_counter()
        with model_errors(f"the tokenizer of {source} cannot be used: plain English makes it fail"), quiet():
            tokenizer(PROBE_TEXT[:length], add_special_tokens=False)
        if (took := time.perf_counter() - started) > SECONDS:
            raise ModelError(
                f"the tokenizer of {source} takes {took:.0f} s for {length} characters of plain English: expected "
                "milliseconds. One of its patterns may need exponential time; use the model's original tokenizer"
            )
