"""LSTM layers as one operator, UNIDIRECTIONAL_SEQUENCE_LSTM, in float and in int8.

TensorFlow's converter knows no operator of the graph that becomes this one without being inlined
first. A layer is therefore traced as BlockLSTMV2, which computes the same (gates i, f, c, o, no
peepholes, no clipping) and which the converter passes through as a custom operator; it is replaced
in the float file. litert-quantizer does not know the operator either: it quantizes a stand-in with
one input and one output, and the int8 operator is written here:

    weights       int8, one symmetric scale for each of the eight matrices
    biases        int32 with the scale of input times weights
    cell state    int16 with a power of two as its scale
    output state  int8 with the scale of the output
    gates         16 bits with 12 after the point, fixed by the kernels

The states are variables of the file: they persist from one inference to the next until the
application resets them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.converters.calibration import spread, tensor_samples
from edgecompress.converters.time_steps import reversed_steps
from edgecompress.core import lstm_layers
from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import walk_layers
from edgecompress.core.lstm_layers import CELL_MARGIN, cell_name, integer_bits, lstm_parts
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.stepping import Stepping

if TYPE_CHECKING:
    from edgecompress.converters.loaders import LoadedModel

LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
RESET = (
    "It keeps its state from one inference to the next: reset the interpreter's variables before "
    "each sequence (MicroInterpreter::Reset, ResetVariableTensors, reset_all_variables)."
)
_MARKER = "BlockLSTMV2"
# Inputs of the marker.
_X, _WEIGHTS, _BIAS = 1, 4, 8
# Its outputs: only the last, all output states, is used.
_STATES = 6
_GATES = 4
# Inputs of the operator.
_MATRICES, _BIASES, _OUTPUT_STATE, _CELL_STATE, _INPUTS = 1, 12, 18, 19, 24
_TANH = 4
# Version 5 keeps the number of dimensions.
_STAND_IN, _STAND_IN_VERSION = "FULLY_CONNECTED", 5
# Without calibration, a cell state may grow by 1 in each time step; more than this is rare.
_LARGEST_UNSEEN_CELL = 16.0
_CELL_SAMPLES = 100


def why_not_fused(layer: Any, states: Sequence[Any]) -> str | None:
    """Returns why a recurrent layer of Keras cannot become the operator; None if it can.

    Args:
        layer: The layer, without a mask.
        states: Its initial states, None for zero.
    """
    reason = lstm_layers.why_not_fused(layer)
    if reason is None and any(state is not None for state in states):
        return "the fused operator starts at zero"
    return reason


def mark(cell: Any, sequences: Any, backwards: bool) -> Any:
    """Returns all outputs (1, steps, units) of an LSTM cell, computed by the marker.

    Args:
        cell: A Keras LSTMCell.
        sequences: Its inputs, (1, steps, features).
        backwards: Whether the last time step comes first.
    """
    import keras
    import tensorflow as tf

    _, steps, features = sequences.shape
    if backwards:
        sequences = reversed_steps(sequences)
    start, units = tf.zeros((1, cell.units)), tf.zeros((cell.units,))
    weights = [keras.ops.convert_to_tensor(w) for w in (cell.kernel, cell.recurrent_kernel)]
    found = tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.constant(steps, tf.int64),
        x=tf.reshape(sequences, (steps, 1, features)),
        cs_prev=start,
        h_prev=start,
        w=tf.concat(weights, axis=0),
        wci=units,
        wcf=units,
        wco=units,
        b=keras.ops.convert_to_tensor(cell.bias) if cell.use_bias else tf.tile(units, [_GATES]),
        cell_clip=0.0,
        use_peephole=False,
    )
    return tf.reshape(found.h, (1, steps, cell.units))


def has_marks(function: Any) -> bool:
    """Returns whether a TensorFlow function contains the marker."""
    return any(operation.type == _MARKER for operation in function.graph.get_operations())


def replace_marks(data: bytes) -> bytes:
    """Returns a float file with the operator in place of each marker.

    Args:
        data: What TensorFlow's converter made.

    Raises:
        ConversionError: other operators without a built-in form are left.
    """
    editor = ModelEditor(data)
    flat = editor.original
    others = {o.custom_name for o in flat.operators if o.custom_name not in ("", _MARKER)}
    if others:
        raise ConversionError(
            f"no built-in operator exists for {', '.join(sorted(others))}. Replace the layer by "
            "one made of supported operations."
        )
    for operator, entry in zip(flat.operators, editor.operators, strict=True):
        if operator.custom_name == _MARKER:
            editor.place_instead(entry, [_float_operator(editor, flat, operator)])
    editor.drop_unused()
    return editor.pack()


def _float_operator(editor: ModelEditor, flat: FlatModel, marker: Operator) -> Any:
    weights, bias = (flat.tensors[marker.inputs[i]].values() for i in (_WEIGHTS, _BIAS))
    units = bias.size // _GATES
    features = len(weights) - units
    # Keras and the operator have the gates in the same order.
    matrices = [np.ascontiguousarray(m.T) for m in np.split(weights, _GATES, axis=1)]
    values = [m[:, :features] for m in matrices] + [m[:, features:] for m in matrices]
    inputs = [-1] * _INPUTS
    inputs[0] = marker.inputs[_X]
    for position, matrix in enumerate(values, _MATRICES):
        inputs[position] = editor.add(matrix.shape, "FLOAT32", np.ascontiguousarray(matrix))
    for position, part in enumerate(np.split(bias, _GATES), _BIASES):
        inputs[position] = editor.add(part.shape, "FLOAT32", part)
    for position in (_OUTPUT_STATE, _CELL_STATE):
        inputs[position] = editor.add((1, units), "FLOAT32", variable=True)
    made = editor.new_operator(editor.operator_code(LSTM), inputs, [marker.outputs[_STATES]])
    _set_options(editor, made)
    return made


def _set_options(editor: ModelEditor, operator: Any) -> None:
    kind = "UnidirectionalSequenceLSTMOptions"
    editor.set_options(operator, kind, fusedActivationFunction=_TANH, timeMajor=True)


def lstm_operators(flat: FlatModel) -> list[Operator]:
    """Returns the fused LSTM operators of a file."""
    return [operator for operator in flat.operators if operator.code == LSTM]


def layers_of_lstms(loaded: LoadedModel, flat: FlatModel) -> dict[int, str]:
    """Returns which layer each operator of a float file computes, found by its weights.

    Args:
        loaded: The model.
        flat: The float file.

    Returns:
        Index of the operator's output -> the name that `core.lstm_layers.lstm_parts` gives.
    """
    operators = lstm_operators(flat)
    if not operators or loaded.flavour != "keras3":
        return {}
    parts = [part for layer in walk_layers(loaded.model) for part in lstm_parts(layer).items()]
    found = {}
    for operator in operators:
        matrices = [
            np.concatenate([flat.tensors[i].values() for i in operator.inputs[first:][:_GATES]]).T
            for first in (_MATRICES, _MATRICES + _GATES)
        ]
        for position, (name, part) in enumerate(parts):
            kernels = part.cell.kernel, part.cell.recurrent_kernel
            if all(np.array_equal(m, k) for m, k in zip(matrices, kernels, strict=True)):
                found[flat.output(operator).index] = name
                # Layers of equal weights have an operator each, in their order.
                parts.pop(position)
                break
    return found


def learnt_cells(
    lstms: Mapping[str, str], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Returns the largest absolute cell states that training has learnt, by the LSTM's output.

    Args:
        lstms: As in `Float32Result`.
        ranges: The learnt ranges.
    """
    return {
        tensor: max(map(abs, ranges[cell_name(name)]))
        for tensor, name in lstms.items()
        if cell_name(name) in ranges
    }


