"""Shards in which the windows of a document lie apart, read so that each document's rows are together.

Tables are made from documents one at a time: parts of a document must be joined before anything is squared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import polars as pl

AT_ONCE = 256
"""Documents whose rows are in memory at once. The shards are read as often as there are so many documents."""


def by_document(read: Callable[[], Iterable[pl.DataFrame]], documents: Sequence[int]) -> Iterator[pl.DataFrame]:
    """The rows of the shards that `read` returns: a frame for each of these documents and shard, a document's together.

    The shards have the column `document`. A block of documents without a row gives one empty frame, once.
    """
    empty: pl.DataFrame | None = None
    for start in range(0, len(documents), AT_ONCE):
        block = documents[start : start + AT_ONCE]
        wanted = pl.col("document").is_in(pl.Series(block, dtype=pl.Int64).implode())
        parts = [shard.filter(wanted) for shard in read()]
        split = [part.partition_by("document", as_dict=True) for part in parts if part.height]
        for document in block:
            yield from (part[document,] for part in split if (document,) in part)
        if not split and empty is None:
            empty = parts[0]
            yield empty
