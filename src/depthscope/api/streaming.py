"""A computation that reports pieces, as an iterator over them.

It runs in a thread of its own, which waits whenever the reader of the iterator has a piece: only one of the two runs at a time.
Whatever ends the reading (closing the iterator, an error, Ctrl+C) ends the computation and waits until it has put everything
back.
"""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

Hand = Callable[[str], bool]
"""Gives a piece to the reader, waits until it asks for the next, and returns whether it wants no more."""
_END = object()


def handed_over(run: Callable[[Hand], None]) -> Generator[str, None, None]:
    """The pieces that `run` hands over; empty ones are passed by. What `run` raises is raised here."""
    pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
    wanted = threading.Semaphore(0)
    closed = threading.Event()

    def hand(piece: str) -> bool:
        if not closed.is_set():
            pieces.put(piece)
            wanted.acquire()
        return closed.is_set()

    def work() -> None:
        try:
            run(hand)
        except BaseException as error:  # raised again where the reader is
            pieces.put(error)
        else:
            pieces.put(_END)

    thread = threading.Thread(target=work, name="depthscope-generate", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not _END:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece
            wanted.release()
    finally:
        closed.set()
        wanted.release()
        thread.join()
