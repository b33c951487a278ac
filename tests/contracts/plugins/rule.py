"""A toy plugin: a rule with a limit of its own, on the number of operators."""

from dataclasses import dataclass

from edgecompress.core.options import option, whole
from edgecompress.core.results import CheckResult, judge
from edgecompress.targets.family import Subject
from edgecompress.targets.rule import rule


@dataclass(frozen=True)
class CountOptions:
    """The limit of the rule `operator_count`."""

    max_operators: int | None = option(None, "Most operators of a file.", whole(1))


@rule("operator_count", options=CountOptions)
def operator_count(subject: Subject) -> CheckResult:
    """The file has no more operators than its budget."""
    count, limit = len(subject.model.operators), subject.rule.max_operators
    verdict = judge(count, count, limit)
    reason = f"It has {count} operators, the limit is {limit}." if verdict == "fail" else None
    return CheckResult(
        "operator_count", verdict, count, count, count, limit, "number", "computed", {}, reason
    )
