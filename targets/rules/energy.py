"""The energy of one inference: the predicted latency times the power of the board."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.core.options import Energy, Power, option
from edgecompress.core.results import CheckResult, judge
from edgecompress.core.units import format_energy
from edgecompress.targets.family import Subject
from edgecompress.targets.power import around
from edgecompress.targets.rule import rule


@dataclass(frozen=True)
class EnergyOptions:
    """The energy of one inference."""

    max_energy: float | None = option(
        None, "Energy of one inference: latency times the power of the board.", Energy()
    )
    power: float | None = option(
        None,
        "What your board draws while a model runs. Defaults to the range of published results.",
        Power(),
        unset="of the target",
    )


@rule("energy", options=EnergyOptions)
def energy(subject: Subject) -> CheckResult:
    """One inference takes no more energy than its budget."""
    limit, given = subject.rule.max_energy, subject.rule.power
    known = subject.profile.power
    if given is None and known is None:
        return _unknown(
            limit,
            f"The power of {subject.profile.title} is not known: measure what it draws while a "
            "model runs, and give it as --power.",
        )
    latency = subject.latency
    if latency.low is None or (latency.high is None and limit is None):
        why = latency.reason or "It is not predicted."
        return _unknown(limit, f"The latency is not known. {why}")
    low_power, high_power = around(given) if given is not None else known.milliwatts
    low = latency.low * low_power / 1e3
    high = None if latency.high is None else latency.high * high_power / 1e3
    detail = {
        "milliwatts": [low_power, high_power],
        "known_from": "your measurement" if given is not None else "published results",
        "published": 0 if given is not None or known is None else len(known.published),
    }
    if high is None or latency.measured is None:
        fails = limit is not None and low > limit
        reason = f"The latency is known only from below. {latency.reason or ''}".strip()
        if fails:
            reason = f"It takes at least {format_energy(low)}, the limit is {format_energy(limit)}."
        return CheckResult(
            "energy", "fail" if fails else "not_measured", None, low, None, limit, "microjoules",
            "predicted", detail, reason,
        )  # fmt: skip
    # In ratios, the middle of the powers.
    typical = latency.measured * (low_power * high_power) ** 0.5 / 1e3
    verdict = judge(low, high, limit)
    reason = None
    if limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "straddles"
        advice = "" if verdict == "fail" else " Measure the board's power, and give it as --power."
        if given is not None and verdict == "uncertain":
            advice = " Measure it on the device to decide."
        reason = (
            f"{format_energy(low)} to {format_energy(high)} {does} the limit of "
            f"{format_energy(limit)}.{advice}"
        )
    return CheckResult(
        "energy", verdict, typical, low, high, limit, "microjoules", "predicted", detail, reason
    )


def _unknown(limit: float | None, reason: str) -> CheckResult:
    verdict = "not_applicable" if limit is None else "not_measured"
    return CheckResult("energy", verdict, limit=limit, unit="microjoules", reason=reason)
