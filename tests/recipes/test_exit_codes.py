"""The exit code of a recipe: the report's, and that on what the metric lost."""

from __future__ import annotations

from typing import Any

import pytest

from edgecompress.core.results import CheckResult, ModelInfo, Report, TargetResult
from edgecompress.recipes.results import CompressionResult, Drop


def _result(check: CheckResult, drop: float, limit: float | None) -> CompressionResult:
    model = ModelInfo("m.tflite", "a" * 64, 1, 1, 1, 1, {})
    report = Report(model, (TargetResult("cortex-m4", (check,)),), (), "1")
    totals: Any = None
    lost = Drop("accuracy", 0.9, 0.9 - drop, drop, limit, 100)
    return CompressionResult(
        "deep-compression", "m", None, {}, {}, (), (), totals, lost, report, (), (), "1"
    )


@pytest.mark.parametrize(
    ("verdict", "drop", "limit", "code", "allowed"),
    [
        ("pass", 0.0, 0.01, 0, 0),
        ("not_measured", 0.0, 0.01, 6, 0),
        ("uncertain", 0.0, None, 6, 0),
        # What failed goes before what is undecided.
        ("not_measured", 0.02, 0.01, 4, 4),
        ("pass", 0.02, 0.01, 4, 4),
        ("fail", 0.02, 0.01, 3, 3),
    ],
)
def test_exit_code(verdict: Any, drop: float, limit: float | None, code: int, allowed: int) -> None:
    result = _result(CheckResult("arena", verdict, limit=1, reason="because"), drop, limit)
    assert (result.exit_code, result.exit_code_for(False)) == (code, code)
    assert result.exit_code_for(allow_undecided=True) == allowed
    undecided = verdict in ("uncertain", "not_measured")
    assert result.undecided_limits == (("arena on cortex-m4",) if undecided else ())


def test_an_unknown_value_without_a_limit_is_no_pass() -> None:
    result = _result(CheckResult("arena", "not_measured", reason="because"), 0.0, None)
    assert (result.verdict, result.exit_code) == ("not_measured", 0)
