"""Inputs whose columns int8 would erase: they stay in float until they are normalized.

Features of very different sizes (a ratio, a count, a price) share one int8 scale in the input of a
model; the small ones get a single code. If the model begins by scaling its columns, as a
Normalization layer does, that part is computed in float, and int8 begins behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.converters.portable.base import Graph, activation
from edgecompress.core.errors import few
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite

_SCALING = ("ADD", "SUB", "MUL", "DIV")
# A column with fewer codes has lost what it says.
_FEWEST_CODES = 16
_CODES = 255


@dataclass(frozen=True)
class FloatInput:
    """The beginning of a model that stays in float.

    Attributes:
        name: The input's name.
        output: Name of the tensor where int8 begins.
        columns: The columns that would be erased.
        operators: What computes that tensor from the input, in order.
    """

    name: str
    output: str
    columns: tuple[int, ...]
    operators: tuple[Operator, ...]

    @property
    def note(self) -> str:
        """What to tell the user."""
        return (
            f"Input {self.name!r} is float32 and scaled in float: one int8 scale for all columns "
            f"would leave column {few([str(column) for column in self.columns])} fewer than "
            f"{_FEWEST_CODES} codes."
        )


def float_inputs(
    flat: FlatModel,
    ranges: Mapping[str, tuple[float, float]],
    calibration: Sequence[np.ndarray] | None,
) -> tuple[FloatInput, ...]:
    """Returns the inputs that int8 would damage, with the scaling behind them.

    Args:
        flat: The float file.
        ranges: Name of a tensor -> (minimum, maximum).
        calibration: Samples, one array for each input; without them, none is found.
    """
    graph, found = Graph(flat), []
    for index, samples in zip(flat.inputs, calibration or (), strict=False):
        tensor = flat.tensors[index]
        chain = _chain(graph, index)
        if tensor.type != "FLOAT32" or not chain or tensor.name not in ranges:
            continue
        low, high = ranges[tensor.name]
        step = (max(high, 0.0) - min(low, 0.0)) / _CODES
        rows = samples.reshape(-1, samples.shape[-1])
        spread = rows.max(0) - rows.min(0)
        columns = np.flatnonzero((spread > 0) & (spread < _FEWEST_CODES * step))
        if len(columns):
            output = flat.output(chain[-1]).name
            found.append(FloatInput(tensor.name, output, tuple(map(int, columns)), chain))
    return tuple(found)


def _chain(graph: Graph, tensor: int) -> tuple[Operator, ...]:
    """Returns the operators that scale the columns of an input, one after the other."""
    chain: list[Operator] = []
    while (operator := graph.only_reader(tensor, *_SCALING)) is not None:
        constants = [i for i in operator.inputs if i != tensor and graph.tensor(i).is_constant]
        if len(constants) != 1 or activation(operator):
            break
        chain.append(operator)
        tensor = operator.outputs[0]
    scaled = any(
        graph.tensor(i).elements > 1 for o in chain if o.code in ("MUL", "DIV") for i in o.inputs
        if graph.tensor(i).is_constant
    )  # fmt: skip
    return tuple(chain) if scaled else ()


def without(flat: FlatModel, kept: Sequence[FloatInput]) -> FlatModel:
    """Returns a float file that begins behind the parts that stay in float."""
    if not kept:
        return flat
    begins = {part.name: part.output for part in kept}
    numbers = {tensor.name: tensor.index for tensor in flat.tensors}
    names = [flat.tensors[index].name for index in flat.inputs]
    editor = ModelEditor(flat)
    for part in kept:
        for operator in part.operators:
            editor.place_instead(editor.operators[operator.index], [])
    editor.set_inputs([numbers[begins.get(name, name)] for name in names])
    editor.drop_unused()
    return read_tflite(editor.pack())


def put_before(editor: ModelEditor, flat: FlatModel, kept: Sequence[FloatInput]) -> None:
    """Puts the parts that stay in float before a quantized file.

    Args:
        editor: The quantized file of `without`.
        flat: The whole float file.
        kept: The parts.
    """
    inner = {editor.original.tensors[index].name: index for index in editor.original.inputs}
    outer = [editor.original.tensors[index].name for index in editor.original.inputs]
    new, inputs = [], dict(inner)
    for part in kept:
        source = next(t for t in flat.tensors if t.name == part.name)
        numbers = {source.index: editor.add(source.shape, "FLOAT32", name=source.name)}
        inputs[part.output] = numbers[source.index]
        for operator in part.operators:
            for index in (*operator.inputs, *operator.outputs):
                tensor = flat.tensors[index]
                values = tensor.values() if tensor.is_constant else None
                if index not in numbers:
                    name = f"{tensor.name}/float"
                    numbers[index] = editor.add(tensor.shape, "FLOAT32", values, name=name)
            made = editor.new_operator(
                editor.operator_code(operator.code),
                [numbers[index] for index in operator.inputs],
                [numbers[index] for index in operator.outputs],
            )
            editor.set_options(made, f"{operator.code.title()}Options")
            new.append(made)
        last = numbers[part.operators[-1].outputs[0]]
        quantized = editor.new_operator(
            editor.operator_code("QUANTIZE"), [last], [inner[part.output]]
        )
        editor.set_options(quantized, "QuantizeOptions")
        new.append(quantized)
    if new:
        editor.place_before(editor.operators[0], new)
        editor.set_inputs([inputs[name] for name in outer])
