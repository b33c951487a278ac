"""`check`: a .tflite file against targets and budgets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.core.results import Report
from edgecompress.pipeline.builder import build
from edgecompress.pipeline.request import build_request, silent
from edgecompress.pipeline.writer import report_of

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
    operators: Any = None,
    max_energy: str | float | None = None,
    power: str | float | None = None,
    decompression_memory: str | int | None = None,
    measured: Path | str | None = None,
    progress: Callable[[str], None] = silent,
    argv: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Checks a .tflite file against targets and budgets.

    Args:
        model: Path of a .tflite file, or its bytes.
        targets: Names, paths of .toml profiles, or profiles.
        evaluate: Labelled data for the accuracy check: (x, y), or the path of an .npz file.
        max_flash: As in `export`, like the other budgets.
        max_ram: Budget for the tensor arena.
        max_latency: Budget for one inference.
        max_file_size: Budget for the file.
        min_accuracy: Floor for the accuracy of every classifying output, 0 to 1.
        metric: As in `export`, like the limits of metrics.
        min_metric: Floors of metrics where higher is better.
        max_metric: Ceilings of errors.
        kernels: Kernel set of microcontrollers instead of the profile's.
        operators: What the firmware has of its runtime's operators: the name of a list, or the path
            of a .toml file; a file with any other fails. Defaults to all.
        max_energy: Budget for the energy of one inference.
        power: What the board draws while a model runs. Defaults to published results.
        decompression_memory: As in `export`, for a file that decodes its weights.
        measured: As in `export`.
        progress: Called with a short text as each stage begins.
        argv: The command for the report.
        options: Those of plugins: families of targets and rules.

    Returns:
        The report; `report.exit_code` is 0 if every limit of every target is met.

    Raises:
        EdgeCompressError: an argument or the file is wrong.

    Example:
        >>> ec.check("kws_int8.tflite", ["cortex-m4"], max_ram="24KiB").verdict  # doctest: +SKIP
        'pass'
    """
    request = build_request(
        model,
        targets,
        file_format=None,
        evaluate=evaluate,
        max_flash=max_flash,
        max_ram=max_ram,
        max_latency=max_latency,
        max_file_size=max_file_size,
        min_accuracy=min_accuracy,
        metric=metric,
        min_metric=min_metric,
        max_metric=max_metric,
        options={
            **options,
            "kernels": kernels,
            "operators": operators,
            "max_energy": max_energy,
            "power": power,
        },
        decompression_memory=decompression_memory,
        measured=measured,
    )
    return report_of(build(request, progress), argv=tuple(argv) or tuple(sys.argv))
