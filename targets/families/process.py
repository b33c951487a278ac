"""What phones and computers share: a process loads a file and allocates memory as needed."""

from __future__ import annotations

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import CheckResult
from edgecompress.engines.registry import LCE, LITERT
from edgecompress.targets.family import Family, Subject
from edgecompress.targets.measurement_checks import memory_check
from edgecompress.targets.profile import TargetProfile


class ProcessFamily(Family):
    """Base of the families on which a model is a file that a process loads."""

    engines = (LITERT, LCE)
    # XNNPACK has integer kernels of means, and none of average pooling.
    unwanted = frozenset({"means"})

    def check_profile(self, profile: TargetProfile) -> None:
        """Refuses what only a microcontroller has."""
        for name in ("core", "kernels", "latency", "calibration"):
            value = getattr(profile, name)
            if value is not None:
                raise ArgumentError(name, f"be left out for a {profile.kind}", value)

    def named(self, subject: Subject) -> str:
        """Returns what a message calls the target, at the start of a sentence."""
        return subject.profile.title

    def flash(self, subject: Subject) -> CheckResult:
        """There is no flash to fit in."""
        why = f"{self.named(subject)} is not a microcontroller: the model is in a file system."
        return CheckResult("flash", "not_applicable", reason=why)

    def arena(self, subject: Subject) -> CheckResult:
        """Returns how much a process grew, if there is a limit: there is no arena."""
        limit, timed = subject.budgets.max_ram, subject.host_latency
        why = (
            f"{self.named(subject)} is not a microcontroller: its runtime takes memory as it needs "
            "it."
        )
        if limit is None:
            return CheckResult("arena", "not_applicable", reason=why)
        if timed is not None:
            return memory_check(timed.memory_kib["overall"], limit, "measured_host")
        return CheckResult(
            "arena",
            "not_measured",
            limit=limit,
            reason=f"{why} `edgecompress bench` measures how much; give its file as --measured.",
        )
