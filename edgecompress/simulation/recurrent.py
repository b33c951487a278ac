"""UNIDIRECTIONAL_SEQUENCE_LSTM with int8 weights and activations and a 16-bit cell state.

Both engines compute the products of each gate with integer multipliers, in 16 bits with 12 after
the point. They differ in the precision of the multipliers, in what saturates, in the functions of
the gates (`core.gate_tables`), and in how a product of 16-bit numbers is rounded.
"""

from __future__ import annotations

import math

import numpy as np

from edgecompress.core.fixed_point import multiply, quantize_multiplier, shift_right, wrap
from edgecompress.core.gate_tables import CELL_BITS, GATE_BITS, GATE_TABLES
from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.simulation.kernels import LITERT, Call, NotSimulated, kernel, scale, zero_point
from edgecompress.simulation.windows import exact_type

# Inputs: weights of the input and of the state, one matrix for each of the gates i, f, g, o, and
# their biases.
_KERNEL, _RECURRENT, _BIAS = range(1, 5), range(5, 9), range(12, 16)
_OUTPUT_STATE, _CELL_STATE = 18, 19
# Peepholes, projection and its bias, normalization: LSTMs of other kinds.
_ABSENT = (9, 10, 11, 16, 17, 20, 21, 22, 23)
# Of the intermediate tensors, the one whose scale the output has in LiteRT.
_HIDDEN = 4
_TANH = 4
_GATE_SCALE = 2.0 ** (GATE_BITS - 15)


@kernel("UNIDIRECTIONAL_SEQUENCE_LSTM")
def sequence_lstm(call: Call) -> np.ndarray:
    """An LSTM over all time steps, from states that were reset."""
    cell_bits = _check(call)
    time_major = bool(call.option("time_major"))
    inputs = call.centred(0)
    samples = len(inputs)
    # (samples, batch, steps, features) or (samples, steps, batch, features) -> steps first.
    steps = np.moveaxis(inputs, 1 if time_major else 2, 0)
    steps = steps.reshape(len(steps), -1, inputs.shape[-1])
    output = call.output
    projected = [
        _product(call, steps, call.tensor(0), position, bias)
        for position, bias in zip(_KERNEL, _BIAS, strict=True)
    ]
    sigmoid, tanh = GATE_TABLES[call.engine].sigmoid(), GATE_TABLES[call.engine].tanh
    hidden = np.zeros((*steps.shape[1:-1], output.shape[-1]), np.int64)
    cell = np.zeros_like(hidden)
    clip = _clip(call)
    found = []
    for step in range(len(steps)):
        sums = [
            _int16(part[step] + _product(call, hidden, output, position))
            for part, position in zip(projected, _RECURRENT, strict=True)
        ]
        i, f, o = (_looked_up(sigmoid, sums[gate]) for gate in (0, 1, 3))
        g = _looked_up(tanh(GATE_BITS), sums[2])
        cell = _int16(_shifted(call, f * cell, 15) + _shifted(call, i * g, 30 - cell_bits))
        if clip:
            cell = np.clip(cell, -clip, clip)
        product = o * _looked_up(tanh(15 - cell_bits), cell)
        codes = multiply(product, *_output_multiplier(call)) + zero_point(output)
        codes = np.clip(codes, -128, 127)
        hidden = codes - zero_point(output)
        found.append(codes)
    codes = np.stack(found).reshape(len(steps), samples, -1, output.shape[-1])
    return np.moveaxis(codes, 0, 1 if time_major else 2).astype(np.int8)


def _check(call: Call) -> int:
    """Returns the fraction bits of the cell state; refuses what is computed in another way."""
    call.require_int8(call.tensor(0), call.output)
    for position in _ABSENT:
        if call.flat.tensor(call.operator, position) is not None:
            raise NotSimulated(f"it has an input {position}, which a plain LSTM has not")
    if call.option("fused_activation_function") != _TANH:
        raise NotSimulated("its activation is not tanh")
    for position in (*_KERNEL, *_RECURRENT):
        tensor = call.tensor(position)
        if tensor.type != "INT8" or len(tensor.scales) != 1 or any(tensor.zero_points):
            raise NotSimulated("its weights are not symmetric int8 with one scale")
    cell, state = call.tensor(_CELL_STATE), call.tensor(_OUTPUT_STATE)
    mantissa, exponent = math.frexp(scale(cell)) if cell.scales else (0.0, 0)
    cell_bits = 1 - exponent
    if cell.type != "INT16" or mantissa != 0.5 or 15 - cell_bits not in CELL_BITS:
        raise NotSimulated("its cell state is not int16 with a scale of 2^-15 to 2^-9")
    same = [state]
    if call.engine == LITERT:
        same += [call.flat.tensors[i] for i in call.operator.intermediates[_HIDDEN:]] or [cell]
    for tensor in same:
        call.require_int8(tensor)
        call.require_same_scale(tensor)
    for tensor in (cell, state):
        readers = [o for o in call.flat.operators if tensor.index in (*o.inputs, *o.outputs)]
        if not tensor.is_variable or len(readers) > 1:
            raise NotSimulated("its states are not variables of its own")
    return cell_bits


def _product(
    call: Call, values: np.ndarray, source: Tensor, position: int, bias: int | None = None
) -> np.ndarray:
    """Returns a gate's sum of products with 12 bits after the point.

    LiteRT adds the second sum before it saturates.

    Args:
        call: The operator.
        values: Codes less their zero point, features last.
        source: The tensor that has their scale.
        position: Of the weights among the inputs.
        bias: Position of the bias. Defaults to none.
    """
    weights = call.constant(position)
    kind = exact_type(weights, 255, (1,))
    sums = (values.astype(kind) @ weights.T.astype(kind)).astype(np.int64)
    if bias is not None:
        if call.tensor(bias).type != "INT32":
            raise NotSimulated(f"its bias is {call.tensor(bias).type}, not INT32")
        sums = sums + call.constant(bias).astype(np.int64)
    factor = call.precise_scale(call.tensor(position)) * call.precise_scale(source)
    factors = quantize_multiplier(float(factor / type(factor)(_GATE_SCALE)))
    found = multiply(wrap(sums), *factors)
    return found if call.engine == LITERT and bias is None else _int16(found)


def _output_multiplier(call: Call) -> tuple[int, int]:
    factor = 2.0**-30 / float(scale(call.output))
    return quantize_multiplier(float(np.float32(factor)) if call.engine == LITERT else factor)


def _shifted(call: Call, products: np.ndarray, shift: int) -> np.ndarray:
    """Returns products / 2^shift: rounded once in LiteRT, twice in TensorFlow Lite Micro."""
    if call.engine == LITERT:
        return shift_right(products, shift)
    return _int16(multiply(products, *quantize_multiplier(2.0**-shift)))


def _clip(call: Call) -> int:
    """Returns the largest code of the cell state that the options allow; 0 for any."""
    limit = np.float32(call.operator.options.get("cell_clip", 0))
    if limit <= 0:
        return 0
    return int(min(limit / scale(call.tensor(_CELL_STATE)), np.float32(2**15 - 1)))


def _int16(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -(2**15), 2**15 - 1)


def _looked_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return table[codes + 2**15].astype(np.int64)
