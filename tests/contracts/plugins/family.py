"""A toy plugin: a family of targets with an option, chips that multiply in lanes."""

from dataclasses import dataclass

from edgecompress.core.options import option, whole
from edgecompress.core.results import CheckResult, judge
from edgecompress.engines.registry import LITERT
from edgecompress.targets.family import Family, Subject, register


@dataclass(frozen=True)
class LaneOptions:
    """Options of targets of the family `lanes`."""

    lanes: int = option(8, "Multipliers of a chip with lanes.", whole(1))


@register
class Lanes(Family):
    """Chips that multiply in lanes."""

    name = "lanes"
    title = "a chip with lanes"
    kinds = ("chip",)
    engines = (LITERT,)
    options = LaneOptions
    unpredicted = "by lanes"

    def latency(self, subject: Subject) -> CheckResult:
        """Returns the time of the multiplications alone."""
        lanes, limit = subject.settings.lanes, subject.budgets.max_latency
        us = subject.model.macs() / lanes / (subject.profile.clock_mhz or 1)
        verdict = judge(us, us, limit)
        reason = f"{lanes} lanes take {us:g} us." if verdict == "fail" else None
        return CheckResult(
            "latency", verdict, us, us, us, limit, "microseconds", "predicted",
            {"lanes": lanes}, reason,
        )  # fmt: skip
