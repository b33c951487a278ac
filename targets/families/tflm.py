"""Microcontrollers: TensorFlow Lite Micro, one tensor arena, predicted time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.options import Choice, option
from edgecompress.core.results import CheckResult, Verdict, judge
from edgecompress.core.units import format_size, format_time
from edgecompress.engines.registry import TFLM, TFLM_KERNELS
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.targets.family import Family, Subject, register
from edgecompress.targets.operators import judged
from edgecompress.targets.profile import (
    CALIBRATION_CLASSES,
    OWN_MEASUREMENT,
    TargetProfile,
    check_choice,
)
from edgecompress.targets.tflm.arena import CORES, Arena, compute_arena
from edgecompress.targets.tflm.flash import FlashEstimate, estimate_flash
from edgecompress.targets.tflm.latency import LatencyEstimate, predict

# How many operators a check names; the rest are counted.
_NAMED = 3
_COSTLIEST = 5


@dataclass(frozen=True)
class MicrocontrollerOptions:
    """Settings of microcontrollers that override the profile's."""

    kernels: str | None = option(
        None,
        "Kernels of microcontrollers.",
        Choice("SET", names=TFLM_KERNELS),
    )


@register
class Microcontrollers(Family):
    """Microcontrollers whose firmware is TensorFlow Lite Micro."""

    name = "tflm"
    title = "a microcontroller"
    kinds = ("board", "core")
    engines = (TFLM,)
    options = MicrocontrollerOptions
    has_arena = True
    c_sources = True

    def check_profile(self, profile: TargetProfile) -> None:
        """Refuses profiles without a core that the tables know, and boards without memory."""
        if not profile.core:
            raise ArgumentError("core", "be given for a microcontroller", profile.core)
        check_choice("core", profile.core, CORES)
        check_choice("kernels", profile.kernels or "", TFLM_KERNELS)

    def settle(self, profile: TargetProfile, given: Mapping[str, Any]) -> MicrocontrollerOptions:
        """Returns the kernel set: the one given, else the profile's."""
        own: MicrocontrollerOptions = super().settle(profile, given)
        return own if own.kernels is not None else replace(own, kernels=profile.kernels)

    def operators(self, subject: Subject) -> CheckResult:
        """Returns what the kernels of this core are known to run, refuse and compute wrongly."""
        return judged(subject, subject.settings.kernels)

    def flash(self, subject: Subject) -> CheckResult:
        """Returns the file's size and the range of its code against the flash."""
        return _flash(subject)

    def arena(self, subject: Subject) -> CheckResult:
        """Returns the tensor arena against the RAM."""
        return _arena(subject)

    def latency(self, subject: Subject) -> CheckResult:
        """Returns the predicted latency against its budget."""
        return _latency(subject)

    def arena_of(
        self, model: FlatModel, profile: TargetProfile, settings: Any, memory: int | None = None
    ) -> Arena:
        """Returns the plan of the tensor arena."""
        return compute_arena(model, str(profile.core), settings.kernels, memory)

    def microseconds_of(
        self, model: FlatModel, profile: TargetProfile, settings: Any
    ) -> float | None:
        """Returns the typical latency that is predicted."""
        return predict(model, profile, settings.kernels).microseconds

    def width_multiple(self, profile: TargetProfile, settings: Any) -> int:
        """Returns 4 for CMSIS-NN, which computes what is left of a group of 4 one by one."""
        return 1 if settings.kernels == "reference" else 4

    def operator_times(
        self, model: FlatModel, profile: TargetProfile, settings: Any
    ) -> Sequence[tuple[str, float]]:
        """Returns the predicted time, divided in proportion to each operator's instructions."""
        try:
            estimate = predict(model, profile, settings.kernels)
        except EdgeCompressError:
            return ()  # The latency check of the same target has said why.
        counted = sum(cost.instructions or 0 for cost in estimate.operators)
        if estimate.microseconds is None or not counted:
            return ()
        scale = estimate.microseconds / counted
        return [
            (f"{cost.index} {cost.name}", scale * (cost.instructions or 0))
            for cost in estimate.operators
        ]


