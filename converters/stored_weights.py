"""int8 filters stored in fewer bits: which ones, and the file that contains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.converters.weight_formats import TABLE_TOO_LARGE, WEIGHT_FORMATS, Filter, Stored
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import FILTER_READERS, Operator, channel_axis
from edgecompress.flatbuffers.tensors import PACKED, pack_codes

# Operators whose filter can be stored in fewer bits -> version with INT4 filters.
_READERS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}
_INT2_VERSION = 14


def plan_weights(flat: FlatModel, name: str) -> tuple[dict[int, Stored], dict[int, str]]:
    """Returns how a format stores each filter, and why others stay unchanged.

    Args:
        flat: An int8 model.
        name: Of the format.

    Raises:
        UnknownNameError: there is no such format.
        UnsupportedModelError: the model has no int8 filters.
    """
    filters, reasons = filters_of(flat)
    plan: dict[int, Stored] = {}
    for index, (filter_, rigid) in filters.items():
        stored = WEIGHT_FORMATS[name].store(filter_)
        if not isinstance(stored, str) and stored.steps is not None:
            stored = rigid or _bias_too_large(flat, filter_, stored) or stored
        if isinstance(stored, str):
            reasons[index] = stored
        else:
            plan[index] = stored
    for index in _costly_tables(plan):
        reasons[index] = TABLE_TOO_LARGE
        del plan[index]
    return plan, reasons


def _costly_tables(plan: Mapping[int, Stored]) -> list[int]:
    """Returns the filters that share a table larger than what they save together."""
    sharing: dict[bytes, list[int]] = {}
    for index, stored in plan.items():
        if stored.table_bits:
            sharing.setdefault(stored.table.tobytes(), []).append(index)
    return [
        index
        for table, indices in sharing.items()
        if sum(plan[i].saved_bytes for i in indices) <= len(table)
        for index in indices
    ]


def filters_of(flat: FlatModel) -> tuple[dict[int, tuple[Filter, str]], dict[int, str]]:
    """Returns the filters with the reason why their scales are fixed ("": they are not).

    The second result is why other filters cannot be stored differently at all.
    """
    readers: dict[int, list[Operator]] = {}
    for operator in flat.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    found, reasons = {}, {}
    for operator in flat.operators:
        tensor = flat.tensor(operator, 1)
        if operator.code not in FILTER_READERS or tensor is None or not tensor.is_constant:
            continue
        source = flat.tensor(operator, 0)
        if operator.code not in _READERS:
            reasons[tensor.index] = f"no runtime takes a {operator.code} with fewer bits"
        elif tensor.type != "INT8" or source is None or source.type != "INT8":
            reasons[tensor.index] = "weights and activations must be INT8"
        elif tensor.sparsity is not None or any(tensor.zero_points) or not tensor.scales:
            reasons[tensor.index] = "it is not symmetric and dense"
        elif len(readers[tensor.index]) > 1 or tensor.index in flat.outputs:
            reasons[tensor.index] = "it has several readers"
        else:
            found[tensor.index] = (Filter(operator, tensor), _rigid(flat, operator, readers))
    if not found and not any(t.type in ("INT8", *PACKED) for t in flat.weight_tensors()):
        raise UnsupportedModelError(
            "The model has no int8 weights. Convert it to int8 first (`--format int8`)."
        )
    return found, reasons


def _rigid(flat: FlatModel, operator: Operator, readers: Mapping[int, Sequence[Operator]]) -> str:
    """Returns why a filter's scales cannot change, as its bias would have to change too."""
    bias = flat.tensor(operator, 2)
    if bias is None:
        return ""
    if not bias.is_constant or bias.type != "INT32":
        return f"its bias is {bias.type}" if bias.is_constant else "its bias is computed"
    return "its bias has several readers" if len(readers[bias.index]) > 1 else ""


def _bias_too_large(flat: FlatModel, filter_: Filter, stored: Stored) -> str:
    bias = flat.tensor(filter_.operator, 2)
    if bias is None or stored.steps is None:
        return ""
    largest = np.abs(bias.values() / stored.steps).max(initial=0)
    return "" if largest < 1 << 31 else "its bias would not fit 32 bits"


