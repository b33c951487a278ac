"""Sums and products of two tensors, activations that clamp, and changes of scale."""

from __future__ import annotations

import numpy as np

from edgecompress.core.fixed_point import multiply, quantize_multiplier
from edgecompress.simulation.kernels import (
    LITERT,
    Call,
    NotSimulated,
    kernel,
    numpy_type,
    scale,
    zero_point,
)
from edgecompress.simulation.weighted import round_in_float

# Bits by which TensorFlow Lite Micro shifts the terms of a sum left, to keep them precise.
_HEADROOM = 20


def broadcast(call: Call, centred: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Returns two inputs as int64 in shapes that numpy broadcasts; the samples stay first."""
    rank = len(call.output.shape)
    arrays = []
    for position in (0, 1):
        values = call.centred(position) if centred else call.value(position).astype(np.int64)
        missing = rank - (values.ndim - 1)
        arrays.append(values.reshape(len(values), *(1,) * missing, *values.shape[1:]))
    return arrays[0], arrays[1]


def _sign(call: Call) -> int:
    return -1 if call.operator.code == "SUB" else 1


@kernel("ADD", "SUB")
def add(call: Call) -> np.ndarray:
    """A sum or difference."""
    if call.output.type == "INT32" and not call.option("fused_activation_function"):
        a, b = broadcast(call, centred=False)
        return (a + _sign(call) * b).astype(np.int32)
    call.require_int8(call.output)
    factors = [float(scale(call.tensor(i)) / scale(call.output)) for i in (0, 1)]
    if call.engine == LITERT and all(2**-10 <= factor < 2**8 for factor in factors):
        return _add_of_xnnpack(call, factors)
    return _add_of_integers(call)


def _add_of_xnnpack(call: Call, factors: list[float]) -> np.ndarray:
    """Multipliers of 21 bits, the larger in [2^20, 2^21); halves rounded up."""
    shift = 20 - int(np.floor(np.log2(max(factors))))
    first, second = (int(np.rint(factor * 2.0**shift)) for factor in factors)
    a, b = broadcast(call)
    total = a * first + b * (second * _sign(call)) + (1 << (shift - 1))
    return call.clamp((total >> shift) + zero_point(call.output))


def _add_of_integers(call: Call) -> np.ndarray:
    """Both terms on a fine common grid, then requantized."""
    scales = [float(scale(call.tensor(i))) for i in (0, 1)]
    common = 2 * max(scales)
    terms = []
    for values, factor in zip(broadcast(call), scales, strict=True):
        multiplier, shift = quantize_multiplier(factor / common)
        terms.append(multiply(values << _HEADROOM, multiplier, shift))
    last = common / (2**_HEADROOM * float(scale(call.output)))
    if last >= 1:
        raise NotSimulated("its output scale is too small for the kernel")
    total = multiply(terms[0] + _sign(call) * terms[1], *quantize_multiplier(last))
    return call.clamp(total + zero_point(call.output))


@kernel("MUL")
def product(call: Call) -> np.ndarray:
    """A product of two tensors, element by element."""
    call.require_int8(call.output)
    a, b = broadcast(call)
    first, second, output = (
        call.precise_scale(tensor) for tensor in (call.tensor(0), call.tensor(1), call.output)
    )
    factor = first * second / output
    if call.engine == LITERT and 2**-16 <= factor < 2**8:
        return call.clamp(round_in_float(a * b, np.float32(factor), zero_point(call.output)))
    steps = multiply(a * b, *quantize_multiplier(float(factor)))
    return call.clamp(steps + zero_point(call.output))


@kernel("SQUARED_DIFFERENCE")
def squared_difference(call: Call) -> np.ndarray:
    """(a - b)^2 with integer multipliers, in both engines."""
    call.require_int8(call.output)
    scales = [float(scale(call.tensor(i))) for i in (0, 1)]
    common = 2 * max(scales)
    terms = []
    for values, factor in zip(broadcast(call), scales, strict=True):
        terms.append(multiply(values << 7, *quantize_multiplier(factor / common)))
    factor = common**2 / (2**14 * float(scale(call.output)))
    if call.engine == LITERT and factor >= 1:
        raise NotSimulated("its output scale is too small for the kernel")
    steps = multiply((terms[0] - terms[1]) ** 2, *quantize_multiplier(factor))
    return call.clamp(steps + zero_point(call.output))


@kernel("MAXIMUM", "MINIMUM")
def extreme(call: Call) -> np.ndarray:
    """The larger or smaller code of two tensors of the same scale."""
    call.require_int8(call.output)
    call.require_same_scale(call.tensor(0), call.tensor(1))
    function = np.maximum if call.operator.code == "MAXIMUM" else np.minimum
    return function(*broadcast(call, centred=False)).astype(np.int8)


@kernel("RELU", "RELU6")
def rectify(call: Call) -> np.ndarray:
    """An activation on its own; both engines requantize with an integer multiplier."""
    call.require_int8(call.output)
    activation = 1 if call.operator.code == "RELU" else 3
    if call.operator.code == "RELU6":
        # TensorFlow Lite Micro's kernel only clamps codes.
        call.require_same_scale(call.tensor(0))
    factor = call.precise_scale(call.tensor(0)) / call.precise_scale(call.output)
    codes = multiply(call.centred(0), *quantize_multiplier(float(factor))) + zero_point(call.output)
    return call.clamp(codes, activation)


@kernel("LEAKY_RELU")
def leaky_rectify(call: Call) -> np.ndarray:
    """Leaky ReLU: one factor for positive values, another one for negative ones."""
    call.require_int8(call.output)
    source, target = call.precise_scale(call.tensor(0)), call.precise_scale(call.output)
    alpha = np.float32(call.operator.options["alpha"])
    values = call.centred(0)
    if call.engine == LITERT:
        positive, negative = float(source / target), float(source / target * alpha)
        if 2**-8 <= positive <= 2**7 and 2**-8 <= abs(negative) < 2**7:
            # XNNPACK: multipliers of 8 fraction bits, halves rounded up.
            factors = [int(np.rint(256 * factor)) for factor in (positive, negative)]
            steps = (values * np.where(values > 0, *factors) + 128) >> 8
            return call.clamp(steps + zero_point(call.output))
    if alpha < 0:
        raise NotSimulated("its slope is negative")
    positives = multiply(values, *quantize_multiplier(float(source / target)))
    negatives = multiply(values, *quantize_multiplier(float(source * alpha / target)))
    return call.clamp(np.where(values >= 0, positives, negatives) + zero_point(call.output))


def _from_float(call: Call) -> np.ndarray:
    values = call.value(0)
    if call.engine == LITERT:
        steps = np.rint(values * (np.float32(1) / scale(call.output)))
    else:
        quotient = values / scale(call.output)
        # Halves away from zero; adding 0.5 in float32 would round some neighbours of a half.
        steps = np.trunc(quotient.astype(np.float64) + np.copysign(0.5, quotient))
    steps = np.clip(steps, -(2.0**15), 2.0**15 - 1)
    return call.clamp(steps.astype(np.int64) + zero_point(call.output))


@kernel("QUANTIZE")
def requantize(call: Call) -> np.ndarray:
    """Float values as codes, or a change of scale."""
    call.require_int8(call.output)
    if call.tensor(0).type == "FLOAT32":
        return _from_float(call)
    ratio = scale(call.tensor(0)) / scale(call.output)
    if call.engine == LITERT and 2**-8 <= ratio <= 2**7:
        # XNNPACK: a multiplier of 8 fraction bits, halves rounded up.
        steps = (call.centred(0) * int(np.rint(np.float32(256) * ratio)) + 128) >> 8
    else:
        factor = float(scale(call.tensor(0))) / float(scale(call.output))
        steps = multiply(call.centred(0), *quantize_multiplier(factor))
    return call.clamp(steps + zero_point(call.output))


@kernel("NEG")
def negate(call: Call) -> np.ndarray:
    """The sign changed, of float32."""
    if call.output.type != "FLOAT32":
        raise NotSimulated(f"it is {call.output.type}, not FLOAT32")
    return -call.value(0)


@kernel("DEQUANTIZE")
def dequantize(call: Call) -> np.ndarray:
    """Codes as float32: (q - zero point) * scale."""
    values = call.centred(0).astype(np.float32) * scale(call.tensor(0))
    return values.astype(numpy_type(call.output))
