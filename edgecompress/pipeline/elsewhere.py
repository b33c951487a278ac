"""Models on other Keras backends: saved to a file, which is built as any file is, on TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.folders import temporary_folder
from edgecompress.pipeline.request import BuildRequest, check_name


def on_another_backend(model: Any) -> bool:
    """Returns whether a model is a Keras 3 model in a process whose backend is not TensorFlow."""
    keras = sys.modules.get("keras")
    return (
        keras is not None
        and isinstance(model, keras.Model)
        and keras.backend.backend() != "tensorflow"
    )


@contextlib.contextmanager
def as_file(request: BuildRequest) -> Iterator[BuildRequest]:
    """Returns a request for the same, of a model file that exists meanwhile.

    Raises:
        ArgumentError: the model's name is no file name, or data are a generator or a dataset.
    """
    name = request.name or request.model.name
    check_name(name)
    with temporary_folder() as folder:
        path = folder / "model.keras"
        request.model.save(path)
        yield dataclasses.replace(
            request,
            model=path,
            name=name,
            calibration=_arrays(request.calibration, "calibration"),
            evaluate=_arrays(request.evaluate, "evaluate"),
        )


def _arrays(data: Any, argument: str) -> Any:
    """Returns data that a process without this backend can read: numpy arrays, or a path."""
    import keras
    import numpy as np

    if data is None or isinstance(data, (str, Path)):
        return data
    if isinstance(data, Mapping):
        return {key: _arrays(value, argument) for key, value in data.items()}
    # A list of numbers is one array.
    several = isinstance(data, list) and any(hasattr(part, "__array__") for part in data)
    if several or isinstance(data, tuple):
        return type(data)(_arrays(part, argument) for part in data)
    array = np.asarray(data)
    if array.dtype == object:
        raise ArgumentError(
            argument,
            f"be arrays or the path of a file on Keras's {keras.backend.backend()} backend",
            type(data).__name__,
            "The model is converted in another process, on TensorFlow.",
        )
    return array
