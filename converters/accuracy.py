"""Top-1 accuracy of a flatbuffer, measured in an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.real_values import dequantize, listed, quantized_inputs
from edgecompress.core.errors import ArgumentError
from edgecompress.engines.registry import LITERT
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of a flatbuffer; `float(accuracy)` is the share.

    Attributes:
        engine: The engine's registered name.
        version: Version of the engine's package.
        samples: Number of samples.
        top1: Share of samples whose largest output is the label's, 0 to 1.
    """

    engine: str
    version: str
    samples: int
    top1: float

    def __float__(self) -> float:
        """Returns the share."""
        return self.top1


def accuracy(
    model: bytes,
    x: np.ndarray | Sequence[np.ndarray],
    y: np.ndarray,
    engine: str = LITERT,
    *,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
) -> Accuracy:
    """Returns the top-1 accuracy of a flatbuffer, measured in an engine.

    Args:
        model: The .tflite file's bytes; integer or float.
        x: Inputs as real numbers, one array (samples, ...) or one for each input.
        y: Class numbers (samples,) or (samples, 1), or one-hot rows (samples, classes). A model
            with one output is treated as a sigmoid: class 1 from 0.5 up.
        engine: Which engine runs the file. Defaults to `litert`.
        timeout_s: Seconds without a finished sample after which the engine is stopped.
        progress: Called with (finished samples, all samples).

    Raises:
        ArgumentError: the labels do not fit the samples or the model's outputs.
        EngineError, MissingDependencyError: see `run_engine`.

    Example:
        >>> float(accuracy(int8, x_test, y_test))  # doctest: +SKIP
        0.9132
    """
    flat = read_tflite(model)
    arrays = listed(x)
    run = run_engine(
        engine, model, quantized_inputs(flat, arrays), timeout_s=timeout_s, progress=progress
    )
    tensor = flat.tensors[flat.outputs[0]]
    total = len(arrays[0])
    outputs = dequantize(run.outputs[0], tensor).reshape(total, -1)
    return Accuracy(run.engine, run.version, total, top1(outputs, y))


def top1(outputs: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of samples whose largest output is the label's.

    Args:
        outputs: Real numbers (samples, classes), or (samples, 1) of a sigmoid.
        y: Labels as in `accuracy`.

    Raises:
        ArgumentError: the labels do not fit the outputs.

    Example:
        >>> top1(np.array([[0.2, 0.8], [0.9, 0.1]]), np.array([1, 1]))
        0.5
    """
    total = len(outputs)
    outputs = outputs.reshape(total, -1)
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if labels.shape[1] != outputs.shape[1]:
            raise ArgumentError(
                "y", f"have one column for each of the {outputs.shape[1]} outputs", labels.shape
            )
        labels = labels.argmax(1)
    labels = labels.reshape(-1) if labels.size == total else labels
    if labels.shape != (total,):
        raise ArgumentError("y", f"hold one label for each of the {total} samples", labels.shape)
    classes = max(outputs.shape[1], 2)
    if not np.array_equal(labels, labels.astype(np.int64)) or not (
        labels.min() >= 0 and labels.max() < classes
    ):
        raise ArgumentError(
            "y",
            f"hold class numbers from 0 to {classes - 1}",
            f"values from {labels.min()} to {labels.max()}",
        )
    if outputs.shape[1] == 1:
        predicted = (outputs[:, 0] >= 0.5).astype(np.int64)
    else:
        predicted = outputs.argmax(1)
    return float(np.mean(predicted == labels))
