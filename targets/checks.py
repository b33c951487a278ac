"""The checks: one small rule each, and their combined verdict on one target.

A rule is a function whose docstring states the rule. It reports the value, how it is known and its
band, and gives a verdict only if the whole band is on one side of the limit. What cannot be known
is `not_measured`, with a reason; nothing is guessed. Whatever depends on the runtime is up to the
target's family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import CheckResult, TargetResult, judge
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.targets.family import Subject, family_of, own_options
from edgecompress.targets.profile import Budgets, TargetProfile
from edgecompress.targets.rule import RULES

if TYPE_CHECKING:
    from edgecompress.targets.bench import HostLatency

__all__ = ["Budgets", "check"]


def _with_floor(result: CheckResult, floor: float | None) -> CheckResult:
    """Judges an accuracy without a limit against the target's own."""
    task = result.detail.get("task")
    if floor is None or result.limit is not None or task == "values":
        return result
    if result.detail.get("metric") not in (None, "accuracy", "binary_accuracy"):
        return result
    if result.measured is None:
        reason = result.reason or _accuracy_missing(floor).reason
        return replace(result, verdict="not_measured", limit=floor, reason=reason)
    low = result.measured if result.low is None else result.low
    high = result.measured if result.high is None else result.high
    verdict = judge(low, high, floor, at_least=True)
    reason = None if verdict == "pass" else f"Accuracy {result.measured:.4f}, the floor is {floor}."
    return replace(result, verdict=verdict, limit=floor, reason=reason)


def _accuracy_missing(floor: float, values: bool = False) -> CheckResult:
    why = "An accuracy floor needs labels: give --evaluate FILE.npz with x and y."
    if values:
        why = "The target's floor is for accuracy, but the model gives values: use --max-metric."
    return CheckResult(
        "accuracy",
        "not_measured",
        limit=floor,
        unit="share",
        reason=why,
    )


def check(
    model: FlatModel,
    profile: TargetProfile,
    budgets: Budgets | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    host_latency: HostLatency | None = None,
    extra: Sequence[CheckResult] = (),
    decompression_memory: int | None = None,
    ran: bool = False,
) -> TargetResult:
    """Checks a file against one target.

    Args:
        model: The file.
        profile: The target.
        budgets: Limits of the user; they override the target's own. Defaults to none.
        options: Name -> value of the options of families and rules, e.g. `{"kernels":
            "reference"}`. Defaults to none.
        host_latency: What `bench_host` measured, for the host target. Defaults to not measured.
        extra: Results that need data or an engine (accuracy, parity), or a latency measured on the
            device; each replaces this module's own result of the same rule.
        decompression_memory: Bytes outside the tensor arena that the firmware passes to
            `SetDecompressionMemory`. Decoded weights that fit count there and not in the arena; the
            result's detail says how much memory they take. Defaults to None: they are in the arena.
        ran: Whether the target's engine has run this file on this computer.

    Returns:
        One result per rule, in the order of `RULES`, then the extra ones.

    Raises:
        UnknownNameError: an option's value is not a known name.
        ArgumentError: `decompression_memory` is less than 1.

    Example:
        >>> board = load_target("nucleo-l4r5zi")  # doctest: +SKIP
        >>> check(read_tflite("kws.tflite"), board, Budgets(max_ram=16384)).verdict
        ... # doctest: +SKIP
        'fail'
    """
    given, family = options or {}, family_of(profile)
    limits = (budgets or Budgets()).over(profile.limits)
    subject = Subject(
        model,
        profile,
        limits,
        family,
        family.settle(profile, given),
        host_latency,
        decompression_memory,
        ran,
        # A latency that the device has shown serves the other rules, too.
        _found={result.rule: result for result in extra if result.rule == "latency"},
    )
    results = [
        _with_floor(result, limits.min_accuracy) if result.rule == "accuracy" else result
        for result in extra
    ]
    if limits.min_accuracy is not None and not any(
        result.rule == "accuracy" and result.limit is not None for result in results
    ):
        values = any(result.detail.get("task") == "values" for result in results)
        results.append(_accuracy_missing(limits.min_accuracy, values))
    known = {result.rule for result in results}
    own = [
        found.judge(replace(subject, rule=own_options(found.options, given, name)))
        for name, found in RULES.items()
        if name not in known
    ]
    return TargetResult(profile.name, (*own, *results))
