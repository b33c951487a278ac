"""What goes into files: whole or not at all, and only what JSON can hold."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ArgumentError


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def jsonable(value: Any) -> Any:
    """Returns `value` with tuples, numpy values and mappings as what JSON holds without loss.

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


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """Writes several files: all are stored beside their places first, then take them at once.

    Whatever fails before that, Ctrl-C included, leaves all places as they were.

    Args:
        files: Path -> bytes, or text that is stored as UTF-8; the folders must exist. The last
            one takes its place last.

    Raises:
        ArgumentError: a folder is missing or not writable, or a path is a folder.
    """
    waiting: dict[str, Path] = {}
    try:
        for path, data in files.items():
            if path.is_dir():
                raise ArgumentError("output", "be a writable place", str(path), "It is a folder.")
            _write_beside(path, data, waiting)
        for temporary in list(waiting):
            os.replace(temporary, waiting[temporary])
            del waiting[temporary]
    except OSError as error:
        raise ArgumentError(
            "output", "be a writable place", str(error.filename or path), f"{error.strerror}."
        ) from error
    finally:
        for temporary in waiting:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _write_beside(path: Path, data: bytes | str, waiting: dict[str, Path]) -> None:
    # A file name that is not valid text still is one on the disk.
    payload = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    # Long names must leave room for the rest.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    waiting[temporary] = path
    with os.fdopen(handle, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    # mkstemp makes private files; give the file the mode a plain open() would have.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Writes `data` to `path` in one step: readers see the old file or the whole new one.

    Args:
        path: File to write; its folder must exist.
        data: Bytes, or text that is stored as UTF-8.

    Raises:
        ArgumentError: the folder is missing or not writable.
    """
    path = Path(path)
    write_together({path: data})
    return path
