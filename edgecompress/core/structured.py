"""Untrusted JSON and TOML: bounded in depth, finite, printable."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from edgecompress.core.errors import UnreadableFileError
from edgecompress.core.units import format_size

TOML_LIMIT = 64 << 10
# Levels of JSON and TOML. Keras configurations nest about ten levels for each model in a model.
DEPTH_LIMIT = 100
# Levels of a TOML key with dots; tomllib takes quadratic time for them.
_KEY_PARTS = 16
_WHOLE = range(-(1 << 63), 1 << 64)


def decoded(data: bytes | bytearray, label: Path | str) -> str:
    """Returns a file's content as text; refuses what is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFileError(label, f"is not UTF-8 text (byte {error.start})") from error


# --- JSON and TOML ------------------------------------------------------------------------------


class _Refused(ValueError):
    """A value refused by a parser hook."""


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON number")


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"the number {text[:20]} is not finite")
    return value


def _whole(text: str) -> int:
    # Python itself refuses thousands of digits; anything larger than a float fails later.
    if len(text) > 20 or int(text) not in _WHOLE:
        raise _Refused(f"the number {text[:20]}... has more than 64 bits")
    return int(text)


def parse_json(data: bytes | bytearray | str, label: Path | str, depth: int = DEPTH_LIMIT) -> Any:
    """Returns the value of a JSON text, as defined by RFC 8259.

    Args:
        data: UTF-8, or text.
        label: What errors call it.
        depth: Maximum nesting of lists and objects. Defaults to 100.

    Raises:
        UnreadableFileError: it is not valid JSON, nests deeper, or holds NaN, an infinity, a number
            of more than 64 bits or half of a surrogate pair.

    Example:
        >>> parse_json('{"a": [1, 2.5]}', "x.json")
        {'a': [1, 2.5]}
    """
    try:
        text = data if isinstance(data, str) else decoded(data, label)
        root = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_real, parse_int=_whole
        )
        _check_tree(root, depth)
    except RecursionError as error:
        raise UnreadableFileError(label, f"is not valid JSON: {_too_deep(depth)}") from error
    except MemoryError as error:
        raise UnreadableFileError(label, "does not fit in memory") from error
    except ValueError as error:
        raise UnreadableFileError(label, f"is not valid JSON: {error}") from error
    return root


# A key of many parts, quoted ones included.
_LONG_KEY = re.compile(
    r"""(?<![\w"'.-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"""
    f"{{{_KEY_PARTS}}}"
)


def parse_toml(text: str, label: Path | str, depth: int = DEPTH_LIMIT) -> dict[str, Any]:
    """Returns the tables of a TOML text.

    Args:
        text: The text.
        label: What errors call it.
        depth: Maximum nesting of tables and lists. Defaults to 100.

    Raises:
        UnreadableFileError: it is not TOML, nests deeper, or holds NaN, an infinity or a number of
            more than 64 bits.
    """
    try:
        if len(text) > TOML_LIMIT:
            raise _Refused(f"it has more than {format_size(TOML_LIMIT)}")
        if _LONG_KEY.search(text):
            raise _Refused(f"a key has more than {_KEY_PARTS} parts")
        root = tomllib.loads(text, parse_float=_real)
        _check_tree(root, depth)
    except RecursionError as error:
        raise UnreadableFileError(label, f"is not valid TOML: {_too_deep(depth)}") from error
    except MemoryError as error:
        raise UnreadableFileError(label, "does not fit in memory") from error
    except ValueError as error:
        text = str(error)
        if "integer string conversion" in text:
            text = "a number has more than 64 bits"
        raise UnreadableFileError(label, f"is not valid TOML: {text}") from error
    return root


def _too_deep(depth: int) -> str:
    return f"it nests deeper than {depth} levels"


def _check_tree(root: Any, depth: int) -> None:
    """Refuses values that later readers of a parsed text cannot handle."""
    level = [root]
    for _ in range(depth + 1):
        nested = [node for node in level if isinstance(node, (dict, list))]
        for node in level:
            if isinstance(node, str) and not node.isascii():
                _check_text(node)
            elif type(node) is int and node not in _WHOLE:
                raise _Refused(f"the number {hex(node)[:20]}... has more than 64 bits")
        if not nested:
            return
        level = []
        for node in nested:
            if isinstance(node, dict):
                level += node.keys()
                level += node.values()
            else:
                level += node
    raise _Refused(_too_deep(depth))


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Refused(f"{text[:20]!r} holds half of a surrogate pair") from None
