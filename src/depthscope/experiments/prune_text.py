"""The texts of a search for blocks to remove: the search's documents, the held-out ones, the few of a generation."""

from typing import Any

import numpy as np

from depthscope.data.windows import Windows
from depthscope.errors import DataError
from depthscope.schema.prune import FEW, HELD_OUT, SEARCH

HELD_OUT_EVERY = 2
"""Every 2nd document is held out: both what is chosen and what it costs depend on the text."""
FEWEST_DOCUMENTS = 4
"""Two for the search and two held out: one document gives no interval."""
FEW_PART = 4
"""Offspring are scored on a quarter of the search's documents."""


class Texts:
    """The windows of each text by name: the search's, the held-out ones, and the few of a generation."""

    def __init__(self, windows: Windows, seed: int, searching: bool) -> None:
        """Raises DataError for too few documents to hold some out. Without a search the whole text is held out."""
        self.seed = seed
        if not searching:
            self.search, self.held_out = windows.part(0, 0), windows
            return
        if windows.documents < FEWEST_DOCUMENTS:
            what = "clusters" if windows.cluster else "packs" if windows.packed else "documents"
            raise DataError(
                f"too little text to hold some out: {windows.documents} {what} of at least one window of {windows.length} "
                f"tokens, expected at least {FEWEST_DOCUMENTS}, half of them for the search. Give more --tokens or text, or a "
                "shorter --window"
            )
        turn = np.unique(windows.document, return_inverse=True)[1] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.search, self.held_out = windows.take(~turn), windows.take(turn)

    def __getitem__(self, name: str) -> Windows:
        if name == HELD_OUT:
            return self.held_out
        if name == SEARCH:
            return self.search
        generation = int(name.removeprefix(f"{FEW} "))
        documents = np.unique(self.search.document)
        drawn = np.random.default_rng((self.seed, generation))
        some = drawn.choice(documents, -(-len(documents) // FEW_PART), replace=False)
        return self.search.take(np.isin(self.search.document, some))

    def record(self) -> dict[str, Any]:
        """What the split is, as JSON values."""
        if not len(self.search):
            return {"split": "no search: measured on the whole text"}
        return {
            "split": f"every {HELD_OUT_EVERY}nd document is held out",
            "search_documents": self.search.documents,
            "search_tokens": self.search.tokens,
            "held_out_documents": self.held_out.documents,
            "held_out_tokens": self.held_out.tokens,
        }
