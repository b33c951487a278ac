"""`check`: a .tflite file against targets and budgets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.results import Report
from edgecompress.engines.run import engine_available, session
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.pipeline.measuring import Measurements
from edgecompress.pipeline.request import (
    check_flash_budget,
    check_kernels,
    labelled_data,
    load_profiles,
    parse_budgets,
    parse_memory,
    read_measured,
    silent,
)
from edgecompress.pipeline.scoring import parse_scoring
from edgecompress.pipeline.writing import run_checks, tool_version

if TYPE_CHECKING:
    from edgecompress.targets.profile import TargetProfile


def check(
    model: Path | str | bytes,
    targets: Sequence[str | Path | TargetProfile],
    *,
    evaluate: Any = None,
    max_flash: str | int | None = None,
    max_ram: str | int | None = None,
    max_latency: str | float | None = None,
    max_file_size: str | int | None = None,
    min_accuracy: float | None = None,
    metric: str | Sequence[str] | None = None,
    min_metric: Mapping[str, float] | Sequence[str] | None = None,
    max_metric: Mapping[str, float] | Sequence[str] | None = None,
    kernels: str | None = None,
    decompression_memory: str | int | None = None,
    measured: Path | str | None = None,
    progress: Callable[[str], None] = silent,
    argv: Sequence[str] = (),
) -> Report:
    """Checks a .tflite file against targets and budgets.

    Args:
        model: Path of a .tflite file, or its bytes.
        targets: Names, paths of .toml profiles, or profiles.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        max_flash: As in `export`, and so the other budgets.
        max_ram: Budget for the tensor arena.
        max_latency: Budget for one inference.
        max_file_size: Budget for the file.
        min_accuracy: Floor for the accuracy of every output that classifies, 0 to 1.
        metric: As in `export`, and so the limits of metrics.
        min_metric: Floors of metrics of which more is better.
        max_metric: Ceilings of errors.
        kernels: Kernel set of microcontrollers instead of the profile's.
        decompression_memory: As in `export`, for a file that decodes its weights.
        measured: As in `export`.
        progress: Called with a short text as each stage begins.
        argv: The command for the report.

    Returns:
        The report; `report.exit_code` is 0 where every limit of every target is kept.

    Raises:
        EdgeCompressError: an argument or the file is wrong.

    Example:
        >>> ec.check("kws_int8.tflite", ["cortex-m4"], max_ram="24KiB").verdict  # doctest: +SKIP
        'pass'
    """
    profiles = load_profiles(targets)
    budgets = parse_budgets(max_flash, max_ram, max_latency, max_file_size, min_accuracy)
    check_flash_budget(max_flash, profiles)
    asked = parse_scoring(min_accuracy, metric, min_metric, max_metric)
    check_kernels(kernels)
    memory = parse_memory(decompression_memory)
    timed = read_measured(measured, profiles)
    path = "model.tflite" if isinstance(model, bytes) else str(model)
    if Path(path).suffix in (".keras", ".h5"):
        raise ArgumentError(
            "FILE", "be a .tflite file", path, "Use `edgecompress export` for Keras models."
        )
    flat = read_tflite(model)
    labelled = None
    if evaluate is not None:
        labelled = labelled_data(evaluate, flat, None, None)
    measurements = Measurements(flat.data, progress, labelled, asked)
    with session() as shared:
        for engine in sorted({profile.engine for profile in profiles}):
            if engine_available(engine) is None:
                progress(f"Loading the file in {engine}")
                measurements.try_loading(engine)
        results, model_info = run_checks(
            flat,
            profiles,
            budgets,
            kernels,
            measurements,
            lambda profile: [],
            path,
            progress,
            memory,
            timed,
        )
    return Report(
        model_info,
        results,
        tuple(argv) or tuple(sys.argv),
        tool_version(),
        notes=(*_subgraph_notes(flat), *shared.gaps),
    )


def _subgraph_notes(flat: FlatModel) -> list[str]:
    if flat.subgraphs == 1:
        return []
    return [
        f"The model has {flat.subgraphs} subgraphs: parameters and MACs are those of the first, "
        "operators and the code in flash those of all."
    ]
