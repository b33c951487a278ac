"""Checks of the targets, and the files that an export writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.core.files import sha256
from edgecompress.core.record import CompressionRecord, sidecar_path, sidecar_text
from edgecompress.core.results import (
    ArtifactInfo,
    CheckResult,
    ModelInfo,
    Report,
    TargetResult,
)
from edgecompress.flatbuffers.artifact import Artifact
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.pipeline.measuring import Measurements

if TYPE_CHECKING:
    from edgecompress.converters.verify import Parity
    from edgecompress.targets.checks import Budgets
    from edgecompress.targets.measurement import MeasurementFile
    from edgecompress.targets.profile import TargetProfile


def run_checks(
    flat: FlatModel,
    profiles: Sequence[TargetProfile],
    budgets: Budgets,
    kernels: str | None,
    measurements: Measurements,
    more: Callable[[TargetProfile], list[CheckResult]],
    path: str,
    progress: Callable[[str], None],
    decompression_memory: int | None = None,
    measured: MeasurementFile | None = None,
) -> tuple[tuple[TargetResult, ...], ModelInfo]:
    """Returns what every rule found on every target, and the facts of the file."""
    from edgecompress.targets.checks import check as check_target
    from edgecompress.targets.measurement import measured_checks

    boards = any(profile.is_microcontroller for profile in profiles)
    results = []
    for profile in profiles:
        progress(f"Checking {profile.name}")
        floor = budgets.over(profile.limits).min_accuracy
        extra = [*measurements.accuracy(profile.engine, floor), *more(profile)]
        limits = budgets
        if boards and not profile.is_microcontroller:
            # Beside a microcontroller the limit is meant for its arena, not for a process.
            limits = dataclasses.replace(budgets, max_ram=None)
        given: tuple[CheckResult, ...] = ()
        if measured is not None:
            given = measured_checks(
                measured, sha256(flat.data), profile, limits.over(profile.limits)
            )
        extra += given
        latency = None
        if not given and profile.kind == "host":
            latency = measurements.host_latency(profile.engine)
        result = check_target(
            flat,
            profile,
            limits,
            kernels=kernels,
            host_latency=latency,
            extra=extra,
            decompression_memory=decompression_memory if profile.is_microcontroller else None,
            ran=profile.engine in measurements.ran,
        )
        if refusal := measurements.refusals.get(profile.engine):
            result = _refused(result, refusal)
        elif reason := measurements.not_run.get(profile.engine):
            result = _not_run(result, reason)
        results.append(result)
    artifact = Artifact("tflite", flat.data, path)
    info = ModelInfo(
        path=path,
        sha256=artifact.sha256,
        file_bytes=len(flat.data),
        compressed_bytes=artifact.compressed_bytes,
        macs=flat.macs(),
        parameters=flat.parameters(),
        operators=flat.histogram(),
        binary_macs=flat.binary_macs(),
    )
    return tuple(results), info


def _refused(result: TargetResult, refusal: str) -> TargetResult:
    """Lets the engine's refusal stand above the table of operators, which found nothing wrong."""
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
    """Leaves the operators undecided where the engine could not be asked."""
    checks = tuple(
        dataclasses.replace(check, verdict="uncertain", reason=reason)
        if check.rule == "operators" and check.verdict != "fail"
        else check
        for check in result.checks
    )
    return dataclasses.replace(result, checks=checks)


def html_page(
    report: Report,
    flat: FlatModel,
    profiles: Sequence[TargetProfile],
    kernels: str | None,
    baseline: Report | None,
    history: Mapping[str, Sequence[float]] | None,
    layered: Parity | None,
) -> str:
    """Returns the HTML page of a report."""
    from edgecompress.inspection import inspect_tflite
    from edgecompress.reports.html import render_html

    return render_html(
        report,
        inspection=inspect_tflite(flat),
        flat=flat,
        profiles=profiles,
        kernels=kernels,
        baseline=baseline,
        history=history,
        layers=[(e.name, e.sqnr_db) for e in layered.layers] if layered else (),
        title=Path(report.model.path).name,
    )


def c_source_files(
    data: bytes,
    name: str,
    profiles: Sequence[TargetProfile],
    kernels: str | None,
    results: Sequence[TargetResult],
    decompression_memory: int | None = None,
) -> dict[str, str]:
    """Returns the C++ sources, path -> text, with the largest arena that any target needs."""
    from edgecompress.converters import c_array

    arenas: dict[int, TargetProfile] = {}
    for profile, result in zip(profiles, results, strict=True):
        for found in result.checks:
            if found.rule == "arena" and found.measured is not None:
                size = max(int(found.measured), found.detail["smallest"] or 0)
                arenas[size] = profile
    microcontroller = next(p for p in profiles if p.is_microcontroller)
    largest = max(arenas, default=None)
    profile = microcontroller if largest is None else arenas[largest]
    files = c_array.generate(
        data,
        name=name,
        arena_bytes=largest,
        kernels=kernels or profile.kernels or "reference",
        core=profile.core,
        decompression_memory=decompression_memory,
    )
    return {f"c/{path}": text for path, text in files.items()}


def export_files(
    artifacts: Sequence[Artifact],
    name: str,
    sources: Mapping[str, str],
    report: Report,
    page: str,
    extra: Mapping[str, bytes | str] | None = None,
) -> dict[str, bytes | str]:
    """Returns all files of an export, path -> content; `extra` are further ones."""
    files: dict[str, bytes | str] = {}
    for artifact in artifacts:
        file = artifact.file_name(name)
        files[file] = artifact.data
        # A model in memory always has a record; an empty one says nothing.
        if artifact.record not in (None, CompressionRecord()):
            files[sidecar_path(Path(file)).name] = sidecar_text(artifact.record, artifact.data)
    # Where files take their places one by one, who finds a report.json finds all that it lists.
    return files | {
        **sources, **(extra or {}), "report.html": page, "report.json": report.to_json(),
    }  # fmt: skip


def tool_version() -> str:
    """Returns the version of edgecompress."""
    from importlib.metadata import version

    return version("edgecompress")


def listing(
    artifacts: Sequence[Artifact],
    name: str,
    sources: Mapping[str, str],
    latencies: Mapping[str, float] | None = None,
) -> tuple[ArtifactInfo, ...]:
    """Returns the files of an export as its report lists them.

    Args:
        artifacts: The flatbuffers.
        name: Name of the files.
        sources: The C++ sources, path -> text.
        latencies: Kind of flatbuffer -> microseconds on this computer. Optional.
    """
    files = [
        ArtifactInfo(
            a.file_name(name),
            a.kind,
            len(a.data),
            a.sha256,
            a.notes,
            a.compressed_bytes,
            (latencies or {}).get(a.kind),
        )
        for a in artifacts
    ]
    texts = [(path, text.encode()) for path, text in sources.items()]
    files += [ArtifactInfo(path, "c_source", len(data), sha256(data)) for path, data in texts]
    return tuple(files)