def store_weights(
    model: bytes | FlatModel, plan: Mapping[int, Stored], plain: bool = False
) -> bytes:
    """Returns the file with filters stored as planned; scales and biases follow.

    Args:
        model: An int8 .tflite file with one subgraph: bytes, or as read.
        plan: Tensor index -> how it is stored.
        plain: Store the same weights as plain int8: the reference for the other file.
            Defaults to False.
    """
    writer = _Writer(model)
    flat, editor = writer.editor.original, writer.editor
    if not plan:
        return flat.data
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        index = operator.inputs[1] if len(operator.inputs) > 1 else -1
        if operator.code in _READERS and index in plan:
            stored = plan[index]
            writer.rescale(operator, stored)
            if plain:
                editor.replace(index, stored.codes)
            elif stored.table_bits:
                editor.place_before(entry, writer.look_up(index, stored))
            else:
                writer.set_codes(operator, entry, stored)
    editor.drop_unused_buffers()
    return editor.pack()


class _Writer:
    """Stores the filters of one file."""

    def __init__(self, model: bytes | FlatModel) -> None:
        self.editor = ModelEditor(model)
        self._tables: dict[bytes, int] = {}

    def rescale(self, operator: Operator, stored: Stored) -> None:
        """Changes the scales of filter and bias, and the codes of the bias."""
        flat = self.editor.original
        source, weights, bias = (flat.tensor(operator, position) for position in range(3))
        if stored.steps is None or weights is None or source is None:
            return
        scales = np.asarray(weights.scales) * stored.steps
        if stored.one_scale and len(weights.scales) == 1 and len(np.unique(stored.steps)) == 1:
            scales = scales[:1]
        self.editor.quantize(weights.index, scales, channel_axis(operator))
        if bias is not None:
            codes = np.rint(bias.values() / stored.steps).astype(np.int32)
            self.editor.replace(bias.index, codes)
            self.editor.quantize(bias.index, scales * source.scales[0])

    def set_codes(self, operator: Operator, entry: Any, stored: Stored) -> None:
        """Stores codes in the type of the plan, and makes the operator take it."""
        index, code, shape = operator.inputs[1], operator.code, None
        if stored.as_dense:
            code = "FULLY_CONNECTED"
            shape = np.array([len(stored.codes), stored.codes.shape[3]], np.int32)
            self.editor.set_options(
                entry,
                "FullyConnectedOptions",
                keepNumDims=True,
                fusedActivationFunction=operator.options["fused_activation_function"],
            )
        bits = PACKED.get(stored.type, 8)
        self.editor.retype(index, stored.type, shape)
        self.editor.replace(index, pack_codes(stored.codes, bits))
        if bits < 8:
            version = _INT2_VERSION if stored.type == "INT2" else _READERS[code]
            self.editor.set_code(entry, code, version)

    def look_up(self, index: int, stored: Stored) -> list[Any]:
        """Returns operators that write the codes into the tensor, from packed indices.

        A byte holds the indices of several weights and is itself the index into a table with one
        row of these weights for each of its 256 values.
        """
        editor, bits, shape = self.editor, stored.table_bits, stored.codes.shape
        per_byte = 8 // bits
        packed = pack_codes(np.unique(stored.codes, return_inverse=True)[1], bits)
        key = stored.table.tobytes()
        if key not in self._tables:
            self._tables[key] = self._add(stored.table.shape, "INT8", key)
        editor.replace(index, None)
        code = self._add((len(packed),), "UINT8", packed)
        wide = self._add((len(packed),), "INT32")
        found = self._add((len(packed), per_byte), "INT8")
        operators = [
            self._operator("CAST", 1, [code], [wide]),
            self._operator("GATHER", 2, [self._tables[key], wide], [found]),
        ]
        if stored.codes.size % per_byte:
            operators += self._cut(found, len(packed) * per_byte, stored.codes.size)
            found = operators[-1].outputs[0]
        return [*operators, self._reshape(found, index, shape)]

    def _cut(self, index: int, size: int, kept: int) -> list[Any]:
        """Returns operators that leave the first `kept` elements of a tensor."""
        line, cut = self._add((size,), "INT8"), self._add((kept,), "INT8")
        reshape = self._reshape(index, line, (size,))
        bounds = [self._shape((0,)), self._shape((kept,))]
        return [reshape, self._operator("SLICE", 2, [line, *bounds], [cut])]

    def _reshape(self, source: int, result: int, shape: Sequence[int]) -> Any:
        made = self._operator("RESHAPE", 1, [source, self._shape(shape)], [result])
        self.editor.set_options(made, "ReshapeOptions", newShape=list(shape))
        return made

    def _operator(self, name: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        return self.editor.new_operator(self.editor.operator_code(name, version), inputs, outputs)

    def _add(self, shape: Sequence[int], kind: str, values: bytes | None = None) -> int:
        return self.editor.add(np.array(shape, np.int32), kind, values, has_rank=True)

    def _shape(self, shape: Sequence[int]) -> int:
        return self._add((len(shape),), "INT32", np.array(shape, np.int32).tobytes())
