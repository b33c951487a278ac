"""Computes a .tflite file operator by operator with the integer arithmetic of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.flatbuffers.model import FlatModel

# Registers the kernels.
from edgecompress.simulation import (  # noqa: F401
    elementwise,
    functions,
    moves,
    pooling,
    recurrent,
    resizing,
    weighted,
)
from edgecompress.simulation.kernels import KERNELS, Call, numpy_type, run_operator, zero_point

# Elements of the largest tensor that are computed at a time, in all samples together.
_CHUNK = 2_000_000


def require_engine(engine: str) -> None:
    """Refuses the name of an engine whose arithmetic is not known.

    Raises:
        ArgumentError: it is not known.
    """
    if engine not in KERNELS:
        raise ArgumentError("engine", f"be {' or '.join(map(repr, KERNELS))}", engine)


def check(flat: FlatModel, engine: str) -> None:
    """Refuses a file with an operator that has no kernel here, before anything is computed.

    Raises:
        ArgumentError: the engine is unknown.
        UnsupportedModelError: the file has several subgraphs or such an operator.
    """
    require_engine(engine)
    if flat.subgraphs > 1:
        raise UnsupportedModelError("A file of several subgraphs (loops) cannot be simulated.")
    for operator in flat.operators:
        if operator.name not in KERNELS[engine]:
            run_operator(Call(engine, flat, operator, ()))


def run(
    flat: FlatModel, engine: str, inputs: Sequence[np.ndarray], tensors: Iterable[int] = ()
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """Returns what an engine computes of a file, bit for bit where the engine's kernels are known.

    Variables are as after a reset in every sample.

    Args:
        flat: The file; one subgraph, no dynamic shapes.
        engine: `litert` (XNNPACK on x86-64) or `tflm` (the reference kernels).
        inputs: One array for each input, in its type; shape (samples, *shape), where a leading 1 of
            the input's shape may be left out.
        tensors: Indices of further tensors to return.

    Returns:
        The outputs, and the values of `tensors`. As in `engines.run`, the samples replace a leading
        axis of 1.

    Raises:
        ArgumentError: the engine is unknown, or the inputs do not fit the file.
        UnsupportedModelError: an operator's arithmetic is not known; names it.
    """
    check(flat, engine)
    arrays = _fitted(flat, inputs)
    samples = len(arrays[0]) if arrays else 1
    wanted = [*flat.outputs, *tensors]
    largest = max((t.elements for t in flat.tensors if not t.is_constant), default=1)
    step = max(_CHUNK // max(largest, 1), 1)
    parts: list[Mapping[int, np.ndarray]] = []
    for start in range(0, samples, step):
        chunk = [array[start : start + step] for array in arrays]
        parts.append(_run_chunk(flat, engine, chunk, wanted))
    values = {index: np.concatenate([part[index] for part in parts]) for index in wanted}
    values = {index: _without_batch(value) for index, value in values.items()}
    return [values[i] for i in flat.outputs], {index: values[index] for index in tensors}


def _run_chunk(
    flat: FlatModel, engine: str, inputs: Sequence[np.ndarray], wanted: Sequence[int]
) -> dict[int, np.ndarray]:
    values: dict[int, np.ndarray] = dict(zip(flat.inputs, inputs, strict=True))
    last = _last_uses(flat, wanted)
    for operator in flat.operators:
        sources = tuple(_source(flat, values, index) for index in operator.inputs)
        results = run_operator(Call(engine, flat, operator, sources))
        for index, result in zip(operator.outputs, results, strict=True):
            _check_shape(flat, index, result)
            values[index] = result
        for index in last.get(operator.index, ()):
            values.pop(index, None)
    samples = len(inputs[0]) if inputs else 1
    return {
        index: np.broadcast_to(values[index], (samples, *values[index].shape[1:]))
        for index in wanted
    }


def _check_shape(flat: FlatModel, index: int, result: np.ndarray) -> None:
    tensor = flat.tensors[index]
    if result.shape[1:] != tensor.shape:
        raise UnsupportedModelError(
            f"Tensor {tensor.name!r} has the shape {tensor.shape} in the file, but its operator "
            f"makes {result.shape[1:]}."
        )


def _source(flat: FlatModel, values: Mapping[int, np.ndarray], index: int) -> np.ndarray | None:
    if index < 0:
        return None
    if index in values:
        return values[index]
    tensor = flat.tensors[index]
    if tensor.is_variable:
        return np.full((1, *tensor.shape), zero_point(tensor), numpy_type(tensor))
    if tensor.raw is None:
        raise UnsupportedModelError(
            f"Tensor {tensor.name!r} is never computed; it cannot be simulated."
        )
    return tensor.values()[None]


def _last_uses(flat: FlatModel, wanted: Sequence[int]) -> dict[int, list[int]]:
    """Returns operator -> tensors that nothing needs after it."""
    last: dict[int, int] = {}
    for operator in flat.operators:
        for index in (*operator.inputs, *operator.outputs):
            last[index] = operator.index
    freed: dict[int, list[int]] = {}
    for index, operator_index in last.items():
        if index not in wanted:
            freed.setdefault(operator_index, []).append(index)
    return freed


def _fitted(flat: FlatModel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the inputs with the axis of samples before the whole shape of each tensor."""
    if len(inputs) != len(flat.inputs):
        raise ArgumentError(
            "inputs", f"hold one array for each of the {len(flat.inputs)} inputs", len(inputs)
        )
    fitted = []
    for array, index in zip(map(np.asarray, inputs), flat.inputs, strict=True):
        shape = flat.tensors[index].shape
        if array.shape[1:] != shape and (1, *array.shape[1:]) != shape:
            raise ArgumentError(
                "inputs", f"hold samples of the shape {shape} after a first axis", array.shape
            )
        fitted.append(array.reshape(len(array), *shape))
    if len({len(array) for array in fitted}) > 1:
        raise ArgumentError(
            "inputs", "hold equally many samples for every input", [len(a) for a in fitted]
        )
    return fitted


def _without_batch(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), *values.shape[2:]) if values.shape[1:2] == (1,) else values
