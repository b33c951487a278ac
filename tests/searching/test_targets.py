"""Several targets: each limit is that of its own target, and what one leaves open is open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgecompress.core.results import CheckResult, TargetResult
from edgecompress.searching.measured import outcome_of
from edgecompress.searching.results import Job
from edgecompress.searching.screening import costs_of


def _target(name: str, *checks: CheckResult) -> TargetResult:
    return TargetResult(name, checks)


def _arena(value: int | None, limit: int | None) -> CheckResult:
    if limit is None:
        how: Any = None if value is None else "computed"
        return CheckResult("arena", "not_applicable", value, value, value, how_known=how)
    if value is None:
        return CheckResult("arena", "uncertain", limit=limit, reason="Not known.")
    verdict: Any = "pass" if value <= limit else "fail"
    return CheckResult(
        "arena", verdict, value, value, value, limit, how_known="computed", reason="Too large."
    )


@pytest.mark.parametrize(
    ("first", "second", "value", "limit", "fits"),
    [
        # The larger board takes more, and has more.
        ((100, 200), (20, 50), 100, 200, True),
        ((100, 200), (60, 50), 60, 50, False),
        ((100, 90), (20, 50), 100, 90, False),
        # A phone has no arena.
        ((100, 200), (None, None), 100, 200, True),
        ((None, None), (None, None), None, None, True),
        ((100, None), (60, 50), 60, 50, False),
        ((100, 200), (None, 50), None, 50, False),
        ((30, None), (60, None), 60, None, True),
        ((1, 0), (60, 70), 1, 0, False),
    ],
)
def test_the_neediest_target_counts(
    first: tuple[Any, Any], second: tuple[Any, Any], value: Any, limit: Any, fits: bool
) -> None:
    for one, other in ((first, second), (second, first)):
        costs = costs_of([_target("a", _arena(*one)), _target("b", _arena(*other))])
        assert costs.values.get("arena") == value
        assert costs.limits.get("arena") == limit
        assert costs.fits() is fits
        assert ("arena" in costs.unknown) is (value is None)


def _accuracy(value: float | None, floor: float) -> CheckResult:
    detail = {"metric": "accuracy", "higher_is_better": True, "samples": 9, "engine": "tflm"}
    if value is None:
        return CheckResult(
            "accuracy", "not_measured", limit=floor, unit="share", reason="No engine.",
            detail=detail,
        )  # fmt: skip
    verdict: Any = "pass" if value >= floor else "fail"
    return CheckResult(
        "accuracy", verdict, value, value, value, floor, "share", "measured_host", detail, "Low."
    )


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [(0.9, 0.95, True), (0.7, 0.95, False), (0.95, 0.7, False), (0.95, None, False)],
)
def test_a_floor_holds_on_each_target(
    first: float | None, second: float | None, fits: bool
) -> None:
    results = [_target("a", _accuracy(first, 0.8)), _target("b", _accuracy(second, 0.8))]
    flat = SimpleNamespace(macs=lambda: 5)
    made = SimpleNamespace(
        targets=results, by_sample={}, verdict="pass", notes=(),
        main=SimpleNamespace(flat=flat, data=b"x"),
    )  # fmt: skip
    model = SimpleNamespace(count_params=lambda: 7)
    found = outcome_of("key", Job({}), made, model, 1, "accuracy")
    assert found.fits is fits
    assert found.metric == min(value for value in (first, second) if value is not None)
