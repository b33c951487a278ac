"""Functions of the user's own, named on the command line: `module:function`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.options import Path

_NAME = r"[^\W\d]\w*"
# A single letter before the colon is a drive.
_FUNCTION = re.compile(rf"(?!\w:){_NAME}(\.{_NAME})*:{_NAME}")


def is_function(value: Any) -> bool:
    """Returns whether a value names a function of the user's, `module:function`.

    Example:
        >>> is_function("my.data:train"), is_function("data/train.npz"), is_function(r"C:\\data")
        (True, False, False)
    """
    return isinstance(value, str) and _FUNCTION.fullmatch(value) is not None


@dataclass(frozen=True)
class PathOrFunction(Path):
    """The path of a file or folder, or `module:function`."""

    metavar: str = "DATA"

    def parse(self, value: Any, argument: str) -> Any:
        """As `Path.parse`; the name of a function is returned unchanged."""
        return value if is_function(value) else super().parse(value, argument)

    def from_toml(self, value: Any, argument: str) -> Any:
        """As `Kind.from_toml`; a file cannot name a function, which is code."""
        if is_function(value):
            raise ArgumentError(
                argument, "be a file or a folder: a function is code", value,
                "Name it on the command line.",
            )  # fmt: skip
        return super().from_toml(value, argument)
