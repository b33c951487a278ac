"""Requests about accuracy: metrics, floors, ceilings, drops against the Keras model.

`parse_scoring` turns them into a `Scoring`; with labels, `score_plan` decides which metric of which
output is measured, and `scores` measures and judges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core.errors import ArgumentError

if TYPE_CHECKING:
    from edgecompress.converters.metrics import Wanted


@dataclass(frozen=True)
class Asked:
    """A metric that the user names.

    Attributes:
        wanted: The metric.
        output: Name or position of the output; None for the only one.
        limit: Its floor, or its ceiling; None for none.
        argument: The requesting argument, for messages.
    """

    wanted: Wanted
    output: str | None
    limit: float | None
    argument: str

    @property
    def text(self) -> str:
        """`NAME` or `NAME:OUTPUT`."""
        return self.wanted.name if self.output is None else f"{self.wanted.name}:{self.output}"


@dataclass(frozen=True)
class Drop:
    """How much worse a metric of the file may be than the Keras model's.

    Attributes:
        limit: In the metric's own unit.
        wanted: The metric; None for every one.
        output: Its output; None for every one.
    """

    limit: float
    wanted: Wanted | None = None
    output: str | None = None


@dataclass(frozen=True)
class Scoring:
    """What is requested about accuracy.

    Attributes:
        min_accuracy: Floor for the accuracy of every classifying output.
        asked: Metrics by name.
        drops: How much worse the file may be than the Keras model.
    """

    min_accuracy: float | None = None
    asked: tuple[Asked, ...] = ()
    drops: tuple[Drop, ...] = ()

    @property
    def is_limited(self) -> bool:
        """Whether any limit is set."""
        return (
            self.min_accuracy is not None
            or bool(self.drops)
            or any(asked.limit is not None for asked in self.asked)
        )


def check_share(argument: str, value: float | None) -> float | None:
    """Returns a share; refuses numbers outside 0 to 1."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value <= 1):
        raise ArgumentError(argument, "be a share between 0 and 1", value)
    return value


def parse_scoring(
    min_accuracy: float | None,
    metric: Any = None,
    min_metric: Any = None,
    max_metric: Any = None,
    max_drop: Any = None,
) -> Scoring:
    """Returns what a user requests about accuracy.

    Args:
        min_accuracy: A share.
        metric: A name or names: `NAME[:OUTPUT]`.
        min_metric: Floors: a mapping from these names to numbers, or texts `NAME[:OUTPUT]=NUMBER`.
        max_metric: Ceilings of errors, in the same forms.
        max_drop: A number for all metrics, or in the forms of the floors.

    Raises:
        ArgumentError: a name, a number or a direction is wrong, or something is requested twice.

    Example:
        >>> parse_scoring(None, min_metric={"R2:bbox": 0.9}).asked[0].text
        'r2:bbox'
    """
    share = check_share("--min-accuracy", min_accuracy)
    asked = [_asked(text, None, "--metric") for text in _texts(metric, "--metric")]
    for argument, given, floor in (
        ("--min-metric", min_metric, True),
        ("--max-metric", max_metric, False),
    ):
        for name, limit in _limits(given, argument):
            if name is None:
                raise ArgumentError(argument, "be NAME[:OUTPUT]=NUMBER", limit)
            found = _asked(name, limit, argument)
            if found.wanted.metric.higher_is_better is not floor:
                other = "--max-metric" if floor else "--min-metric"
                better = "less" if floor else "more"
                raise ArgumentError(
                    argument, f"name a metric of which {'more' if floor else 'less'} is better",
                    found.text, f"Of {found.wanted.title} {better} is better: use {other}.",
                )  # fmt: skip
            if found.wanted.metric.unit == "share":
                check_share(argument, limit)
            asked.append(found)
    drops = []
    for name, limit in _limits(max_drop, "--max-drop"):
        if limit < 0:
            raise ArgumentError("--max-drop", "be 0 or more", limit)
        if name is None:
            drops.append(Drop(limit))
        else:
            found = _asked(name, None, "--max-drop")
            drops.append(Drop(limit, found.wanted, found.output))
            asked.append(found)
    merged: dict[tuple[str, str | None], Asked] = {}
    for item in asked:
        key = (item.wanted.name, item.output)
        known = merged.get(key)
        if known is not None and None not in (known.limit, item.limit):
            raise ArgumentError(item.argument, f"limit {item.text} once", item.limit)
        merged[key] = item if known is None or known.limit is None else known
    return Scoring(share, tuple(merged.values()), tuple(drops))


def _texts(given: Any, argument: str) -> list[str]:
    if given is None:
        return []
    texts = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(text, str) for text in texts):
        raise ArgumentError(argument, "be the name of a metric, or a list of names", given)
    return texts


def _asked(text: str, limit: float | None, argument: str) -> Asked:
    from edgecompress.converters.metrics import parse_metric

    name, colon, output = text.strip().partition(":")
    if colon and not output:
        raise ArgumentError(argument, "name an output behind the colon", text)
    return Asked(parse_metric(name, argument), output or None, limit, argument)


def _limits(given: Any, argument: str) -> Iterator[tuple[str | None, float]]:
    """Yields (name, number); the name is None for a number alone."""
    if given is None:
        return
    entries: list[tuple[Any, Any]] = []
    if isinstance(given, Mapping):
        entries = [(None if name == "*" else name, value) for name, value in given.items()]
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        entries = [(None, given)]
    else:
        for text in _texts(given, argument):
            name, equals, value = text.rpartition("=")
            entries.append((name if equals else None, value))
    for name, value in entries:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = value if name is None else f"{name}={value}"
            raise ArgumentError(argument, "be NAME[:OUTPUT]=NUMBER", shown)
        yield name, number
