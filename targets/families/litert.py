"""Phones: LiteRT, or a build of Larq Compute Engine, in an app; time is measured on the device."""

from __future__ import annotations

from typing import Any

from edgecompress.core.results import CheckResult
from edgecompress.targets.families.process import ProcessFamily
from edgecompress.targets.family import Subject, register
from edgecompress.targets.profile import TargetProfile


@register
class Phones(ProcessFamily):
    """Phones whose app runs LiteRT."""

    name = "litert"
    title = "a phone"
    kinds = ("phone",)
    measured = "measured_device"
    unpredicted = "on device"

    def width_multiple(self, profile: TargetProfile, settings: Any) -> int:
        """Returns 8: float 1x1 convolutions of other widths run in a narrower kernel of XNNPACK."""
        return 8

    def latency(self, subject: Subject) -> CheckResult:
        """A phone's latency is unknown before a run on it: without a limit it was not requested."""
        limit = subject.budgets.max_latency
        return CheckResult(
            "latency",
            "not_applicable" if limit is None else "not_measured",
            limit=limit,
            unit="microseconds",
            reason=(
                f"Only a run on the {subject.profile.title} can tell: no published result "
                "covers today's LiteRT on it. `edgecompress bench --adb` measures it."
            ),
        )
