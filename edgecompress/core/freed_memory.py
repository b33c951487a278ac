"""Giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator

# From malloc.h: numbers of glibc's parameters.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 32 << 20
# Where a process was told to keep less.
_SETTING = "MALLOC_MMAP_THRESHOLD_"


def give_back() -> None:
    """Returns memory that was freed to the system, after work that freed much.

    The C library keeps it for later: two thirds of what a process holds after a conversion. Only
    glibc has such a function; elsewhere, this does nothing. In a process that was told to keep
    less, what only refers to itself is freed first: TensorFlow's graphs do, weights included.
    """
    if _frugal() is not None:
        gc.collect()
    _trim()(0)


def keep_imported() -> None:
    """Spares the collection of garbage the objects there are: those of imported libraries stay.

    With TensorFlow imported, there are 400,000, and looking through them takes 0.2 s. Does nothing
    in a process with the C library's own settings, which may have garbage of its own.
    """
    if _frugal() is not None:
        gc.freeze()


def comes_zeroed(size: int) -> bool:
    """Returns whether a new block of that many bytes is zero: the system's own, and never used.

    So it is in a process that was told to give back every large block.
    """
    usual = _frugal()
    return usual is not None and size > usual


def _frugal() -> int | None:
    """Returns the size of blocks that this process was told to give back; None if it was not."""
    setting = os.environ.get(_SETTING, "")
    return int(setting) if setting.isdecimal() and int(setting) < _KEPT else None


@functools.cache
def _trim() -> Callable[[int], object]:
    found = None
    if sys.platform == "linux":
        found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found if found is not None else lambda _: None


@contextlib.contextmanager
def kept_freed() -> Iterator[None]:
    """Lets a process that gives back every large block reuse its blocks inside this one.

    A network run over and over takes and frees the same blocks of a few megabytes. From the system,
    they come page by page, which costs as much time as the arithmetic. Afterwards, everything is
    given back. Does nothing in a process with the C library's own settings, which learns such
    sizes by itself.
    """
    usual = _frugal()
    if usual is None or not _set_limits(_KEPT):
        yield
        return
    try:
        yield
    finally:
        _set_limits(usual)
        give_back()


def _set_limits(size: int) -> bool:
    """Sets the size from which blocks are the system's; returns whether there is such a setting."""
    if sys.platform != "linux":
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    return change is not None and all(
        change(parameter, size) for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    )
