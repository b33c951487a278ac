"""The checks: one small rule each, and the verdict of all of them on one target.

A rule is a function whose docstring is the rule. It reports the value, how it is known and the band
it lies in, and falls a verdict only where the whole band lies on one side of the limit. What cannot
be known is `not_measured` with a reason; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.registry import Registry
from edgecompress.core.results import CheckResult, TargetResult, Verdict, judge
from edgecompress.core.units import format_size, format_time
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.targets.measurement_checks import memory_check
from edgecompress.targets.operators import (
    OperatorProblem,
    unmeasured,
    unsupported,
    wrong_results,
)
from edgecompress.targets.profile import (
    CALIBRATION_CLASSES,
    OWN_MEASUREMENT,
    Budgets,
    TargetProfile,
    check_choice,
)
from edgecompress.targets.tflm.arena import KERNELS, compute_arena
from edgecompress.targets.tflm.flash import FlashEstimate, estimate_flash
from edgecompress.targets.tflm.latency import LatencyEstimate, predict

if TYPE_CHECKING:
    from edgecompress.targets.bench import HostLatency

__all__ = ["RULES", "Budgets", "Subject", "check"]

# How many operators a check names; the rest is counted.
_NAMED = 3
_COSTLIEST = 5


@dataclass(frozen=True)
class Subject:
    """What a rule looks at.

    Attributes:
        model: The file.
        profile: The target.
        budgets: The limits: the user's, filled up with the target's own.
        kernels: Kernel set on a microcontroller; None elsewhere.
        host_latency: What was measured on this machine; None where nothing was.
        decompression_memory: Bytes outside the arena that the firmware has for decoded weights;
            None where it has none.
        ran: Whether the target's engine has run this very file on this computer.
    """

    model: FlatModel
    profile: TargetProfile
    budgets: Budgets
    kernels: str | None
    host_latency: HostLatency | None = None
    decompression_memory: int | None = None
    ran: bool = False


RULES: Registry[Callable[[Subject], CheckResult]] = Registry("rule")


def _no_microcontroller(subject: Subject, what: str) -> str:
    name = "This computer" if subject.profile.kind == "host" else subject.profile.title
    return f"{name} is no microcontroller: {what}."


@RULES.register("file_size")
def file_size(subject: Subject) -> CheckResult:
    """The .tflite file is no larger than its budget."""
    size, limit = len(subject.model.data), subject.budgets.max_file_size
    verdict = judge(size, size, limit)
    reason = None
    if verdict == "fail" and limit is not None:
        reason = f"The file has {format_size(size)}, the budget is {format_size(limit)}."
    return CheckResult(
        "file_size", verdict, size, size, size, limit, "bytes", "computed", {}, reason
    )


# The core that code sizes were linked for.
_FLASH_CORE = "cortex-m4"
# Where the range is no bound, the code may take this many times as much before a limit counts as
# kept, and on another core this part of it before one counts as broken. Of the operators outside
# the table one was linked, an LSTM with the reference kernels: 1.16 times the upper end.
_FLASH_ROOM = 1.5


def _flash_gaps(subject: Subject, estimate: FlashEstimate) -> list[str]:
    """Returns why the upper end of the code's range is no bound; nothing where it is one."""
    gaps = []
    if estimate.unmeasured:
        names = ", ".join(estimate.unmeasured[:_NAMED])
        more = len(estimate.unmeasured) - _NAMED
        gaps.append(f"no code was linked for {names}{f' and {more} more' if more > 0 else ''}")
    core = subject.profile.core
    if core != _FLASH_CORE:
        gaps.append(f"nothing was linked for {core}")
    return gaps


