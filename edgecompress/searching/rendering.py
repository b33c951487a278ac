"""A search as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from edgecompress.core.errors import OK, UNDECIDED
from edgecompress.reports.words import format_value
from edgecompress.searching.outcome import Point, SearchResult
from edgecompress.searching.results import trained_for

_TITLES = {"file_size": "file"}
_UNITS = {"latency": "microseconds", "energy": "microjoules"}
_MOST_ROWS = 12
_TOLD = {OK: "meets every limit", UNDECIDED: "has limits that could not be decided"}


def show(rule: str, value: float | None) -> str:
    """Returns a cost as text, with its unit.

    Example:
        >>> show("arena", 2048), show("latency", 1500), show("energy", 60), show("arena", None)
        ('2.0 KiB', '1.5 ms', '60.0 uJ', '-')
    """
    if value is None:
        return "-"
    return format_value(value, _UNITS.get(rule, "bytes"))


def describe(point: Point) -> str:
    """Returns what a candidate is, in words."""
    if point.job.start == "untouched":
        return "the untouched model"
    if point.job.start == "scratch":
        return "uniformly thinner, from scratch"
    return trained_for(point.outcome.epochs) if point.outcome.epochs else "not trained"


def render(result: SearchResult, console: Any) -> None:
    """Prints a search."""
    described = result.described
    rules = described.rules
    table = Table(title=f"Candidates that no other beats, of {len(result.points)}")
    table.add_column("no.", justify="right")
    table.add_column("what")
    table.add_column(described.metric, justify="right")
    for rule in rules:
        table.add_column(_TITLES.get(rule, rule), justify="right")
    table.add_column("limits")
    sign = -1 if described.higher_is_better else 1
    rows = sorted(result.front, key=lambda point: sign * (point.outcome.metric or 0.0))
    for point in rows[:_MOST_ROWS]:
        outcome = point.outcome
        mark = " *" if result.best is not None and point.number == result.best.number else ""
        table.add_row(
            f"{point.number}{mark}",
            describe(point),
            f"{outcome.metric:.4f}",
            *(show(rule, outcome.costs.get(rule)) for rule in rules),
            "met" if outcome.fits else "exceeded",
        )
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(f"{len(rows) - _MOST_ROWS} more are in search.html and search.json.")
    for rule, limit in described.limits.items():
        console.print(f"Limit of {rule}: {show(rule, limit)}")
    console.print(_verdict(result))
    if result.choice is not None and result.applied is None:
        console.print(result.choice.reason)
    for line in _exported(result):
        console.print(line)
    for technique, reason in described.left_out.items():
        console.print(f"{technique}: {reason}.")
    for note in described.notes:
        console.print(note)


def _exported(result: SearchResult) -> Iterator[str]:
    """Yields what the checks of the exported candidate say about its limits."""
    for target in (result.exported or {}).get("targets", ()):
        for check in target["checks"]:
            if check["limit"] is not None and check["reason"]:
                verdict = check["verdict"].replace("_", " ")
                yield f"{target['name']}: {check['rule']} {verdict}: {check['reason']}"


def _verdict(result: SearchResult) -> str:
    best = result.best
    number = best.number if result.applied is None and best is not None else result.applied
    if result.exported is not None and (result.applied is not None or result.exit_code):
        told = _TOLD.get(result.exit_code, "does not meet every limit")
        data = "validation" if result.tested is None else "test"
        return f"Candidate {number}, exported and measured on all {data} data, {told}."
    if best is None:
        made = [point for point in result.points if point.outcome.made]
        near = min(
            made or result.points,
            key=lambda point: sum(max(0.0, v) for v in point.outcome.excess.values()),
            default=None,
        )
        if near is None:
            return "No candidate was finished: give more --minutes or --trials."
        parts = [f"{k} by {v:.1%}" for k, v in near.outcome.excess.items() if v > 0]
        over = ", ".join(parts) or "nothing, but it was not made"
        return f"No candidate meets every limit. The nearest, {near.number}, exceeds {over}."
    metric, untouched = best.outcome.metric, None
    if result.untouched is not None:
        untouched = result.untouched.outcome.metric
    if result.tested is not None:
        metric, untouched = result.tested.metric, result.tested.untouched
    text = f"Candidate {best.number} meets every limit: {result.described.metric} "
    text += "unknown" if metric is None else f"{metric:.4f}"
    if untouched is not None:
        text += f", untouched {untouched:.4f}"
    return f"{text}, on the {'validation' if result.tested is None else 'test'} data."
