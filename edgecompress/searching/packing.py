"""Numbers of each sample as a short text, which any storage of a study takes."""

from __future__ import annotations

import base64
import binascii
import zlib

import numpy as np

# Beyond that, the text of numbers that are not 0 or 1 may not fit into a column of a database.
MOST = 20_000


def pack(values: np.ndarray) -> str:
    """Returns the metric of each sample as text: one bit of 0 and 1, 11 significant bits of others.

    Args:
        values: (samples,) finite numbers.

    Returns:
        Empty for numbers that are not finite, and for more than `MOST` that are not 0 or 1.

    Example:
        >>> unpack(pack(np.array([1.0, 0.0, 1.0]))).tolist()
        [1.0, 0.0, 1.0]
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        return ""
    if np.isin(values, (0.0, 1.0)).all():
        return f"bits {len(values)} {_text(np.packbits(values.astype(bool)))}"
    if len(values) > MOST:
        return ""
    scale = float(np.abs(values).max())
    return f"{scale!r} {len(values)} {_text((values / scale).astype('<f2'))}"


def unpack(text: str) -> np.ndarray | None:
    """Returns what `pack` was given; None for an empty text.

    Raises:
        ValueError: the text is damaged.
    """
    if not text:
        return None
    kind, count, data = text.split(" ")
    try:
        content = zlib.decompress(base64.b64decode(data, validate=True))
    except (zlib.error, binascii.Error) as error:
        raise ValueError(str(error)) from error
    if kind == "bits":
        bits = np.unpackbits(np.frombuffer(content, np.uint8), count=int(count))
        return bits.astype(np.float64)
    found = np.frombuffer(content, "<f2").astype(np.float64) * float(kind)
    if len(found) != int(count):
        raise ValueError(f"{len(found)} numbers instead of {count}")
    return found


def numbered(groups: np.ndarray | None) -> np.ndarray | None:
    """Returns the number of each sample's group, from 0 in the order of their names."""
    return None if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def pack_groups(groups: np.ndarray | None) -> str:
    """Returns the group of each sample as text; empty for none.

    Args:
        groups: (samples,) whole numbers from 0.
    """
    return "" if groups is None else f"{len(groups)} {_text(np.asarray(groups, '<u4'))}"


def unpack_groups(text: str) -> np.ndarray | None:
    """Returns what `pack_groups` was given.

    Example:
        >>> unpack_groups(pack_groups(np.array([0, 0, 1]))).tolist()
        [0, 0, 1]
    """
    if not text:
        return None
    return np.frombuffer(zlib.decompress(base64.b64decode(text.split(" ")[1])), "<u4")


def _text(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
