"""The paper's tables for a model: its kernels before, after, and in the file that ships."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.keras_graph import functional_of, graph_nodes, walk_layers
from edgecompress.core.layer_kinds import int8_kernels
from edgecompress.core.shared_values import channels_first
from edgecompress.core.suppress_output import no_warnings
from edgecompress.flatbuffers.coding import DECODE, HUFFMAN, LUT, PRUNE, Encoded, Layout, decode
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, channel_axis
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.inspection import inspect_keras
from edgecompress.inspection.keras_models import leaf_name, weight_variables
from edgecompress.recipes.results import LayerResult
from edgecompress.recipes.storage import Storage, storage

_CODINGS = {LUT: "lut", PRUNE: "prune", HUFFMAN: "huffman"}
# int8 rounding changes the direction of a channel's weights by far less.
_LEAST_COSINE = 0.9


@dataclass(frozen=True, eq=False)
class TableKernel:
    """A layer's filter or matrix.

    Attributes:
        key: The layer's name, its index among layers of that name, and the variable's name.
        name: For people.
        layer: The Keras layer.
        values: The weights.
        macs: Multiply-accumulates; None if unknown.
    """

    key: tuple[str, int, str]
    name: str
    layer: Any
    values: np.ndarray
    macs: int | None


def kernels(model: Any) -> list[TableKernel]:
    """Returns the kernels of a model in its order; shared ones once.

    The multiply-accumulates of a layer with several kernels (separable, recurrent) are split by
    size, which is exact if every weight is used equally often.
    """
    macs: dict[tuple[str, int], int | None] = {}
    for row in inspect_keras(model).rows:
        macs[row.name, _count(row.name, macs)] = row.macs
    found: list[TableKernel] = []
    seen: dict[tuple[str, int], int] = {}
    known: set[int] = set()
    for layer in walk_layers(model):
        number = _count(layer.name, seen)
        seen[layer.name, number] = 1
        variables = [v for v in weight_variables(layer) if id(v) not in known]
        known.update(id(variable) for variable in variables)
        size = sum(int(np.prod(v.shape)) for v in variables)
        total = macs.get((layer.name, number))
        for variable in variables:
            own = leaf_name(variable)
            share = int(np.prod(variable.shape))
            found.append(
                TableKernel(
                    (layer.name, number, own),
                    layer.name if len(variables) == 1 else f"{layer.name}/{own}",
                    layer,
                    np.asarray(variable),
                    None if total is None else total * share // size,
                )
            )
    return found


def _count(name: str, known: Iterable[tuple[str, int]]) -> int:
    return sum(1 for other, _ in known if other == name)


def input_densities(model: Any, inputs: Any) -> dict[int, float]:
    """Returns the share of non-zero inputs: id of a layer -> share.

    Inputs that come from the model's inputs through layers without weights count as 1, as in the
    paper. Layers inside nested models are skipped: their inputs are not part of the model's own
    graph.

    Args:
        model: A Sequential or Functional model.
        inputs: Samples in the structure that it takes.
    """
    import keras

    functional = functional_of(model)
    plain = {id(tensor) for tensor in functional.inputs}
    wanted: dict[int, Any] = {}
    densities: dict[int, float] = {}
    for node in graph_nodes(model):
        operation = node.operation
        if getattr(operation, "weights", None):
            if all(id(tensor) in plain for tensor in node.inputs):
                densities[id(operation)] = 1.0
            elif len(node.inputs) == 1:
                wanted.setdefault(id(operation), node.inputs[0])
        elif all(id(tensor) in plain for tensor in node.inputs):
            plain.update(id(tensor) for tensor in node.outputs)
    if wanted:
        probe = keras.Model(functional.input, list(wanted.values()))
        with no_warnings():
            values = probe.predict(inputs, verbose=0, batch_size=256)
        values = values if isinstance(values, list) else [values]
        for layer, value in zip(wanted, values, strict=True):
            densities[layer] = float(np.count_nonzero(value) / value.size)
    return densities


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A filter in a .tflite file.

    Attributes:
        rows: Its int8 codes as (channels, weights).
        coding: `lut`, `prune`, `huffman` or `raw`.
        bytes: Of codes and tables; a table that several tensors share counts for the first.
    """

    rows: np.ndarray
    coding: str
    bytes: int


