"""Writing files: whole or not at all, and only what JSON can hold."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Container, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from edgecompress.core.errors import ArgumentError, DiskFullError
from edgecompress.core.folders import (
    PREFIX,
    dead_folders,
    exchange,
    locked,
    remove_folder,
    scratch_folder,
)

# Looking for repetitions in trained weights, where there are none, takes most of zlib's time.
# Data of this size is compressed in parts, of which a sample tells whether that pays.
_LARGE, _PART, _SAMPLE, _PIECE = 16 << 20, 1 << 20, 32 << 10, 64 << 10
# Of an OSError: no space, or no more of what the user may take.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The share that repetitions have to save.
_PAYS = 0.002


@functools.lru_cache(maxsize=2)
def compressed_size(data: bytes) -> int:
    """Returns the bytes of data after zlib at level 9, as in a download or an APK.

    From 16 MiB on in parts of 1 MiB; parts in whose middle no repetition saves anything are coded
    by the frequency of their bytes alone, which takes a quarter of the time.
    """
    if len(data) < _LARGE:
        return len(zlib.compress(data, 9))
    view, total = memoryview(data), 0
    for start in range(0, len(data), _PART):
        part = view[start : start + _PART]
        middle = max(0, len(part) - _SAMPLE) // 2
        sample = part[middle : middle + _SAMPLE]
        plain, sought = (
            _deflated(sample, strategy)
            for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
        )
        pays = sought < (1 - _PAYS) * plain
        total += _deflated(part, zlib.Z_DEFAULT_STRATEGY if pays else zlib.Z_HUFFMAN_ONLY)
    return total


def _deflated(data: memoryview, strategy: int) -> int:
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    # A little at a time: large outputs are memory that the system has to find each time.
    pieces = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    return sum(len(stream.compress(piece)) for piece in pieces) + len(stream.flush())


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def jsonable(value: Any) -> Any:
    """Returns `value` with tuples, numpy values and mappings as lossless JSON values.

    JSON has no NaN and no infinity: they become None.

    Example:
        >>> jsonable({"shape": (1, 2), "error": float("nan")})
        {'shape': [1, 2], 'error': None}
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_together(folder: Path | str, files: Mapping[str, bytes | str]) -> None:
    """Writes several files of a folder at once, creating the folder if it is missing.

    Whoever opens the folder finds either all old or all new files, even if this process is killed;
    other files stay. Linux can swap two folders: the new files are prepared in a sibling copy of
    the folder, in which the other files are links to the same data, and the two are swapped. A
    folder that cannot be swapped (a mount point, a read-only parent, links or very many files in
    it) gets its files one by one, each of them whole; the next run that writes there first
    completes what a killed run left undone.

    Args:
        folder: The folder.
        files: Path in the folder, with / -> bytes, or text that is stored as UTF-8.

    Raises:
        ArgumentError: the folder cannot be made or written, or a path is a folder; nothing was
            written.
        DiskFullError: there is no space left; nothing was written.
    """
    # A file name that is not valid text may still exist on disk.
    contents = {
        name: data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
        for name, data in files.items()
    }
    place = Path(os.path.realpath(folder))
    rule = "be a writable place"
    try:
        for name in contents:
            if (place / name).is_dir():
                raise ArgumentError("output", rule, str(Path(folder) / name), "It is a folder.")
        if not place.exists():
            rule = "be a folder that can be made"
            if _make_with(place, contents):
                return
        sweep(place)
        if len(contents) == 1 or not _swap(place, contents):
            _replace(place, contents)
    except OSError as error:
        if error.errno in _FULL:
            # A problem of the machine: nothing is wrong with the place.
            raise DiskFullError(
                f"Cannot write {Path(folder) / next(iter(contents))}: {error.strerror}. Free some "
                "space and run the same again."
            ) from error
        raise ArgumentError(
            "output", rule, str(error.filename or folder), f"{error.strerror}."
        ) from error


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Writes `data` to `path` in one step: readers see the old file or the whole new one.

    Args:
        path: File to write; its folder must exist.
        data: Bytes, or text that is stored as UTF-8.

    Raises:
        ArgumentError: the folder is missing or not writable.
        DiskFullError: there is no space left.
    """
    path = Path(path)
    try:
        path.parent.stat()
    except OSError as error:
        raise ArgumentError(
            "output", "be a writable place", str(path), f"{error.strerror}."
        ) from error
    if path.is_dir():
        raise ArgumentError("output", "be a writable place", str(path), "It is a folder.")
    write_together(path.parent, {path.name: data})
    return path


def sweep(place: Path) -> None:
    """Removes what killed runs left in a folder, and completes what they left undone."""
    for dead in dead_folders(place):
        if (dead / _JOURNAL).is_file():
            with suppress(OSError), locked(place):
                _finish(place, dead)
        remove_folder(dead)


# --- a folder that is not there yet ---------------------------------------------------------------


def _make_with(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Makes a folder with its files in one step; False if somebody else has made it."""
    missing, place = [folder.name], folder.parent
    while not place.exists():
        missing.append(place.name)
        place = place.parent
    sweep(place)
    with scratch_folder(place) as scratch:
        whole = scratch.joinpath(*reversed(missing))
        whole.mkdir(parents=True)
        _store(whole, files)
        try:
            os.rename(scratch / missing[-1], place / missing[-1])
        except OSError:
            if not os.path.lexists(place / missing[-1]):
                raise
            folder.mkdir(parents=True, exist_ok=True)
            return False
    return True


