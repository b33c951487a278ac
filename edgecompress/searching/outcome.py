"""The result of a search: its candidates, its front and its verdict, in frozen types."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.core import errors
from edgecompress.core.files import jsonable
from edgecompress.core.results import accept_undecided, tool_version
from edgecompress.searching.choice import Choice, choose, notes
from edgecompress.searching.front import dominated, hypervolume, objectives
from edgecompress.searching.results import METRIC_LIMIT, Described, Job, Judged, Outcome
from edgecompress.searching.screening import LIMITS

if TYPE_CHECKING:
    from edgecompress.searching.study import Study

SEARCH_SCHEMA = "edgecompress.search/1"
# How much worse than the untouched model's the reference of the hypervolume is.
_BEYOND = 1.0
# Exit codes of candidates that meet not every limit, the nearest first.
_NEAREST = (
    errors.UNDECIDED,
    errors.BELOW_ACCURACY,
    errors.OVER_BUDGET,
    errors.UNSUPPORTED_OPERATOR,
)


@dataclass(frozen=True)
class Point:
    """A candidate.

    Attributes:
        number: Its number in the study.
        job: What it was to be.
        outcome: What came of it.
    """

    number: int
    job: Job
    outcome: Outcome


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        study: Name of the study.
        described: What could be chosen.
        points: All finished candidates, by number.
        best: The one that was chosen of those that meet every limit; None if none does.
        front: Those with a file that no other beats in metric and every cost.
        volume: Hypervolume of the front, 0 to 1: the share of the space between the worst metric
            and costs, which are the untouched model's, and the best conceivable, which it covers.
        importance: Knob -> share of the metric's variance that it explains; empty if unknown.
        exported: Report of the exported candidate as JSON values; None without one.
        applied: The candidate that was exported on request; None after a search.
        argv: The command.
        choice: Why it is the best; None without one.
        tested: The exported candidate on the test data; None without any.
        untested: Whether there are test data, on which the best was not measured.
    """

    study: str
    described: Described
    points: tuple[Point, ...]
    best: Point | None
    front: tuple[Point, ...]
    volume: float
    importance: Mapping[str, float] = field(default_factory=dict)
    exported: Mapping[str, Any] | None = None
    applied: int | None = None
    argv: tuple[str, ...] = ()
    choice: Choice | None = None
    tested: Judged | None = None
    untested: bool = False

    @property
    def untouched(self) -> Point | None:
        """The untouched int8 model; None if it has not been measured."""
        return next((p for p in self.points if p.job.start == "untouched"), None)

    @property
    def exit_code(self) -> int:
        """0 if the best candidate meets every limit; else that of the one that comes nearest.

        Nearest is 6 (a limit is undecided), then 4, 3 and 5, as `export` of its file would end;
        1 if no candidate could be made. 6, too, if the metric has a limit and the best was not
        measured on the test data.
        """
        if self.exported is not None:
            return int(self.exported["exit_code"])
        if self.best is not None and self.untested and _has_floor(self.points):
            return self.best.outcome.exit_code or errors.UNDECIDED
        if self.best is not None:
            return self.best.outcome.exit_code
        found = {_exit_code(point.outcome) for point in self.points}
        return next((code for code in _NEAREST if code in found), errors.FAILURE)

    @property
    def undecided_limits(self) -> tuple[str, ...]:
        """Limits that could not be decided, of the exported candidate or the nearest."""
        if self.exported is None and self.best is not None and self.untested:
            return (f"{self.described.metric} on the test data",)
        if self.exported is None and self.exit_code == errors.UNDECIDED:
            nearest = [p.outcome for p in self.points if _exit_code(p.outcome) == self.exit_code]
            names = [rule for o in nearest for rule, excess in o.excess.items() if excess > 0]
            return tuple(dict.fromkeys(names))
        targets = (self.exported or {}).get("targets", ())
        return tuple(
            f"{target['name']}: {check['rule']}"
            for target in targets
            for check in target["checks"]
            if check["verdict"] in ("uncertain", "not_measured") and check["limit"] is not None
        )

    def exit_code_for(self, allow_undecided: bool) -> int:
        """Returns the exit code, with undecided limits accepted or not.

        Without a candidate that was chosen, there is nothing to accept.
        """
        if self.exported is None and self.best is None:
            return self.exit_code
        return accept_undecided(self.exit_code) if allow_undecided else self.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""

        def shown(point: Point) -> dict[str, Any]:
            return {
                "number": point.number,
                "values": dict(point.job.values),
                "fits": point.outcome.fits,
                **point.outcome.to_dict(),
            }

        return {
            "schema": SEARCH_SCHEMA,
            "tool": {"name": "edgecompress", "version": tool_version(), "argv": list(self.argv)},
            "study": self.study,
            "space": jsonable(dataclasses.asdict(self.described)),
            "candidates": [jsonable(shown(point)) for point in self.points],
            "best": None if self.best is None else self.best.number,
            "front": [point.number for point in self.front],
            "hypervolume": self.volume,
            "importance": dict(self.importance),
            "choice": None if self.choice is None else dataclasses.asdict(self.choice),
            "tested": None if self.tested is None else dataclasses.asdict(self.tested),
            "exported": None if self.exported is None else dict(self.exported),
            "exit_code": self.exit_code,
        }

    def to_json(self) -> str:
        """Returns the JSON form as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        import html

        from edgecompress.searching.report import page

        text = html.escape(page(self), quote=True)
        return f'<iframe srcdoc="{text}" style="width:100%;height:720px;border:0"></iframe>'


def result_of(
    described: Described,
    study: Study,
    argv: Sequence[str],
    exported: Mapping[str, Any] | None,
    applied: int | None = None,
    tested: Judged | None = None,
    untested: bool = False,
) -> SearchResult:
    """Returns what a study has found so far.

    Args:
        described: What could be chosen.
        study: The study.
        argv: The command; empty leaves out what takes time to find.
        exported: Report of the exported candidate.
        applied: Its number, if that alone was asked for.
        tested: It on the test data.
        untested: Whether there are test data, on which the best was not measured.
    """
    points = tuple(
        Point(number, job, outcome) for number, (job, outcome) in sorted(study.outcomes().items())
    )
    made = [point for point in points if point.outcome.made]
    values = np.array([_values(described, point.outcome) for point in made])
    front = tuple(
        point for point, beaten in zip(made, dominated(values), strict=True) if not beaten
    )
    choice = choose(described, made)
    best = None if choice is None else next(p for p in made if p.number == choice.candidate)
    told = notes(described.metric, choice, _has_floor(made), tested, untested)
    return SearchResult(
        study=study.name,
        described=dataclasses.replace(described, notes=(*described.notes, *study.notes, *told)),
        points=points,
        best=best,
        front=front,
        volume=volume(described, points),
        importance=study.importance() if argv else {},
        exported=exported,
        applied=applied,
        argv=tuple(argv),
        choice=choice,
        tested=tested,
        untested=untested,
    )


def _has_floor(points: Sequence[Point]) -> bool:
    """Returns whether the metric has a limit."""
    return any(rule.startswith(METRIC_LIMIT) for point in points for rule in point.outcome.excess)


def _exit_code(outcome: Outcome) -> int:
    """Returns how an export of a candidate would end; 1 for one that could not be made."""
    if outcome.made:
        return outcome.exit_code
    if any(outcome.excess.get(rule, 0) > 0 for rule in LIMITS):
        return errors.OVER_BUDGET
    return errors.UNSUPPORTED_OPERATOR if "operators" in outcome.excess else errors.FAILURE


def _values(described: Described, outcome: Outcome) -> list[float]:
    return objectives(outcome.metric, described.higher_is_better, outcome.costs, described.rules)


def volume(described: Described, points: Sequence[Point], until: int | None = None) -> float:
    """Returns the hypervolume of the candidates that fit, of 1.

    Costs count as shares of the untouched model's, the metric as a share of the way from that of
    guessing (0) to 1, or for errors, of the untouched model's error.

    Args:
        described: What could be chosen.
        points: Candidates, the untouched model among them.
        until: Only those before this number count. Defaults to all.
    """
    first = next((p for p in points if p.job.start == "untouched" and p.outcome.made), None)
    if first is None:
        return 0.0
    whole = first.outcome
    rows = []
    for point in points:
        outcome = point.outcome
        if (
            not outcome.fits
            or outcome.metric is None
            or (until is not None and point.number >= until)
        ):
            continue
        lost = (
            1 - outcome.metric
            if described.higher_is_better
            else outcome.metric / max(abs(whole.metric or 0.0), 1e-12)
        )
        costs = [
            outcome.costs.get(rule, float("inf")) / max(whole.costs.get(rule, 0.0), 1e-12)
            for rule in described.rules
        ]
        rows.append([lost, *costs])
    return hypervolume(np.array(rows), [_BEYOND] * (1 + len(described.rules))) if rows else 0.0
