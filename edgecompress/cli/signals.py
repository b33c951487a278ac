"""Ctrl-C and termination: a command leaves no process and no half-written file behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Exit codes of a program ended by a signal: 128 plus the signal number, as in shells.
_BASE = 128


class Interrupted(BaseException):
    """Ctrl-C or termination; on a KeyboardInterrupt, click would print its own line."""


# Signals received while a command ran. Native code may turn what the handler raises into its own
# exception, and code that catches everything may lose it.
_CAME: list[int] = []


def received() -> bool:
    """Returns whether a signal has requested the command to end."""
    return bool(_CAME)


def code() -> int:
    """Returns the exit code of an interrupted command."""
    return _BASE + (_CAME[0] if _CAME else signal.SIGINT)


def or_end(tell: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns a function that first ends the command if an earlier signal was lost.

    The exception raised by the signal handler is lost in code that catches everything, as some
    libraries do during import.
    """

    def told(what: Any) -> None:
        if _CAME:
            raise Interrupted
        tell(what)

    return told


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into an exception, so that no file and no process is left."""
    _CAME.clear()
    # Only the main thread may install handlers.
    main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM] if main else []

    def handle(number: int, frame: Any) -> None:
        _CAME.append(number)
        raise Interrupted

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
