"""Giving freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back() -> None:
    """Returns memory that was freed to the system, after work that freed much.

    The C library keeps it for later: two thirds of what a process holds after a conversion. Only
    glibc has such a function; elsewhere, this does nothing.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    found = None
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found if found is not None else lambda _: None
