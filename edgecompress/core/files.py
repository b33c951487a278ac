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


def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Writes `data` to `path` in one step: readers see the old file or the whole new one.

    Args:
        path: File to write; its folder must exist.
        data: Bytes, or text that is stored as UTF-8.

    Raises:
        ArgumentError: the folder is missing or not writable.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give the file the mode a plain open() would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ArgumentError(
            "output", "be a writable place", str(path), f"{error.strerror}."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return path
