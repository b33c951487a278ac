"""Knobs: the values that a search chooses, as frozen data that any process can be sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError

# What a knob may be set to.
Value = bool | int | float | str


@dataclass(frozen=True)
class Knob:
    """One value that a search chooses.

    Attributes:
        name: `<technique>.<what>`.
        default: Where the search begins.
        choices: What it may be; empty for a range.
        low: Smallest value of a range.
        high: Largest value.
        log: Whether ratios count instead of differences.
        whole: Whether it is a whole number.

    Example:
        >>> Knob("distillation.temperature", 4.0, choices=(2.0, 4.0, 8.0)).check(4.0)
        4.0
    """

    name: str
    default: Value
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False

    def check(self, value: Any) -> Value:
        """Returns a value, after making sure that the knob may have it.

        Raises:
            ArgumentError: it may not.
        """
        if self.choices:
            if value not in self.choices:
                raise ArgumentError(self.name, f"be one of {list(self.choices)}", value)
            chosen: Value = value
            return chosen
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right or not self.low <= value <= self.high:
            rule = f"be a number from {self.low:g} to {self.high:g}"
            raise ArgumentError(self.name, rule, value)
        return int(value) if self.whole else float(value)
