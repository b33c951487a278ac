"""What a measurement says about limits: `CheckResult`s, as from every other rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import BenchRule, CheckResult, HowKnown, Rule, Verdict, judge
from edgecompress.core.units import format_size, format_time
from edgecompress.targets.family import family_of
from edgecompress.targets.measurement import Measurement, MeasurementFile

if TYPE_CHECKING:
    from edgecompress.targets.profile import Budgets, TargetProfile


def latency_check(measurement: Measurement, limit: float | None) -> CheckResult:
    """Returns whether a measured inference takes no longer than its limit.

    The band is that of the repeats. If they are more than 5 % apart, the device got hotter or was
    throttled, or the golden outputs did not match, the verdict is `uncertain`, whatever the numbers
    and with or without a limit.

    Args:
        measurement: What was measured.
        limit: Microseconds; None for none.
    """
    error, median = measurement.error, measurement.median
    if median is None or error is not None:
        reason = error["message"] if error is not None else "It was not timed."
        return CheckResult(
            "latency", "not_measured", limit=limit, unit="microseconds", reason=reason
        )
    low, high = min(measurement.repeats), max(measurement.repeats)
    verdict: Verdict = judge(low, high, limit)
    reason = None
    doubt = measurement.doubt()
    band = f"{format_time(low)} to {format_time(high)}"
    if doubt is not None:
        against = "" if limit is None else f", the limit is {format_time(limit)}"
        verdict, reason = "uncertain", f"{doubt} It took {band}{against}."
    elif limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "straddles"
        reason = f"{band} {does} the limit of {format_time(limit)} ({measurement.setting})."
    return CheckResult(
        "latency",
        verdict,
        median,
        low,
        high,
        limit,
        "microseconds",
        measurement.data["tier"],
        dict(measurement.data),
        reason,
    )


def check_target(file: MeasurementFile, profiles: Sequence[TargetProfile]) -> None:
    """Refuses a file that was not measured for any of the targets.

    Raises:
        ArgumentError: it names another target, or none.
    """
    names = [profile.name for profile in profiles]
    if file.target not in names:
        raise ArgumentError(
            "--measured", f"be of a target of this command ({', '.join(names)})", file.target,
            f"{file.path} is of that one.",
        )  # fmt: skip


def measured_checks(
    file: MeasurementFile, sha256: str, profile: TargetProfile, limits: Budgets
) -> tuple[CheckResult, ...]:
    """Returns what a file says about a model on a target: latency, and memory if it has a limit.

    Of several settings, LiteRT's default counts: XNNPACK on, and the fewest threads.

    Args:
        file: What was measured.
        sha256: Of the checked model.
        profile: The target; nothing is returned if the file is for another one.
        limits: The budgets.

    Raises:
        ArgumentError: the file holds no measurement of this model, or one of another kind of
            machine.
    """
    if file.target != profile.name:
        return ()
    if file.data["error"] is not None and not file.measurements:
        raise ArgumentError(
            "--measured", "hold a measurement", file.path,
            f"The run failed: {file.data['error']['message']}",
        )  # fmt: skip
    found = [m for m in file.measurements if m.sha256 == sha256]
    if not found:
        others = ", ".join(dict.fromkeys(m.sha256[:12] for m in file.measurements)) or "none"
        raise ArgumentError(
            "--measured", f"be of this model (SHA-256 {sha256[:12]}...)", others,
            "It was measured on another file: measure this one.",
        )  # fmt: skip
    tier = family_of(profile).measured
    wrong = next((m.data["tier"] for m in found if m.data["tier"] != tier), None)
    if wrong is not None or any(m.data["target"] != profile.name for m in found):
        raise ArgumentError(
            "--measured", f"be measured on {profile.title}", wrong or found[0].data["target"],
            "Numbers of another machine say nothing about it.",
        )  # fmt: skip
    chosen = min(found, key=standard_first)
    checks = [latency_check(chosen, limits.max_latency)]
    if limits.max_ram is not None:
        grown = chosen.data["memory_kb"]["overall"]
        checks.append(memory_check(grown, limits.max_ram, chosen.data["tier"]))
    return tuple(checks)


def memory_check(grown_kib: float | None, limit: int, how_known: HowKnown) -> CheckResult:
    """Returns whether a process grew by no more than a limit, if there is no tensor arena.

    Args:
        grown_kib: KiB by which it grew; None if the system does not report it.
        limit: Bytes.
        how_known: Where it ran.
    """
    detail = {"what": "growth of the process: there is no tensor arena"}
    return _memory("arena", grown_kib, limit, how_known, detail)


def standard_first(measurement: Measurement) -> tuple[bool, bool, int]:
    """Sorts settings: without an error, with XNNPACK and with few threads come first."""
    config = measurement.data["config"]
    return (measurement.error is not None, not config["xnnpack"], config["threads"])


def budget_checks(
    measurement: Measurement, budgets: Mapping[str, float | None]
) -> tuple[CheckResult, ...]:
    """Returns what a measurement says about a bundle's budgets.

    Args:
        measurement: What was measured.
        budgets: As in a bundle: `max_latency_us`, `max_file_size`, `max_ram`.
    """
    data = measurement.data
    tier: HowKnown = data["tier"]
    return (
        latency_check(measurement, budgets["max_latency_us"]),
        _bytes_check("file_size", data["model"]["bytes"], budgets["max_file_size"], "computed",
                     "The file is"),
        _memory("ram", data["memory_kb"]["overall"], budgets["max_ram"], tier),
        _golden_check(data, tier),
    )  # fmt: skip


# The fields of a check in a measurement file.
_RECORDED = ("rule", "verdict", "measured", "low", "high", "limit", "unit", "reason")


def to_record(check: CheckResult) -> dict[str, Any]:
    """Returns a check as an entry of a measurement file's `checks`."""
    return {name: getattr(check, name) for name in _RECORDED}


