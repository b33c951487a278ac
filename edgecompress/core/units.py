"""Parses and formats sizes, times, energies and powers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgecompress.core.errors import ArgumentError

_SIZES = {"": 1, "b": 1, "k": 1024, "kib": 1024, "m": 1024**2, "mib": 1024**2}
_SIZES |= {"kb": 1000, "mb": 1000**2, "gib": 1024**3, "g": 1024**3, "gb": 1000**3}
# The micro sign and the Greek letter look the same.
_TIMES = {"us": 1.0, "\u00b5s": 1.0, "\u03bcs": 1.0, "ms": 1e3, "s": 1e6}
_ENERGIES = {"uj": 1.0, "\u00b5j": 1.0, "\u03bcj": 1.0, "mj": 1e3, "j": 1e6}
_POWERS = {"uw": 1e-3, "\u00b5w": 1e-3, "\u03bcw": 1e-3, "mw": 1.0, "w": 1e3}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z\u00b5\u03bc]*)\s*", re.IGNORECASE)


# 64 bits: no memory is larger and no budget longer (292,000 years).
_LARGEST = 2.0**63


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python cannot print a number of more than 4,300 digits.
        return ""


def parse_size(text: str | int, argument: str = "size") -> int:
    """Returns a size in bytes: `96KiB`, `1.5MiB`, `64k` (1,024), `64kB` (1,000) or plain bytes.

    Raises:
        ArgumentError: the text is not a positive size.

    Example:
        >>> parse_size("96KiB")
        98304
    """
    match = _NUMBER.fullmatch(_text(text))
    if match and match[2].lower() in _SIZES:
        factor = _SIZES[match[2].lower()]
        size = float(match[1]) * factor
        # Half a byte is a forgotten unit.
        if 1 <= size < _LARGEST and (factor > 1 or size == int(size)):
            return int(size)
    raise ArgumentError(argument, "be a positive size such as 96KiB, 1.5MiB or 98304", text)


def parse_time(text: str | float, argument: str = "time") -> float:
    """Returns a time in microseconds: `60ms`, `1.5s`, `800us`; a unit is required.

    Raises:
        ArgumentError: the text is not a positive time with a unit.

    Example:
        >>> parse_time("60ms")
        60000.0
    """
    rule = "be a positive time with a unit, such as 60ms or 800us"
    return _with_unit(text, argument, _TIMES, rule)


def parse_energy(text: str, argument: str = "energy") -> float:
    """Returns an energy in microjoules: `500uJ`, `1.5mJ`; a unit is required.

    Raises:
        ArgumentError: the text is not a positive energy with a unit.

    Example:
        >>> parse_energy("1.5mJ")
        1500.0
    """
    rule = "be a positive energy with a unit, such as 500uJ or 1.5mJ"
    return _with_unit(text, argument, _ENERGIES, rule)


def parse_power(text: str, argument: str = "power") -> float:
    """Returns a power in milliwatts: `41mW`, `0.1W`; a unit is required.

    Raises:
        ArgumentError: the text is not a positive power with a unit.

    Example:
        >>> parse_power("0.5W")
        500.0
    """
    return _with_unit(text, argument, _POWERS, "be a positive power with a unit, such as 41mW")


def _with_unit(text: object, argument: str, units: Mapping[str, float], rule: str) -> float:
    match = _NUMBER.fullmatch(_text(text))
    if match and match[2].lower() in units:
        value = float(match[1]) * units[match[2].lower()]
        if 0 < value < _LARGEST:
            return value
    raise ArgumentError(argument, rule, text)


def format_size(size: float) -> str:
    """Returns bytes as text in KiB, MiB or GiB (1,024-based, as memory is sold and linked).

    Example:
        >>> format_size(98304)
        '96.0 KiB'
    """
    if size < 1024:
        return f"{size:.0f} B"
    if size < 1024**2:
        return f"{size / 1024:.1f} KiB"
    if size < 1024**3:
        return f"{size / 1024**2:.2f} MiB"
    if size >= _LARGEST:  # Python cannot divide an integer beyond a float's range.
        return "more than 8 EiB"
    return f"{size / 1024**3:.2f} GiB"


def format_time(microseconds: float) -> str:
    """Returns microseconds as text in us, ms or s.

    Example:
        >>> format_time(60000.0)
        '60.0 ms'
    """
    if microseconds < 1e3:
        return f"{microseconds:.1f} us"
    if microseconds < 1e6:
        return f"{microseconds / 1e3:.1f} ms"
    return f"{microseconds / 1e6:.2f} s"


def format_energy(microjoules: float) -> str:
    """Returns microjoules as text in uJ, mJ or J.

    Example:
        >>> format_energy(29207.0)
        '29.21 mJ'
    """
    if microjoules < 1e3:
        return f"{microjoules:.1f} uJ"
    if microjoules < 1e6:
        return f"{microjoules / 1e3:.2f} mJ"
    return f"{microjoules / 1e6:.2f} J"
