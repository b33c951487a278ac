"""Operators that the runtimes have in integers, but the quantizer does not know.

Each is quantized under the name of another operator with the same rule for scales, its stand-in,
and then becomes what it is in the file:

- itself, where the runtimes have an integer kernel of it;
- RELU instead of RELU6, where the codes of the output end at 6;
- a table of the 256 int8 codes, for functions of one number (`tables`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.converters.tables import Curve, curves, look_up, table
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator

# Bits of activations -> operator -> (stand-in, version of its integer kernel). Fewer kernels exist
# for int16.
_STAND_INS: Mapping[int, Mapping[str, tuple[str, int]]] = {
    8: {
        "LEAKY_RELU": ("GELU", 2),
        "RELU6": ("GELU", 2),
        "RELU_N1_TO_1": ("GELU", 1),
        "ELU": ("GELU", 1),
        "PRELU": ("MUL", 1),
        "REDUCE_MAX": ("REDUCE_MIN", 2),
        "MINIMUM": ("MAXIMUM", 2),
    },
    16: {
        "LEAKY_RELU": ("GELU", 2),
        "RELU6": ("GELU", 2),
        "MINIMUM": ("MAXIMUM", 4),
    },
}
_LARGEST = {"INT8": 127, "INT16": 32767}
_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
_CURVE = "GELU"


@dataclass(frozen=True)
class StandIns:
    """A float file whose operators the quantizer knows.

    Attributes:
        data: The file.
        replaced: Name of an output -> the operator that computed it, its entry in the file, and the
            version of its integer kernel.
        curves: Name of an output -> the function that became a stand-in.
    """

    data: bytes = field(repr=False)
    replaced: Mapping[str, tuple[str, Any, int]]
    curves: Mapping[str, Curve]

    @property
    def notes(self) -> list[str]:
        """A note on the functions that become tables."""
        if not self.curves:
            return []
        names = [f"{name} ({', '.join(curve.operators)})" for name, curve in self.curves.items()]
        return [f"Computed by a table of all int8 codes: {', '.join(names)}."]


def put(
    flat: FlatModel,
    bits: int,
    constants: Mapping[tuple[int, int], np.ndarray] | None = None,
    floating: Collection[str] = (),
    rounded: Collection[str] = (),
) -> StandIns:
    """Replaces operators by their stand-ins.

    Args:
        flat: The float file.
        bits: Of activations.
        constants: (operator, input) -> other values of a constant. Defaults to none.
        floating: Names of the outputs of operators that stay in float. Defaults to none.
        rounded: Names of tensors that training rounded (`tables.curves`). Defaults to none.
    """
    found = {flat.tensors[c.output].name: c for c in curves(flat, rounded)} if bits == 8 else {}
    tables = {name: curve for name, curve in found.items() if name not in floating}
    editor = ModelEditor(flat)
    for (index, position), values in (constants or {}).items():
        editor.replace(editor.own_input(editor.operators[index], position), values)
    writers = {index: o for o in flat.operators for index in o.outputs}
    for curve in tables.values():
        made = editor.new_operator(editor.operator_code(_CURVE), [curve.source], [curve.output])
        editor.set_options(made, f"{_CURVE.title()}Options")
        editor.place_instead(editor.operators[writers[curve.output].index], [made])
    if tables or constants:
        editor.drop_unused()
        flat = ModelEditor(editor.pack()).original
        editor = ModelEditor(flat)
    replaced: dict[str, tuple[str, Any, int]] = {}
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        if operator.code in _STAND_INS[bits] and flat.output(operator).name not in floating:
            stand_in, version = _STAND_INS[bits][operator.code]
            replaced[flat.output(operator).name] = (operator.code, copy.copy(entry), version)
            editor.set_code(entry, stand_in, 1)
            if stand_in == "MUL":
                editor.set_options(entry, "MulOptions")
    # Packing copies all weights twice.
    data = editor.pack() if replaced or tables or constants else flat.data
    return StandIns(data, replaced, tables)


def take(quantized: bytes, stand_ins: StandIns) -> ModelEditor:
    """Returns the quantizer's file with what the stand-ins stand for.

    It also types unread outputs, which the quantizer skips, and leaves out conversions between
    equal scales.
    """
    editor = ModelEditor(quantized)
    flat = editor.original
    read = {i for operator in flat.operators for i in operator.inputs} | {*flat.outputs}
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        outputs = [flat.tensors[i] for i in operator.outputs]
        name = outputs[0].name if outputs else ""
        if name in stand_ins.replaced and operator.code not in _BOUNDARY:
            _restore(editor, flat, operator, entry, stand_ins.replaced[name])
        elif name in stand_ins.curves and operator.code == _CURVE:
            source = flat.tensors[operator.inputs[0]]
            if source.type == outputs[0].type == "INT8":
                codes = table(stand_ins.curves[name].function, source, outputs[0])
                editor.place_instead(entry, look_up(editor, source, outputs[0], codes))
        elif operator.code == "QUANTIZE" and _is_copy(flat, operator):
            _leave_out(editor, operator)
        quantized_outputs = [t.index for t in outputs if t.type in ("INT8", "INT16")]
        for tensor in outputs:
            if quantized_outputs and tensor.index not in read and tensor.type == "FLOAT32":
                editor.type_as(tensor.index, quantized_outputs[0])
    return editor


def _is_copy(flat: FlatModel, operator: Operator) -> bool:
    """Returns whether a QUANTIZE converts to the scale its input has, as after a GATHER."""
    source, output = flat.tensors[operator.inputs[0]], flat.output(operator)
    same = (source.type, source.scales, source.zero_points) == (
        output.type, output.scales, output.zero_points,
    )  # fmt: skip
    return same and output.index not in flat.outputs


def _leave_out(editor: ModelEditor, operator: Operator) -> None:
    (source,), (output,) = operator.inputs, operator.outputs
    for reader, entry in zip(editor.original.operators, editor.operators, strict=True):
        for position, index in enumerate(reader.inputs):
            if index == output:
                editor.set_input(entry, position, source)
    editor.place_instead(editor.operators[operator.index], [])


def _restore(
    editor: ModelEditor, flat: FlatModel, operator: Any, entry: Any, was: tuple[str, Any, int]
) -> None:
    code, original, version = was
    output = flat.output(operator)
    if code == "RELU6" and output.type in ("INT8", "INT16"):
        largest = (_LARGEST[output.type] - output.zero_points[0]) * output.scales[0]
        if largest < 6 + output.scales[0] / 2:
            # TensorFlow Lite Micro's RELU6 copies codes, whatever the scales.
            editor.set_code(entry, "RELU", 2 if output.type == "INT8" else 3)
            editor.set_options(entry, None)
            return
    editor.set_code(entry, code, version)
    editor.copy_options(entry, original)