def recorded_checks(measurement: Measurement) -> tuple[CheckResult, ...]:
    """Returns the checks that `to_record` wrote into a measurement."""
    data = measurement.data
    return tuple(
        CheckResult(**entry, how_known=_how_known(entry, data["tier"])) for entry in data["checks"]
    )


def _how_known(entry: Mapping[str, Any], tier: HowKnown) -> HowKnown | None:
    if entry["measured"] is None:
        return None
    return "computed" if entry["rule"] == "file_size" else tier


def _golden_check(data: Mapping[str, Any], tier: HowKnown) -> CheckResult:
    golden = data["golden"]
    if golden is None:
        # A runner that does not compare outputs says so itself.
        reason = data.get("golden_reason") or (
            "The bundle has no golden outputs, or they were not reached."
        )
        return CheckResult("golden", "not_applicable", unit="steps", reason=reason)
    steps = golden["max_steps"]
    reason = None
    if not golden["passed"]:
        reason = (
            f"{golden['checked'] - golden['equal']} of {golden['checked']} values differ from the "
            f"golden ones, by up to {_difference(golden)}."
        )
    return CheckResult(
        "golden",
        "pass" if golden["passed"] else "fail",
        steps,
        steps,
        steps,
        golden.get("allowed_steps"),
        "steps",
        None if steps is None else tier,
        reason=reason,
    )


def _difference(golden: Mapping[str, Any]) -> str:
    steps, error = golden["max_steps"], golden["max_error"]
    parts = [] if steps is None else [f"{steps} steps"]
    parts += [] if error is None else [f"{error:g}"]
    return " and ".join(parts) or "NaN values"


def _memory(
    rule: BenchRule | Rule,
    grown_kib: float | None,
    limit: float | None,
    how_known: HowKnown,
    detail: Mapping[str, Any] | None = None,
) -> CheckResult:
    if grown_kib is None:
        return CheckResult(
            rule,
            "not_applicable" if limit is None else "not_measured",
            limit=limit,
            detail=detail or {},
            reason=None
            if limit is None
            else "The system does not report the memory of the process.",
        )
    return _bytes_check(rule, grown_kib * 1024, limit, how_known, "It takes", detail)


def _bytes_check(
    rule: BenchRule | Rule,
    size: float,
    limit: float | None,
    how_known: HowKnown,
    what: str,
    detail: Mapping[str, Any] | None = None,
) -> CheckResult:
    verdict = judge(size, size, limit)
    reason = None
    if verdict == "fail" and limit is not None:
        reason = f"{what} {format_size(size)}, the limit is {format_size(limit)}."
    return CheckResult(
        rule, verdict, size, size, size, limit, "bytes", how_known, detail or {}, reason
    )