def file_tensors(flat: FlatModel) -> list[FileTensor]:
    """Returns the filters of a file in the order of its operators, decoded; shared ones once."""
    decoders = {
        output: operator
        for operator in flat.operators
        if operator.name == DECODE
        for output in operator.outputs
    }
    counted: set[int] = set()
    found: list[FileTensor] = []
    for operator in flat.operators:
        tensor = flat.tensor(operator, 1) if operator.code in FILTER_READERS else None
        if tensor is None:
            continue
        decoder = decoders.get(tensor.index)
        if decoder is None:
            if tensor.index in counted or not tensor.is_constant:
                continue
            counted.add(tensor.index)
            values, coding, size = tensor.values(), "raw", tensor.bytes
        else:
            first = 2 * decoder.outputs.index(tensor.index)
            code, ancillary = (flat.tensors[i] for i in decoder.inputs[first : first + 2])
            if code.index in counted:
                continue
            new = [t for t in (code, ancillary) if t.index not in counted]
            counted.update(t.index for t in new)
            values, coding = _decoded(tensor, code, ancillary)
            size = sum(len(t.raw or b"") for t in new)
        rows = channels_first(values, (channel_axis(operator),))
        found.append(FileTensor(rows, coding, size))
    return found


def _decoded(tensor: Tensor, code: Tensor, ancillary: Tensor) -> tuple[np.ndarray, str]:
    encoded = Encoded("", bytes(code.raw or b""), bytes(ancillary.raw or b""))
    layout = Layout(tensor.zero_points, tensor.quantized_dimension)
    return decode(encoded, tensor.shape, layout), _CODINGS[encoded.ancillary[0]]


def match_file(
    layers: Sequence[TableKernel], tensors: Sequence[FileTensor]
) -> dict[tuple[str, int, str], FileTensor]:
    """Returns the file's tensor of each kernel, found by value: key of the kernel -> tensor.

    Among kernels of the same shape, the match is the one whose channels point the same way, up to a
    sign that folded BatchNormalization may flip; kernels that the file does not store as filters,
    e.g. of recurrent layers, are omitted.
    """
    rows = {}
    for kernel in layers:
        for axes in int8_kernels(kernel.layer):
            if axes.attribute == kernel.key[2]:
                rows[kernel.key] = channels_first(kernel.values, axes.outputs)
    found: dict[tuple[str, int, str], FileTensor] = {}
    for tensor in tensors:
        scores = {
            key: _cosine(values, tensor.rows)
            for key, values in rows.items()
            if key not in found and values.shape == tensor.rows.shape
        }
        best = max(scores, key=scores.__getitem__, default=None)
        if best is not None and scores[best] >= _LEAST_COSINE:
            found[best] = tensor
    return found


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mean cosine of the channels, ignoring signs; 1 if all are zero."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    live = norms > 0
    if not live.any():
        return 1.0
    return float(np.mean(np.abs((a * b).sum(1))[live] / norms[live]))


def table(
    original: Sequence[TableKernel],
    final: Sequence[TableKernel],
    index_bits: int,
    densities: dict[int, float],
    flat: FlatModel,
) -> tuple[tuple[LayerResult, ...], tuple[str, ...]]:
    """Returns the paper's table for a model, and notes on what is unknown.

    Args:
        original: Kernels of the original model.
        final: Kernels of the final model.
        index_bits: Bits of a relative index.
        densities: From `input_densities` of the final model.
        flat: The file that ships.
    """
    after = {kernel.key: kernel for kernel in final}
    stored = match_file(final, file_tensors(flat))
    rows, missing = [], []
    for kernel in original:
        left = after[kernel.key]
        tensor = stored.get(kernel.key)
        if tensor is None:
            missing.append(kernel.name)
        rows.append(
            LayerResult(
                name=kernel.name,
                type=type(kernel.layer).__name__,
                weights=kernel.values.size,
                storage=storage(left.values, index_bits),
                macs=kernel.macs,
                macs_left=left.macs,
                input_density=densities.get(id(left.layer)),
                coding=None if tensor is None else tensor.coding,
                file_bytes=None if tensor is None else tensor.bytes,
            )
        )
    if not missing:
        return tuple(rows), ()
    note = f"Not found as filters in the file, so without file bytes: {', '.join(missing)}."
    return tuple(rows), (note,)


def stored_bytes(layers: Sequence[TableKernel], index_bits: int) -> tuple[int, int, int]:
    """Returns (elements, elements other than zero, bytes in the paper's format) of all kernels."""
    found: list[Storage] = [storage(kernel.values, index_bits) for kernel in layers]
    return (
        sum(row.weights for row in found),
        sum(row.kept for row in found),
        sum(row.quantized_bytes for row in found),
    )
