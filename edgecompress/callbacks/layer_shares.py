"""Sparsity by layer: a table of final shares beside the schedule of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.core.arguments import is_number
from edgecompress.core.errors import ArgumentError
from edgecompress.core.per_layer import check_patterns, first_matches
from edgecompress.schedules.base import Schedule

# A step by which a schedule that never ends has settled.
_FAR = 2**31 - 1


def check_shares(per_layer: Mapping[str, Any] | None, schedule: Schedule) -> dict[str, float]:
    """Returns a table of final sparsities by layer as plain numbers.

    Args:
        per_layer: Regular expression for whole names of layers -> share of zeros at the end.
        schedule: The schedule that the layers follow in proportion.

    Raises:
        ArgumentError: an expression is invalid, a value is not at least 0 and below 1, or
            the schedule ends at 0, so that nothing is in proportion to it.
    """
    shares = check_table(per_layer)
    if shares and final_sparsity(schedule) <= 0:
        rule = "be left out if the schedule ends at a sparsity of 0"
        raise ArgumentError("per_layer", rule, shares)
    return shares


def check_table(per_layer: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns a table of shares by layer as plain numbers.

    Args:
        per_layer: Regular expression for whole names of layers -> share; None for none.

    Raises:
        ArgumentError: it is no table, an expression is invalid, or a value is not at least 0 and
            below 1.
    """
    if per_layer is None:
        return {}
    if not isinstance(per_layer, Mapping):
        raise ArgumentError("per_layer", "map names of layers to shares", per_layer)
    check_patterns(per_layer)
    for pattern, share in per_layer.items():
        if not is_number(share) or not 0 <= share < 1:
            rule = "map to shares of at least 0 and below 1"
            raise ArgumentError("per_layer", rule, f"{pattern}: {share!r}", "0 protects a layer.")
    return {pattern: float(share) for pattern, share in per_layer.items()}


def final_sparsity(schedule: Schedule) -> float:
    """Returns the sparsity at the end of a schedule; far away for one that never ends."""
    return schedule(schedule.end_step if schedule.end_step >= 0 else _FAR)


def factors(
    names: Sequence[str], per_layer: Mapping[str, float], schedule: Schedule
) -> list[float | None]:
    """Returns by how much each layer's sparsity differs from the schedule's; None for not at all.

    Args:
        names: Names of the layers.
        per_layer: As `check_shares` returns it; the first expression that matches counts.
        schedule: The schedule.

    Raises:
        ArgumentError: an expression matches no layer.

    Example:
        >>> from edgecompress.schedules.constant import ConstantSparsity
        >>> factors(["stem", "conv_1", "head"], {"stem": 0.0, "conv.*": 0.9}, ConstantSparsity(0.6))
        [0.0, 1.5, None]
    """
    shares = first_matches(names, per_layer, "a pruned layer")
    return [None if share is None else share / final_sparsity(schedule) for share in shares]
