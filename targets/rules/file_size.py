"""The size of the file."""

from __future__ import annotations

from edgecompress.core.results import CheckResult, judge
from edgecompress.core.units import format_size
from edgecompress.targets.family import Subject
from edgecompress.targets.rule import rule


@rule("file_size")
def file_size(subject: Subject) -> CheckResult:
    """The .tflite file is no larger than its budget."""
    size, limit = len(subject.model.data), subject.budgets.max_file_size
    verdict = judge(size, size, limit)
    reason = None
    if verdict == "fail" and limit is not None:
        reason = f"The file is {format_size(size)}, the budget is {format_size(limit)}."
    return CheckResult(
        "file_size", verdict, size, size, size, limit, "bytes", "computed", {}, reason
    )
