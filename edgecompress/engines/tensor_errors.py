"""How far the tensors of one model are from those of another, computed where the engine runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgecompress.core.errors import EngineError
from edgecompress.core.folders import temporary_folder
from edgecompress.engines.registry import ENGINES
from edgecompress.engines.run import start_job
from edgecompress.flatbuffers.all_outputs import with_outputs
from edgecompress.flatbuffers.model import FlatModel


def tensor_errors(
    name: str,
    models: tuple[FlatModel, FlatModel],
    inputs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    pairs: Sequence[tuple[int, int]],
    timeout_s: float = 120.0,
) -> list[tuple[float, float]]:
    """Runs two models on the same samples and compares pairs of their tensors.

    Only sums leave the engine's process: the values of all tensors may take gigabytes.

    Args:
        name: An engine whose interpreter is `lite`.
        models: The exact model and the rounded one.
        inputs: The inputs of each, as for `run_engine`.
        pairs: A tensor of the first model, and one of the second with as many elements; both are
            computed in inference.
        timeout_s: As for `run_engine`.

    Returns:
        For each pair, over all samples: the sum of the squares of the exact values, and that of
        the differences of the real values.

    Raises:
        ArgumentError, EngineError, MissingDependencyError: as for `run_engine`.
    """
    first, second = (
        with_outputs(model, [pair[at] for pair in pairs]) for at, model in enumerate(models)
    )
    with temporary_folder() as place:
        folder = str(place)
        files: list[list[str]] = []
        for number, arrays in enumerate(inputs):
            files.append([])
            for position, array in enumerate(arrays):
                files[-1].append(os.path.join(folder, f"input_{number}_{position}.npy"))
                np.save(files[-1][-1], array)
        partner = Path(folder) / "partner.tflite"
        partner.write_bytes(second)
        scaled = []
        for exact, rounded in pairs:
            tensor = models[1].tensors[rounded]
            zero_point = tensor.zero_points[0] if tensor.zero_points else 0
            scaled.append((exact, rounded, tensor.scales[0] if tensor.scales else 0.0, zero_point))
        job = {
            "mode": "compare",
            "inputs": files[0],
            "partner": str(partner),
            "partner_inputs": files[1],
            "pairs": scaled,
        }
        result = start_job(ENGINES[name], folder, job, first, timeout_s)["result"]
    try:
        sums = [
            (float(s), float(n)) for s, n in zip(result["signal"], result["noise"], strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"The engine left no result that can be read: {error}") from error
    if len(sums) != len(pairs):
        raise EngineError(f"The engine compared {len(sums)} tensors instead of {len(pairs)}.")
    return sums