# The core that code sizes were linked for.
_FLASH_CORE = "cortex-m4"
# If the range is not a bound, a limit counts as met only if the code may take this many times as
# much, and on another core as broken only if it is broken even by the code divided by this. One
# operator outside the table was linked, an LSTM with the reference kernels: 1.16 times the upper
# end.
_FLASH_ROOM = 1.5


def _flash_gaps(subject: Subject, estimate: FlashEstimate) -> list[str]:
    """Returns why the upper end of the code's range is not a bound; nothing if it is."""
    gaps = []
    if estimate.unmeasured:
        names = ", ".join(estimate.unmeasured[:_NAMED])
        more = len(estimate.unmeasured) - _NAMED
        gaps.append(f"no code was linked for {names}{f' and {more} more' if more > 0 else ''}")
    core = subject.profile.core
    if core != _FLASH_CORE:
        gaps.append(f"nothing was linked for {core}")
    return gaps


def _flash(subject: Subject) -> CheckResult:
    """The file and the code that runs it fit into the flash."""
    limit, kernels = subject.budgets.max_flash, subject.settings.kernels
    estimate = estimate_flash(subject.model, kernels)
    gaps = _flash_gaps(subject, estimate)
    most = estimate.model_bytes + estimate.code_high * (_FLASH_ROOM if gaps else 1)
    other_core = subject.profile.core != _FLASH_CORE
    least = estimate.model_bytes + estimate.code_low / (_FLASH_ROOM if other_core else 1)
    verdict = judge(least, most, limit)
    reason = None
    if limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "straddles"
        if verdict == "uncertain" and not estimate.low <= limit < estimate.high:
            does = "is a range without bounds, too close to"
        reason = (
            f"{format_size(estimate.low)} to {format_size(estimate.high)} {does} the limit of "
            f"{format_size(limit)}: the file is {format_size(estimate.model_bytes)}, the code "
            f"{format_size(estimate.code_low)} to {format_size(estimate.code_high)}."
        )
    detail = {
        "model_bytes": estimate.model_bytes,
        "code_low": estimate.code_low,
        "code_high": estimate.code_high,
        "kernels": kernels,
        "code_measured_on": _FLASH_CORE,
        "unmeasured_operators": estimate.unmeasured,
        "bound": not gaps,
        "range": (
            f"Code as linked for {_FLASH_CORE}: from the interpreter with its largest operator to "
            "the plain sum over all operators."
            + (f" Not a bound here: {'; '.join(gaps)}." if gaps else "")
        ),
    }
    return CheckResult(
        "flash",
        verdict,
        (estimate.low + estimate.high) // 2,
        estimate.low,
        estimate.high,
        limit,
        "bytes",
        "predicted",
        detail,
        reason,
    )


def _arena(subject: Subject) -> CheckResult:
    """The tensor arena fits into the RAM."""
    profile, limit = subject.profile, subject.budgets.max_ram
    kernels, memory = subject.settings.kernels, subject.decompression_memory
    found = compute_arena(subject.model, str(profile.core), kernels, memory)
    if found.used is None:
        least = found.at_least
        detail: dict[str, Any] = {
            "core": profile.core,
            "kernels": kernels,
            "unknown": [str(item) for item in found.unknown],
        }
        if least is not None and limit is not None and least > limit:
            reason = (
                f"At least {format_size(least)} are needed, the limit is {format_size(limit)}. "
                f"{found.explain()}"
            )
            return CheckResult(
                "arena", "fail", None, least, None, limit, "bytes", "computed", detail, reason
            )
        return CheckResult(
            "arena",
            "not_measured",
            low=least,
            limit=limit,
            detail=detail,
            reason=f"{found.explain()} Measure it on the device: arena_used_bytes().",
        )
    # In very small models, the interpreter needs more to plan the arena than to use it.
    needed = max(found.used, found.smallest or 0)
    verdict = judge(needed, needed, limit)
    why = None
    if verdict == "fail" and limit is not None:
        more = format_size(needed) != format_size(found.used)
        why = (
            f"{format_size(needed)} are needed{' to allocate it' if more else ''}, the limit is "
            f"{format_size(limit)}. "
            + (f"Once allocated, {format_size(found.used)} are used. " if more else "")
            + found.explain()
        )
    detail = {
        "head": found.head,
        "tail": found.tail,
        "smallest": found.smallest,
        "peak_operator": found.peak_operator,
        "peak_operator_name": found.peak_operator_name,
        "peak_tensors": [{"name": b.name, "bytes": b.bytes} for b in found.peak_tensors],
        "core": profile.core,
        "kernels": kernels,
        "compared": found.verified,
        "notes": found.notes,
    }
    if memory is not None:
        detail |= {
            "decompression_memory": memory,
            "decompression_memory_used": found.decompression_memory,
        }
    return CheckResult(
        "arena",
        verdict,
        found.used,
        found.used,
        found.used,
        limit,
        "bytes",
        "computed",
        detail,
        why,
    )