def put_stand_ins(flat: FlatModel) -> FlatModel:
    """Returns a float file with an operator in place of each LSTM that the quantizer knows."""
    if not lstm_operators(flat):
        return flat
    editor = ModelEditor(flat)
    for operator in lstm_operators(flat):
        # The product with the weights of one gate has the shape of the output.
        inputs = [operator.inputs[0], operator.inputs[_MATRICES], -1]
        code = editor.operator_code(_STAND_IN, _STAND_IN_VERSION)
        made = editor.new_operator(code, inputs, operator.outputs)
        editor.set_options(made, "FullyConnectedOptions", keepNumDims=True)
        editor.place_instead(editor.operators[operator.index], [made])
    return ModelEditor(editor.pack()).original


def take_stand_ins(
    editor: ModelEditor, flat: FlatModel, cells: Mapping[str, float], limited: bool = True
) -> ModelEditor:
    """Returns the file with the int8 operators in place of the stand-ins.

    Args:
        editor: The quantizer's file.
        flat: The float file.
        cells: Name of an LSTM's output -> largest absolute cell state.
        limited: Whether a sequence ends with one inference. Defaults to True.
    """
    quantized = editor.original
    floats = {flat.output(operator).name: operator for operator in lstm_operators(flat)}
    for operator, entry in zip(quantized.operators, editor.operators, strict=True):
        name = quantized.output(operator).name
        if name in floats and operator.code == _STAND_IN:
            made = _int8_operator(editor, flat, floats[name], operator, cells.get(name), limited)
            editor.place_instead(entry, [made])
    if not floats:
        return editor
    editor.drop_unused()
    return ModelEditor(editor.pack())


