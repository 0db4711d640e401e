"""Shards in which the windows of a document lie apart, read so that each document's rows are together.

Tables are made from documents one at a time: parts of a document must be joined before anything is squared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import polars as pl

AT_ONCE = 256
"""Documents whose rows are in memory at once. The shards are read as often as there are so many documents."""


def by_document(read: Callable[[], Iterable[pl.DataFrame]], documents: Sequence[int]) -> Iterator[pl.DataFrame]:
    """All rows of the shards that `read` returns, ordered by document, in frames of AT_ONCE of these documents.

    Rows of a document keep their order. The shards have the column `document`.
    """
    for start in range(0, len(documents), AT_ONCE):
        block = pl.Series(documents[start : start + AT_ONCE], dtype=pl.Int64).implode()
        parts = [shard.filter(pl.col("document").is_in(block)) for shard in read()]
        yield pl.concat(parts).sort("document", maintain_order=True)