def _store(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes new files into a private folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


# --- two folders change places --------------------------------------------------------------------

# Each file that stays gets a link; with more files, linking takes longer than writing.
_MOST_LINKS = 10_000


def _swap(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Writes files by a swap of folders; False if that cannot be done, and nothing was."""
    if sys.platform != "linux" or os.path.ismount(folder):
        return False
    with ExitStack() as stack:
        try:
            sweep(folder.parent)
            scratch = stack.enter_context(scratch_folder(folder.parent))
            copy = scratch / "folder"
            _copy_folder(folder, copy)
            _copy_parents(folder, copy, files)
            _store(copy, files)
            stack.enter_context(locked(folder))
            others = _link_others(folder, copy, files)
            stack.enter_context(locked(copy))
            exchange(folder, copy)
        except OSError:
            # The other method reports what prevents files from being written at all.
            return False
        # From here on the copy has the folder's name, so a lookup finds the new files. Now the
        # original folder gets them, and its name back: processes inside it, or with it mounted
        # elsewhere, see them, too.
        try:
            for name in files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(folder / name, scratch / "link")
                os.replace(scratch / "link", copy / name)
            exchange(folder, copy)
        except OSError:
            # Then the copy stays: it holds everything the folder does.
            pass
        finally:
            _move_late(copy, folder, files, others)
    return True


def _copy_folder(source: Path, copy: Path) -> None:
    """Makes a folder with the owner, mode and attributes of another one."""
    info = source.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(source))
    copy.mkdir(0o700)
    made = copy.lstat()
    if (made.st_uid, made.st_gid) != (info.st_uid, info.st_gid):
        os.chown(copy, info.st_uid, info.st_gid)
    # New files take their group and access list from it.
    shutil.copystat(source, copy)
    os.chmod(copy, stat.S_IMODE(info.st_mode) | stat.S_IRWXU)


def _copy_parents(folder: Path, copy: Path, files: Iterable[str]) -> None:
    """Creates in a copy the subfolders that the original has for the new files."""
    for name in files:
        for parent in reversed(PurePosixPath(name).parents):
            if os.path.lexists(folder / parent):
                if not os.access(folder / parent, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
                if not (copy / parent).exists():
                    _copy_folder(folder / parent, copy / parent)


def _link_others(folder: Path, copy: Path, files: Container[str]) -> dict[str, int]:
    """Fills a copy with everything that stays in a folder; returns the inodes of its content."""
    device = folder.lstat().st_dev
    inodes: dict[str, int] = {}
    folders = [""]
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.name.startswith(PREFIX) or name in files:
                    continue
                inodes[name] = entry.inode()
                if len(inodes) > _MOST_LINKS:
                    raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), str(folder))
                if not entry.is_dir(follow_symlinks=False):
                    os.link(entry.path, copy / name, follow_symlinks=False)
                    continue
                if entry.stat(follow_symlinks=False).st_dev != device:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), entry.path)
                if not (copy / name).exists():
                    _copy_folder(folder / name, copy / name)
                folders.append(name)
                waiting.append(f"{name}/")
    for name in folders:
        shutil.copystat(folder / name, copy / name)
    return inodes


def _move_late(source: Path, target: Path, files: Iterable[str], inodes: Mapping[str, int]) -> None:
    """Rescues what others have meanwhile written into a folder that is about to be removed."""
    ours = {
        str(path) for name in files for path in (PurePosixPath(name), *PurePosixPath(name).parents)
    }
    for path, folders, names in os.walk(source):
        inside = Path(path).relative_to(source)
        for name in [*folders, *names]:
            place = (inside / name).as_posix()
            with suppress(OSError):
                info = (source / place).lstat()
                known = stat.S_ISDIR(info.st_mode) or info.st_ino == inodes.get(place)
                if not (place in ours or (known and place in inodes) or name.startswith(PREFIX)):
                    os.replace(source / place, target / place)
        folders[:] = [name for name in folders if not name.startswith(PREFIX)]


# --- one file after the other ---------------------------------------------------------------------

_JOURNAL = "journal.json"
_LONGEST_JOURNAL = 1 << 20
# Inode and time of a file; None if there is none.
_Identity = list[int] | None


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files inside a folder, then lets each take its place.

    A journal records which of them belong together: a run killed in between leaves it behind.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(folder))
        stored = scratch / "files"
        stored.mkdir()
        _store(stored, files)
        stack.enter_context(locked(folder))
        if len(files) > 1:
            journal = {name: [_identity(folder / name), _identity(stored / name)] for name in files}
            (scratch / "journal").write_text(json.dumps(journal), encoding="utf-8")
            os.replace(scratch / "journal", scratch / _JOURNAL)
        _take_places(stored, folder, files, scratch)


def _take_places(stored: Path, folder: Path, files: Iterable[str], scratch: Path) -> None:
    """Renames files one by one; if one fails, all get their old content back."""
    done: list[tuple[Path, Path, bool]] = []
    try:
        for number, name in enumerate(files):
            place, old = folder / name, scratch / f"old-{number}"
            place.parent.mkdir(parents=True, exist_ok=True)
            done.append((place, old, os.path.lexists(place)))
            # Without links there is no rollback.
            with suppress(OSError, NotImplementedError):
                os.link(place, old, follow_symlinks=False)
            try:
                os.replace(stored / name, place)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # The file's folder is a link to another disk, or a mount point.
                with scratch_folder(place.parent) as beside:
                    shutil.copyfile(stored / name, beside / "file")
                    os.replace(beside / "file", place)
    except BaseException:
        for place, old, existed in reversed(done):
            with suppress(OSError):
                if os.path.lexists(old):
                    os.replace(old, place)
                elif not existed:
                    os.unlink(place)
        raise


def _finish(folder: Path, dead: Path) -> None:
    """Completes the renames of a killed run, if it had begun them.

    Does nothing if one of the files has changed since.
    """
    journal = _read_journal(dead / _JOURNAL)
    waiting = [name for name in journal if os.path.lexists(dead / "files" / name)]
    if len(waiting) == len(journal):
        return
    for name, (old, new) in journal.items():
        inside = Path(os.path.realpath((folder / name).parent)).is_relative_to(folder)
        if not inside or _identity(folder / name) != (old if name in waiting else new):
            return
    for name in waiting:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(dead / "files" / name, folder / name)


def _read_journal(path: Path) -> dict[str, tuple[_Identity, _Identity]]:
    """Returns the journal of a killed run; an empty one if there is none, or a damaged one."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_LONGEST_JOURNAL))
        journal = {name: (old, new) for name, (old, new) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    paths = [PurePosixPath(name) for name in journal]
    return {} if any(p.is_absolute() or ".." in p.parts or not p.name for p in paths) else journal


def _identity(path: Path) -> _Identity:
    try:
        info = path.lstat()
    except OSError:
        return None
    return [info.st_ino, info.st_mtime_ns]