def _int8_operator(
    editor: ModelEditor,
    flat: FlatModel,
    source: Operator,
    stand_in: Operator,
    cell: float | None,
    limited: bool,
) -> Any:
    step = editor.original.tensors[stand_in.inputs[0]].scales[0]
    inputs = [-1] * _INPUTS
    inputs[0] = stand_in.inputs[0]
    scales = []
    for position in range(_MATRICES, _MATRICES + 2 * _GATES):
        weights = flat.tensors[source.inputs[position]].values()
        scales.append(float(np.abs(weights).max()) / 127 or 1 / 127)
        codes = np.round(weights / scales[-1]).astype(np.int8)
        inputs[position] = _constant(editor, codes, "INT8", scales[-1])
    for gate in range(_GATES):
        values = flat.tensors[source.inputs[_BIASES + gate]].values()
        scale = step * scales[gate]
        limits = np.iinfo(np.int32)
        codes = np.clip(np.round(values / np.float64(scale)), limits.min, limits.max)
        inputs[_BIASES + gate] = _constant(editor, codes.astype(np.int32), "INT32", scale)
    units = len(values)
    output = stand_in.outputs[0]
    inputs[_OUTPUT_STATE] = editor.add((1, units), "INT8", variable=True)
    editor.type_as(inputs[_OUTPUT_STATE], output)
    inputs[_CELL_STATE] = editor.add((1, units), "INT16", variable=True)
    steps = flat.tensors[source.inputs[0]].shape[0] if limited else math.inf
    editor.quantize(inputs[_CELL_STATE], np.array([cell_scale(cell, steps)], np.float32))
    # Read by the kernels only for normalized gates and projections, but they must be there.
    intermediates = [editor.add((0,), "FLOAT32") for _ in range(_GATES)]
    intermediates.append(editor.add((0,), "INT8"))
    editor.type_as(intermediates[-1], output)
    made = editor.new_operator(
        editor.operator_code(LSTM), inputs, [output], intermediates=intermediates
    )
    _set_options(editor, made)
    return made


def _constant(editor: ModelEditor, codes: np.ndarray, kind: str, scale: float) -> int:
    tensor = editor.add(codes.shape, kind, codes)
    editor.quantize(tensor, np.array([scale], np.float32))
    return tensor


def cell_scale(largest: float | None, steps: float) -> float:
    """Returns the scale of a cell state in int16: a power of two.

    Args:
        largest: The largest absolute value on the calibration data; None if there are none.
        steps: Number of time steps of a sequence, each of which adds at most 1.

    Example:
        >>> cell_scale(1.5, 20) == 2**-14
        True
    """
    seen = _LARGEST_UNSEEN_CELL if largest is None else CELL_MARGIN * largest
    # The kernels take cell states up to 64.
    return float(2.0 ** (integer_bits(min(seen, steps)) - 15))


def largest_cells(
    flat: FlatModel,
    samples: Sequence[np.ndarray] | None,
    stepping: Stepping | None = None,
    known: Collection[str] = (),
) -> dict[str, float]:
    """Returns the largest absolute cell state of each LSTM, by the name of its output.

    Args:
        flat: The float file.
        samples: Calibration inputs, one array for each input; None for none.
        stepping: How a streaming file runs over them. Defaults to None.
        known: LSTMs to leave out. Defaults to none.
    """
    operators = [o for o in lstm_operators(flat) if flat.output(o).name not in known]
    if samples is None or not operators:
        return {}
    samples = [spread(array, _CELL_SAMPLES) for array in samples]
    names = [flat.output(operator).name for operator in operators]
    if stepping is not None:
        cells = [operator.inputs[_CELL_STATE] for operator in operators]
        found = tensor_samples(flat, samples, cells, stepping)
        return {n: float(np.abs(found[c]).max()) for n, c in zip(names, cells, strict=True)}
    inputs = tensor_samples(flat, samples, [operator.inputs[0] for operator in operators])
    return {
        name: _largest_cell(flat, operator, inputs[operator.inputs[0]])
        for name, operator in zip(names, operators, strict=True)
    }


def _largest_cell(flat: FlatModel, operator: Operator, sequences: np.ndarray) -> float:
    """Runs an LSTM on sequences (samples, steps, 1, features)."""

    def joined(first: int) -> np.ndarray:
        parts = [flat.tensors[operator.inputs[first + gate]].values() for gate in range(_GATES)]
        return np.concatenate(parts).T

    def sigmoid(values: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(0.5 * values))

    kernel, recurrent, bias = joined(_MATRICES), joined(_MATRICES + _GATES), joined(_BIASES)
    hidden = cell = np.zeros((len(sequences), bias.size // _GATES))
    largest = 0.0
    for step in range(sequences.shape[1]):
        gates = sequences[:, step, 0] @ kernel + hidden @ recurrent + bias
        i, f, g, o = np.split(gates, _GATES, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        largest = max(largest, float(np.abs(cell).max(initial=0)))
    return largest
