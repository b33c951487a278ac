"""Scratch folders that outlive no run, locks of folders, and the swap of two folders.

A process that is killed cannot clean up. Each scratch folder is locked by the process that made it,
and the lock ends with the process: a scratch folder without a lock is a dead one's, and the next
run removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from edgecompress.core.errors import ArgumentError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".edgecompress-"
# Distinctive: what carries it and is locked by nobody is removed.
_TEMPORARY_PREFIX = "edgecompress.tmp-"
# What holds the lock of an output folder renames files, which takes milliseconds.
_LONGEST_WAIT_S = 60.0
_POLL_S = 0.02
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def scratch_folder(place: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """Yields a new folder in `place` that only this user may read, and removes it at the end.

    Raises:
        OSError: nothing can be made in `place`.
    """
    folder, handle = _make(place, prefix)
    try:
        yield folder
    finally:
        remove_folder(folder)
        if handle is not None:
            os.close(handle)


def _make(place: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        handle = _open(folder)
        if handle is None or not _try_lock(handle, wait=True):
            return folder, handle
        # Between the two another run may have taken it for a dead one's.
        if _is_at(handle, folder):
            return folder, handle
        os.close(handle)


def dead_folders(place: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """Yields the scratch folders in `place` whose process is gone, each locked meanwhile.

    Those of other users are left alone, and all where the file system has no locks.
    """
    if fcntl is None:
        return
    try:
        names = [name for name in os.listdir(place) if name.startswith(prefix)]
    except OSError:
        return
    for name in names:
        folder = place / name
        handle = _open(folder)
        if handle is None:
            continue
        try:
            if os.fstat(handle).st_uid == os.geteuid() and _try_lock(handle):
                yield folder
        finally:
            os.close(handle)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a new folder for temporary files; those that killed runs have left are removed."""
    place = Path(tempfile.gettempdir())
    _sweep_temporary(place)
    with scratch_folder(place, _TEMPORARY_PREFIX) as scratch:
        # Not the locked folder itself: who writes files of an export locks their folder.
        folder = scratch / "files"
        folder.mkdir()
        yield folder


@cache
def _sweep_temporary(place: Path) -> None:
    # Once a process: a folder of temporary files may be long.
    for folder in dead_folders(place, _TEMPORARY_PREFIX):
        remove_folder(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Yields while no other process of edgecompress changes files of `folder`.

    There is no lock where the file system has none, or the folder cannot be read.

    Raises:
        ArgumentError: another process has it for a minute.
        OSError: the folder is missing.
    """
    with ExitStack() as stack:
        while True:
            folder.stat()
            handle = _open(folder)
            if handle is None:
                break
            closing = stack.enter_context(ExitStack())
            closing.callback(os.close, handle)
            _wait(handle, folder)
            # Meanwhile another folder may have taken its name.
            if _is_at(handle, folder):
                break
            closing.close()
        yield


def _wait(handle: int, folder: Path) -> None:
    begin = time.monotonic()
    while _try_lock(handle) is False:
        if time.monotonic() - begin > _LONGEST_WAIT_S:
            raise ArgumentError(
                "output", "be a folder that no other process has locked", str(folder),
                f"It was locked for {_LONGEST_WAIT_S:g} s.",
            )  # fmt: skip
        time.sleep(_POLL_S)


def _open(folder: Path) -> int | None:
    """Opens a folder without following links; None if that cannot be done."""
    if fcntl is None:
        return None
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None


def _try_lock(handle: int, wait: bool = False) -> bool | None:
    """Locks an open folder; False if another process has it, None if there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(folder))
    except OSError:
        return False


def remove_folder(folder: Path) -> None:
    """Removes a folder and everything in it, as far as possible."""
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        return
    # A folder without write permission keeps its files.
    with suppress(OSError):
        os.chmod(folder, 0o700)
    for path, names, _ in os.walk(folder):
        for name in names:
            inner = os.path.join(path, name)
            if not os.path.islink(inner):
                with suppress(OSError):
                    os.chmod(inner, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Swaps two folders atomically: neither name is ever missing.

    Raises:
        OSError: the system, the file system or the place does not support it.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename(*places, _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))
