"""Checks of single arguments; numbers of numpy are returned as plain ones."""

from __future__ import annotations

import math
import numbers
from typing import Any

from edgecompress.core.errors import ArgumentError


def check_whole(name: str, value: Any, least: int = 0) -> int:
    """Returns a whole number that is not too small.

    Raises:
        ArgumentError: it is none, or too small.

    Example:
        >>> check_whole("rounds", 3, least=1)
        3
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ArgumentError(name, f"be a whole number, {least} or more", value)
    return int(value)


def check_seed(seed: Any) -> None:
    """Refuses what is no seed of Keras.

    Raises:
        ArgumentError: it is neither None nor a whole number from 0 to 2**32 - 1.
    """
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if seed is not None and (not whole or not 0 <= seed < 2**32):
        raise ArgumentError("seed", "be a whole number from 0 to 2**32 - 1", seed)


def check_positive(name: str, value: Any) -> float:
    """Returns a finite number greater than 0.

    Raises:
        ArgumentError: it is not.
    """
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        raise ArgumentError(name, "be a number greater than 0", value)
    return float(value)


def check_number(name: str, value: Any) -> float:
    """Returns a finite number.

    Raises:
        ArgumentError: it is not.
    """
    if not is_number(value) or not math.isfinite(value):
        raise ArgumentError(name, "be a finite number", value)
    return float(value)


def check_between(name: str, value: Any, low: float = 0, high: float = 1) -> float:
    """Returns a number between two others, neither of which it may be.

    Raises:
        ArgumentError: it is not.
    """
    if not is_number(value) or not low < value < high:  # NaN fails this, too.
        raise ArgumentError(name, f"be a number between {low} and {high}, neither included", value)
    return float(value)


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number, of Python or numpy; True and False are not.

    Example:
        >>> is_number(3), is_number(True), is_number("3")
        (True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