@RULES.register("flash")
def flash(subject: Subject) -> CheckResult:
    """The file and the code that runs it fit into the flash."""
    if subject.kernels is None:
        return CheckResult(
            "flash",
            "not_applicable",
            reason=_no_microcontroller(subject, "the model lies in a file system"),
        )
    limit = subject.budgets.max_flash
    estimate = estimate_flash(subject.model, subject.kernels)
    gaps = _flash_gaps(subject, estimate)
    most = estimate.model_bytes + estimate.code_high * (_FLASH_ROOM if gaps else 1)
    other_core = subject.profile.core != _FLASH_CORE
    least = estimate.model_bytes + estimate.code_low / (_FLASH_ROOM if other_core else 1)
    verdict = judge(least, most, limit)
    reason = None
    if limit is not None and verdict in ("fail", "uncertain"):
        does = "is above" if verdict == "fail" else "lies around"
        if verdict == "uncertain" and not estimate.low <= limit < estimate.high:
            does = "is a range without bounds, too near"
        reason = (
            f"{format_size(estimate.low)} to {format_size(estimate.high)} {does} the limit of "
            f"{format_size(limit)}: the file has {format_size(estimate.model_bytes)}, the code "
            f"{format_size(estimate.code_low)} to {format_size(estimate.code_high)}."
        )
    detail = {
        "model_bytes": estimate.model_bytes,
        "code_low": estimate.code_low,
        "code_high": estimate.code_high,
        "kernels": subject.kernels,
        "code_measured_on": _FLASH_CORE,
        "unmeasured_operators": estimate.unmeasured,
        "bound": not gaps,
        "range": (
            f"Code as linked for {_FLASH_CORE}: from the interpreter with its largest operator to "
            "the plain sum over all operators."
            + (f" No bound here: {'; '.join(gaps)}." if gaps else "")
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


@RULES.register("arena")
def arena(subject: Subject) -> CheckResult:
    """The tensor arena fits into the RAM."""
    profile, limit = subject.profile, subject.budgets.max_ram
    if subject.kernels is None or profile.core is None:
        return _process_memory(subject)
    memory = subject.decompression_memory
    found = compute_arena(subject.model, profile.core, subject.kernels, memory)
    if found.used is None:
        least = found.at_least
        detail: dict[str, Any] = {
            "core": profile.core,
            "kernels": subject.kernels,
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
    # In very small models the interpreter needs more to plan the arena than to use it.
    needed = max(found.used, found.smallest or 0)
    verdict = judge(needed, needed, limit)
    why = None
    if verdict == "fail" and limit is not None:
        why = (
            f"{format_size(needed)} are needed, the limit is {format_size(limit)}. "
            f"{found.explain()}"
        )
    detail = {
        "head": found.head,
        "tail": found.tail,
        "smallest": found.smallest,
        "peak_operator": found.peak_operator,
        "peak_operator_name": found.peak_operator_name,
        "peak_tensors": [{"name": b.name, "bytes": b.bytes} for b in found.peak_tensors],
        "core": profile.core,
        "kernels": subject.kernels,
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


def _process_memory(subject: Subject) -> CheckResult:
    limit, timed = subject.budgets.max_ram, subject.host_latency
    why = _no_microcontroller(subject, "its runtime takes memory as it needs it")
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


@RULES.register("latency")
def latency(subject: Subject) -> CheckResult:
    """One inference takes no longer than its budget."""
    if subject.profile.kind == "host":
        return _host_latency(subject)
    if subject.kernels is None:
        limit = subject.budgets.max_latency
        return CheckResult(
            "latency",
            # No phone's latency is known before a run on it: without a limit nobody asked.
            "not_applicable" if limit is None else "not_measured",
            limit=limit,
            unit="microseconds",
            reason=(
                f"Only a run on the {subject.profile.title} itself tells: no published result "
                "covers today's LiteRT on it. `edgecompress bench --adb` measures it."
            ),
        )
    try:
        estimate = predict(subject.model, subject.profile, subject.kernels)
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
            verdict, reason = "not_applicable", "A bare core has no clock, so no model a time."
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
        does = "is above" if verdict == "fail" else "lies around"
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
    """Returns what the cycles of a prediction stand on; "" where there are none."""
    if estimate.calibration is None:
        return ""
    if profile.calibration is not None and estimate.kernels == profile.kernels:
        return OWN_MEASUREMENT
    known = CALIBRATION_CLASSES[estimate.calibration]
    return known if profile.latency is not None else f"{known}, taken from {profile.core}"


def _host_latency(subject: Subject) -> CheckResult:
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
        does = "is above" if verdict == "fail" else "lies around"
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


@RULES.register("operators")
def operators(subject: Subject) -> CheckResult:
    """The target's runtime has every operator of the model, and is not known to be wrong."""
    model, profile, kernels = subject.model, subject.profile, subject.kernels
    graphs = (model, *model.others)
    missing = _in_all(graphs, lambda graph: unsupported(graph, profile, kernels))
    wrong = _in_all(graphs, lambda graph: wrong_results(graph, profile, kernels))
    unknown = _in_all(graphs, lambda graph: unmeasured(graph, profile, kernels, ran=subject.ran))
    unread = model.subgraphs - len(graphs)
    verdict: Verdict = "fail" if missing else "uncertain" if wrong or unknown or unread else "pass"
    shown = missing or [*wrong, *unknown]
    named = shown[:_NAMED]
    more = len(shown) - len(named)
    reason = None
    if named:
        texts = (f"subgraph {n}, {problem}" if n else str(problem) for n, problem in named)
        also = f"; and {more} more" if more else ""
        reason = f"{'; '.join(texts)}{also}."
    elif unread:
        reason = f"{unread} of {model.subgraphs} subgraphs could not be looked at."
    detail = {
        "engine": profile.engine,
        "kernels": kernels,
        "ran_here": subject.ran,
        "unsupported": [{"subgraph": n, **vars(problem)} for n, problem in missing],
        "wrong_results": [{"subgraph": n, **vars(problem)} for n, problem in wrong],
        "not_measured": [{"subgraph": n, **vars(problem)} for n, problem in unknown],
        "subgraphs": model.subgraphs,
    }
    count = len(missing)
    return CheckResult(
        "operators", verdict, count, count, count, 0, "operators", "computed", detail, reason
    )


def _in_all(
    graphs: Sequence[FlatModel], find: Callable[[FlatModel], Sequence[OperatorProblem]]
) -> list[tuple[int, OperatorProblem]]:
    """Returns what a search finds in each subgraph, with the subgraph's number."""
    return [(number, problem) for number, graph in enumerate(graphs) for problem in find(graph)]


def _with_floor(result: CheckResult, floor: float | None) -> CheckResult:
    """Judges an accuracy that came without a limit against the target's own."""
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
    kernels: str | None = None,
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
        kernels: `cmsis-nn` or `reference` on microcontrollers. Defaults to the profile's.
        host_latency: What `bench_host` measured, for the host target. Defaults to not measured.
        extra: Results that need data or an engine (accuracy, parity), or a latency measured on the
            device; each replaces this module's own result of the same rule.
        decompression_memory: Bytes outside the tensor arena that the firmware hands to
            `SetDecompressionMemory`. Decoded weights that fit count there and not in the arena;
            the result's detail says how much they take. Defaults to None: they lie in the arena.
        ran: Whether the target's engine has run this very file on this computer.

    Returns:
        One result for each rule, in the order of `RULES`, then the extra ones.

    Raises:
        UnknownNameError: `kernels` is no kernel set.
        ArgumentError: `decompression_memory` is less than 1.

    Example:
        >>> board = load_target("nucleo-l4r5zi")  # doctest: +SKIP
        >>> check(read_tflite("kws.tflite"), board, Budgets(max_ram=16384)).verdict
        ... # doctest: +SKIP
        'fail'
    """
    if kernels is not None:
        check_choice("--kernels", kernels, KERNELS)
    limits = (budgets or Budgets()).over(profile.limits)
    subject = Subject(
        model,
        profile,
        limits,
        (kernels or profile.kernels) if profile.is_microcontroller else None,
        host_latency,
        decompression_memory,
        ran,
    )
    given = [
        _with_floor(result, limits.min_accuracy) if result.rule == "accuracy" else result
        for result in extra
    ]
    if limits.min_accuracy is not None and not any(
        result.rule == "accuracy" and result.limit is not None for result in given
    ):
        values = any(result.detail.get("task") == "values" for result in given)
        given.append(_accuracy_missing(limits.min_accuracy, values))
    rules = {result.rule for result in given}
    results = [rule(subject) for name, rule in RULES.items() if name not in rules]
    return TargetResult(profile.name, (*results, *given))
