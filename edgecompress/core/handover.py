"""Work of a confined process in two parts, of which the first leaves no memory behind.

TensorFlow takes a quarter of a gigabyte that only the end of a process gives back, and conversion
takes more. What needs it runs in a fork (`apart`), which hands over its result as a file; the
process that goes on has never loaded TensorFlow. Both are confined in the same way, so neither has
to distrust the other.

Only a process that exists for this work allows it (`allow`); in any other one, everything runs in
one process. Linux only: elsewhere, system libraries do not support forks that go on without `exec`.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

# Arrays below this are copied: a file of their own would cost more.
_LARGE = 1 << 20
_ARRAY, _REST, _DONE = "handover_array_", "handover_rest", "handover_done"


@dataclass
class _State:
    """What this process may do.

    Attributes:
        folder: For its files; None if nothing may run apart.
        may_fork: Whether it has not yet been forked.
        files: Address and bytes of an array that is a map of a file -> its file and place there.
        maps: The maps of these files.
        stored: Address of a bytes object -> the object, which has to stay, and its file.
    """

    folder: Path | None = None
    may_fork: bool = False
    files: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    maps: list[mmap.mmap] = field(default_factory=list)
    stored: dict[int, tuple[bytes, Path]] = field(default_factory=dict)


_state = _State()


def allow(folder: Path | str) -> None:
    """Lets `apart` fork this process, which has one thread and exists for its job alone.

    Args:
        folder: Where the fork leaves its result.
    """
    if sys.platform == "linux":
        _state.folder, _state.may_fork = Path(folder), True


def apart(work: Callable[[], T | None]) -> T | None:
    """Runs the first part of a job in a process that ends with it, and returns its result.

    If `work` returns None or raises, or the disk is full, the rest of the job goes on in its
    process, with all that it has loaded, and this call does not return here: this process waits,
    and ends as that one does. The call also returns None, without running `work`, in a process that
    does not allow it, or where TensorFlow or a thread is already there.

    Args:
        work: The first part. Its result must be picklable.
    """
    folder = _state.folder
    if folder is None or not _state.may_fork:
        return None
    if "tensorflow" in sys.modules or threading.active_count() > 1:
        return None
    _state.may_fork = False
    parent = os.getpid()
    with warnings.catch_warnings():
        # The threads of numpy's BLAS library, which it stops before a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        if (folder / _DONE).exists():
            found: T = _taken(folder)
            return found
        _end_as(os.waitstatus_to_exitcode(status))
    from edgecompress.core.sandbox import die_with

    die_with(parent)
    found_here = work()
    if found_here is None or not _leave(folder, found_here):
        return None
    sys.stderr.flush()
    # Skips the destructors: libraries not made for each other crash in them.
    os._exit(0)


def spilled(array: np.ndarray) -> np.ndarray:
    """Returns a large array as a read-only map of a file, in a process that may run parts apart.

    Its memory is then the system's cache, taken only for as long as values are in use.
    """
    folder = _state.folder
    if folder is None or array.nbytes < _LARGE or not array.flags.c_contiguous:
        return array
    if shutil.disk_usage(folder).free < 4 * array.nbytes:
        return array
    path = folder / f"array_{len(_state.files)}"
    array.tofile(path)
    with open(path, "rb") as file:
        _state.maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    mapped = np.frombuffer(_state.maps[-1], array.dtype).reshape(array.shape)
    _state.files[_address(mapped), array.nbytes] = (path.name, 0)
    return mapped


def stored(data: bytes) -> Path | None:
    """Returns a file that holds a large bytes object, written once and never changed.

    Engines read it and the result links to it: without a copy for each. The object stays in memory.

    Returns:
        None for a small object, without room, or in a process that runs no parts apart.
    """
    folder = _state.folder
    if folder is None or len(data) < _LARGE:
        return None
    if id(data) not in _state.stored:
        if shutil.disk_usage(folder).free < 4 * len(data):
            return None
        path = folder / f"bytes_{len(_state.stored)}"
        path.write_bytes(data)
        _state.stored[id(data)] = data, path
    return _state.stored[id(data)][1]


class Handed:
    """Large bytes on their way to the process that goes on, which finds them `stored` there."""

    def __init__(self, data: bytes) -> None:
        """Wraps the bytes of an object that is being pickled."""
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles them out of band, where that is done."""
        return _received, (pickle.PickleBuffer(self._data),)


def _received(data: Any) -> bytes:
    """Returns the bytes that `Handed` wrapped."""
    if isinstance(data, bytes):
        return data
    found = bytes(data)
    place = _state.files.get((_address(np.frombuffer(data, np.uint8)), len(found)))
    if place is not None and place[1] == 0 and _state.folder is not None:
        _state.stored[id(found)] = found, _state.folder / place[0]
    return found


def leave_unread() -> None:
    """Takes the values of spilled arrays out of memory until they are read again."""
    for spilled_map in _state.maps:
        spilled_map.madvise(mmap.MADV_DONTNEED)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _leave(folder: Path, value: Any) -> bool:
    """Writes the result, large arrays apart; returns whether there was room for it."""
    parts: list[tuple[str, int, int]] = []
    try:
        with open(folder / _REST, "wb") as rest:

            def in_band(buffer: pickle.PickleBuffer) -> bool:
                raw = buffer.raw()
                if raw.nbytes < _LARGE:
                    return True
                place = _state.files.get((_address(np.frombuffer(raw, np.uint8)), raw.nbytes))
                if place is None:
                    place = (f"{_ARRAY}{len(parts)}", 0)
                    (folder / place[0]).write_bytes(raw)
                parts.append((*place, raw.nbytes))
                return False

            pickle.Pickler(rest, 5, buffer_callback=in_band).dump(value)
        (folder / f"{_DONE}.part").write_text(json.dumps(parts), encoding="utf-8")
        os.replace(folder / f"{_DONE}.part", folder / _DONE)
    except OSError:
        return False
    return True


def _taken(folder: Path) -> Any:
    """Reads what `_leave` wrote; large arrays are read-only maps of their files."""
    parts = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    maps: dict[str, memoryview] = {}
    for name in {name for name, _, _ in parts}:
        with open(folder / name, "rb") as file:
            maps[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    buffers = [maps[name][start : start + size] for name, start, size in parts]
    for (name, start, size), buffer in zip(parts, buffers, strict=True):
        _state.files[_address(np.frombuffer(buffer, np.uint8)), size] = (name, start)
    with open(folder / _REST, "rb") as rest:
        value = pickle.load(rest, buffers=buffers)
    kept = {path.name for _, path in _state.stored.values()}
    for name in {*maps, _REST} - kept:
        # A map keeps its file until it is gone.
        (folder / name).unlink()
    return value


def _end_as(code: int) -> None:
    """Ends this process with an exit code, or by a signal (negative)."""
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)
