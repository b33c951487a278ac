"""What a model consists of: one row per layer or operator, totals, inputs and outputs.

`inspect_file` reads any model file, `inspect_tflite` a flatbuffer and `inspect_keras` a Keras 3 or
tf-keras model. Counts agree between a Keras model and its flatbuffer: weights are filters and
matrices (biases and batch normalization are parameters, not weights), and MACs are the
multiply-accumulates of one inference with padding counted as work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgecompress.core import isolation
from edgecompress.core.errors import ModelFileError, UnsupportedModelError
from edgecompress.core.files import compressed_size
from edgecompress.core.reading import open_file, read_bytes
from edgecompress.core.record import sidecar_path
from edgecompress.core.suppress_output import suppress_output
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.inspection.keras_models import inspect_keras
from edgecompress.inspection.table import render
from edgecompress.inspection.tflite import inspect_tflite
from edgecompress.inspection.types import (
    INSPECT_SCHEMA,
    Endpoint,
    Inspection,
    OperatorCount,
    Row,
)

__all__ = [
    "INSPECT_SCHEMA",
    "Endpoint",
    "Inspection",
    "OperatorCount",
    "Row",
    "inspect_file",
    "inspect_keras",
    "inspect_tflite",
    "render",
]


def inspect_file(
    path: Path | str, import_modules: Sequence[str] = (), verbose: bool = False
) -> Inspection:
    """Inspects a model file: .tflite, .keras or .h5.

    Args:
        path: The file. Keras files are read in a separate process.
        import_modules: Modules that register custom layers used by the file.
        verbose: Let the log of libraries through.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model.
        UnsupportedModelError: it is a SavedModel.

    Example:
        >>> inspect_file("kws_int8.tflite").macs  # doctest: +SKIP
        2656768
    """
    path = Path(path)
    if path.is_file():
        with open_file(path) as file:
            head = file.read(8)
        if path.suffix == ".tflite" or head[4:8] == b"TFL3":
            return inspect_tflite(read_tflite(path), name=path.name)
    elif not path.exists():
        raise ModelFileError(f"{path} does not exist. Check the path.")
    answer = isolation.call(
        f"{__name__}:inspect_isolated",
        {"path": str(path), "verbose": verbose},
        readable=[path, sidecar_path(path)],
        modules=import_modules,
        verbose=verbose,
    )
    return isolation.decode(Inspection, answer.value)


def inspect_isolated(
    path: str, verbose: bool, tell: Any = None, gaps: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Inspects a Keras file in the process that was started for it."""
    with suppress_output(verbose):
        found = _inspect_keras_file(Path(path))
    return isolation.encode(dataclasses.replace(found, notes=(*found.notes, *gaps))), {}


def _inspect_keras_file(path: Path) -> Inspection:
    from edgecompress.converters.loaders import load_model

    loaded = load_model(path)
    if loaded.flavour == "saved_model":
        raise UnsupportedModelError(
            f"{path} is a SavedModel, whose layers cannot be told apart. Export it and inspect the "
            ".tflite file."
        )
    inspection = inspect_keras(loaded.model, name=path.name)
    data = read_bytes(path) if path.is_file() else None
    return dataclasses.replace(
        inspection,
        file_bytes=None if data is None else len(data),
        compressed_bytes=None if data is None else compressed_size(data),
        notes=(*loaded.notes, *inspection.notes),
    )
