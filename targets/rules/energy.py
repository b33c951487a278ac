"""The energy of one inference: latency, predicted or measured, times the power of the board."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgecompress.core.options import Time, option
from edgecompress.core.results import CheckResult, Verdict, judge
from edgecompress.core.units import format_energy, parse_energy, parse_power
from edgecompress.targets.family import Subject
from edgecompress.targets.power import around
from edgecompress.targets.rule import rule

# How a latency is known that needs no band.
_MEASURED = ("measured_device", "measured_host")


@dataclass(frozen=True)
class Energy(Time):
    """An energy, written as `500uJ`; a plain number from Python is in microjoules."""

    metavar: str = "ENERGY"
    rule: str = 'be an energy such as "500uJ"'

    _parse = staticmethod(parse_energy)


@dataclass(frozen=True)
class Power(Time):
    """A power, written as `41mW`; a plain number from Python is in milliwatts."""

    metavar: str = "POWER"
    rule: str = 'be a power such as "41mW"'

    _parse = staticmethod(parse_power)


@dataclass(frozen=True)
class EnergyOptions:
    """The energy of one inference."""

    max_energy: float | None = option(
        None,
        "Energy of one inference, predicted as latency times the power of the board.",
        Energy(),
    )
    power: float | None = option(
        None,
        "What your board draws while a model runs.",
        Power(),
        unset="the range of published results",
    )


@rule("energy", options=EnergyOptions)
def energy(subject: Subject) -> CheckResult:
    """One inference takes no more energy than its budget."""
    limit, given = subject.rule.max_energy, subject.rule.power
    known, latency = subject.profile.power, subject.latency
    if given is not None:
        powers, source = around(given), "your measurement"
    elif known is not None:
        powers, source = known.milliwatts, "published results"
    else:
        return _unknown(
            limit,
            f"The power of {subject.profile.title} is not known: measure what it draws while a "
            "model runs, and give it as --power.",
        )
    shortest, longest = latency.low, latency.high
    if latency.how_known in _MEASURED:
        # Without a band of their own, measured times are single numbers.
        shortest = latency.measured if shortest is None else shortest
        longest = latency.measured if longest is None else longest
    if shortest is None:
        return _unknown(limit, f"The latency is not known. {latency.reason or ''}".strip())
    low = shortest * powers[0] / 1e3
    typical = high = None
    if longest is not None and latency.measured is not None:
        high = longest * powers[1] / 1e3
        # The middle of the powers, in ratios.
        typical = latency.measured * (powers[0] * powers[1]) ** 0.5 / 1e3
    verdict: Verdict = judge(low, math.inf if high is None else high, limit)
    if high is None and verdict == "uncertain":
        verdict = "not_measured"
    doubted = latency.how_known in _MEASURED and latency.verdict == "uncertain"
    if doubted and verdict in ("pass", "fail"):
        verdict = "uncertain"
    detail = {
        "milliwatts": list(powers),
        "known_from": source,
        "latency": latency.how_known,
        "published": len(known.published) if given is None and known is not None else 0,
    }
    reason = _reason(verdict, low, high, limit, given is not None, latency.how_known in _MEASURED)
    if doubted and limit is not None:
        reason = f"The measured latency is uncertain. {latency.reason or ''}".strip()
    if high is None and reason is None:
        reason = f"The latency is known only from below. {latency.reason or ''}".strip()
    return CheckResult(
        "energy", verdict, typical, low, high, limit, "microjoules", "predicted", detail, reason
    )


def _reason(
    verdict: Verdict,
    low: float,
    high: float | None,
    limit: float | None,
    measured: bool,
    timed: bool,
) -> str | None:
    """Returns what is wrong; None if nothing is, or nothing more is known than the latency."""
    if limit is None or verdict not in ("fail", "uncertain"):
        return None
    least, most = format_energy(low), format_energy(limit)
    if high is None:
        return f"It takes at least {least}, the limit is {most}."
    band = f"{least} to {format_energy(high)}"
    if verdict == "fail":
        return f"{band} is above the limit of {most}."
    advice = "it on the device to decide" if measured else "the board's power: --power"
    times = " by the measured latency" if timed else ""
    return f"{band}{times} straddles the limit of {most}. Measure {advice}."


def _unknown(limit: float | None, reason: str) -> CheckResult:
    verdict: Verdict = "not_applicable" if limit is None else "not_measured"
    return CheckResult("energy", verdict, limit=limit, unit="microjoules", reason=reason)
