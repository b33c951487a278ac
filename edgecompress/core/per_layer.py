"""`per_layer`: regular expressions for whole names of layers, of which the first match counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from edgecompress.core.errors import ArgumentError, few

T = TypeVar("T")


def check_patterns(per_layer: Mapping[str, object]) -> None:
    """Refuses keys that are no regular expressions.

    Raises:
        ArgumentError: one is invalid.
    """
    for pattern in per_layer:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            rule = "hold valid regular expressions"
            raise ArgumentError("per_layer", rule, pattern, f"{error}.") from error


def first_matches(names: Sequence[str], per_layer: Mapping[str, T], what: str) -> list[T | None]:
    """Returns for each name the value of the first expression that matches all of it, or None.

    Args:
        names: Names of layers.
        per_layer: Regular expression -> value.
        what: The kind of layers, for the error: `a pruned layer`.

    Raises:
        ArgumentError: an expression matches no name.

    Example:
        >>> first_matches(["stem", "conv_1", "head"], {"stem": 0.0, "conv.*": 0.9}, "a layer")
        [0.0, 0.9, None]
    """
    found: list[T | None] = []
    used: set[str] = set()
    for name in names:
        matching = [pattern for pattern in per_layer if re.fullmatch(pattern, name)]
        used.update(matching)
        found.append(per_layer[matching[0]] if matching else None)
    unused = [pattern for pattern in per_layer if pattern not in used]
    if unused:
        rule = f"match the whole name of {what} ({few(list(dict.fromkeys(names)), 8)})"
        raise ArgumentError("per_layer", rule, unused[0])
    return found
