"""Signals that end a command: what is in progress is dropped, the exit status is 128 + the signal's number.

SIGINT (Ctrl+C), SIGTERM (kill, a scheduler) and SIGHUP (a terminal that is closed) raise Stopped in the main thread, wherever
it is. A second signal ends the process at once, by the system's own means. A finaliser cannot be left by an exception: where
the signal arrives in one, it is sent again a moment later.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = 128 + signal.SIGINT
AGAIN_AFTER = 0.05
"""Seconds until a signal that arrived in a finaliser is sent again."""


class Stopped(KeyboardInterrupt):
    """A signal ended the command. Like KeyboardInterrupt, it is no Exception and passes by whatever catches those."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.status = number, 128 + number


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return getattr(stop, "status", INTERRUPTED)


_received: list[int] = []


def received() -> int | None:
    """The exit status of the first signal that came within `ending_on_signals`, None if none did.

    Stopped may not arrive as such: typer turns every KeyboardInterrupt into 130, and Python one in `__set_name__` into a
    RuntimeError.
    """
    return 128 + _received[0] if _received else None


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise Stopped on the first signal of ENDING. Signals that the parent process set to be ignored stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def stop(number: int, frame: FrameType | None) -> None:
        for one in handled:
            signal.signal(one, signal.SIG_DFL)
        _received.append(number)
        raise Stopped(number)

    def listen() -> None:
        for one in handled:
            signal.signal(one, stop)

    def unraisable(lost: Any) -> None:
        if not isinstance(lost.exc_value, Stopped):
            shown(lost)
            return
        listen()
        again = threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), lost.exc_value.number))
        again.daemon = True
        again.start()

    shown, sys.unraisablehook = sys.unraisablehook, unraisable
    listen()
    try:
        yield
    finally:
        sys.unraisablehook = shown
        _received.clear()
        for number in handled:
            signal.signal(number, before[number])
