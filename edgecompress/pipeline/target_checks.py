"""The checks of all targets, and the key figures of the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import CheckResult, ModelInfo, TargetResult
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.pipeline.measuring import Measurements

if TYPE_CHECKING:
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.profile import TargetProfile


def run_checks(
    file: Artifact,
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    options: Mapping[str, Any],
    measurements: Measurements,
    more: Callable[[TargetProfile], list[CheckResult]],
    progress: Callable[[str], None],
    decompression_memory: int | None = None,
    measured: MeasurementFile | None = None,
) -> tuple[TargetResult, ...]:
    """Returns what every rule found on every target.

    Args:
        file: The file that ships.
        profiles: The targets.
        budgets: The user's limits.
        options: Name -> value of the options of families and rules.
        measurements: The runs of the file.
        more: Further checks of a target.
        progress: Called with a short text as each target begins.
        decompression_memory: Bytes that microcontrollers have for decoded weights.
        measured: A measurement on one of the targets.
    """
    from edgecompress.targets.checks import check as check_target
    from edgecompress.targets.family import family_of
    from edgecompress.targets.measurement_checks import measured_checks

    arenas = any(family_of(profile).has_arena for profile in profiles)
    results = []
    for profile in profiles:
        progress(f"Checking {profile.name}")
        floor = budgets.over(profile.limits).min_accuracy
        extra = [*measurements.accuracy(profile.engine, floor), *more(profile)]
        limits = budgets
        family = family_of(profile)
        if arenas and not family.has_arena:
            # With a microcontroller, the limit refers to its arena, not to a process.
            limits = dataclasses.replace(budgets, max_ram=None)
        given: tuple[CheckResult, ...] = ()
        if measured is not None:
            given = measured_checks(measured, file.sha256, profile, limits.over(profile.limits))
        extra += given
        latency = None
        if not given and family.measured == "measured_host":
            latency = measurements.host_latency(profile.engine)
        result = check_target(
            file.flat,
            profile,
            limits,
            options=options,
            host_latency=latency,
            extra=extra,
            decompression_memory=decompression_memory if family.has_arena else None,
            ran=profile.engine in measurements.ran,
        )
        if refusal := measurements.refusals.get(profile.engine):
            result = _refused(result, refusal)
        elif reason := measurements.not_run.get(profile.engine):
            result = _not_run(result, reason)
        results.append(result)
    return tuple(results)


def model_info(file: Artifact, path: str, parameters: int | None = None) -> ModelInfo:
    """Returns the key figures of the file.

    Args:
        file: The file that ships.
        path: Where it is.
        parameters: Number of its weights, if the file does not show it.
    """
    flat = file.flat
    return ModelInfo(
        path=path,
        sha256=file.sha256,
        file_bytes=len(file.data),
        compressed_bytes=file.compressed_bytes,
        macs=flat.macs(),
        parameters=flat.parameters() if parameters is None else parameters,
        operators=flat.histogram(),
        binary_macs=flat.binary_macs(),
    )


def _refused(result: TargetResult, refusal: str) -> TargetResult:
    """Lets the engine's refusal override the operator table, which found nothing wrong."""
    checks = tuple(
        dataclasses.replace(
            check,
            verdict="fail",
            measured=None,
            low=1,
            high=None,
            how_known="measured_host",
            reason=refusal,
        )
        if check.rule == "operators" and check.verdict != "fail"
        else check
        for check in result.checks
    )
    return dataclasses.replace(result, checks=checks)


def _not_run(result: TargetResult, reason: str) -> TargetResult:
    """Leaves the operators undecided if the engine could not be run."""
    checks = tuple(
        dataclasses.replace(check, verdict="uncertain", reason=reason)
        if check.rule == "operators" and check.verdict != "fail"
        else check
        for check in result.checks
    )
    return dataclasses.replace(result, checks=checks)