def _latency(subject: Subject) -> CheckResult:
    """One inference takes no longer than its budget."""
    try:
        estimate = predict(subject.model, subject.profile, subject.settings.kernels)
    except EdgeCompressError as error:
        return CheckResult(
            "latency",
            "not_measured",
            limit=subject.budgets.max_latency,
            unit="microseconds",
            reason=str(error),
        )
    return _predicted_latency(subject, estimate)


def _predicted_latency(subject: Subject, estimate: LatencyEstimate) -> CheckResult:
    limit, profile = subject.budgets.max_latency, subject.profile
    costliest = sorted(
        (c for c in estimate.operators if c.instructions is not None),
        key=lambda cost: -(cost.instructions or 0),
    )
    detail: dict[str, Any] = {
        "class": estimate.calibration,
        "kernels": estimate.kernels,
        "known_from": _known_from(profile, estimate),
        "runtime": profile.cycles.runtime if profile.cycles and estimate.calibration else "",
        "instructions": estimate.instructions,
        "instruction_error": estimate.instruction_error,
        "weight_bytes": estimate.weight_bytes,
        "cycles_per_instruction": estimate.cycles_per_instruction,
        "cycles": estimate.cycles,
        "costliest": [
            {"index": c.index, "name": c.name, "output": c.output, "instructions": c.instructions}
            for c in costliest[:_COSTLIEST]
        ],
        "unknown": [f"operator {c.index} {c.name}: {c.reason}" for c in estimate.unknown],
    }
    typical, low, high = estimate.microseconds, estimate.low, estimate.high
    if typical is None or low is None or high is None:
        reason = estimate.reason
        verdict: Verdict = "not_measured"
        if limit is None and profile.clock_mhz is None:
            verdict, reason = (
                "not_applicable",
                "A bare core has no clock, so its latency is unknown.",
            )
        if limit is not None and low is not None and low > limit:
            verdict = "fail"
            reason = (
                f"It takes at least {format_time(low)}, the limit is {format_time(limit)}; how "
                f"much longer is not known. {estimate.reason}"
            )
        return CheckResult(
            "latency",
            verdict,
            None,
            low,
            None,
            limit,
            "microseconds",
            None if low is None else "predicted",
            detail,
            reason,
        )
    verdict = judge(low, high, limit)
    reason = None
    if limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "straddles"
        advice = "" if verdict == "fail" else " Measure it on the device to decide."
        reason = (
            f"{format_time(low)} to {format_time(high)} {does} the limit of {format_time(limit)} "
            f"(class {estimate.calibration}).{advice}"
        )
    return CheckResult(
        "latency",
        verdict,
        typical,
        low,
        high,
        limit,
        "microseconds",
        "predicted",
        detail,
        reason,
    )


def _known_from(profile: TargetProfile, estimate: LatencyEstimate) -> str:
    """Returns the basis of a prediction's cycles; "" if there are none."""
    if estimate.calibration is None:
        return ""
    if profile.calibration is not None and estimate.kernels == profile.kernels:
        return OWN_MEASUREMENT
    known = CALIBRATION_CLASSES[estimate.calibration]
    return known if profile.latency is not None else f"{known}, taken from {profile.core}"
