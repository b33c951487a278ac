"""This computer: LiteRT in a process; time is measured here."""

from __future__ import annotations

from edgecompress.core.results import CheckResult, judge
from edgecompress.core.units import format_time
from edgecompress.targets.families.process import ProcessFamily
from edgecompress.targets.family import Subject, register


@register
class Host(ProcessFamily):
    """The computer that runs edgecompress."""

    name = "host"
    title = "this computer (host)"
    kinds = ("host",)
    measured = "measured_host"
    unpredicted = "on host"

    def named(self, subject: Subject) -> str:
        """Returns what a message calls it."""
        return "This computer"

    def latency(self, subject: Subject) -> CheckResult:
        """Returns the latency that was measured here against its budget."""
        return _measured_latency(subject)


def _measured_latency(subject: Subject) -> CheckResult:
    limit, measured = subject.budgets.max_latency, subject.host_latency
    if measured is None:
        return CheckResult(
            "latency",
            "not_measured",
            limit=limit,
            unit="microseconds",
            reason="The model was not timed on this computer.",
        )
    verdict = judge(measured.low, measured.high, limit)
    reason = None
    if limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "straddles"
        reason = (
            f"{format_time(measured.low)} to {format_time(measured.high)} {does} the limit of "
            f"{format_time(limit)} on this computer."
        )
        if measured.wall_refused:
            reason += f" {measured.wall_refused}"
    return CheckResult(
        "latency",
        verdict,
        measured.measured,
        measured.low,
        measured.high,
        limit,
        "microseconds",
        "measured_host",
        measured.to_dict(),
        reason,
    )
