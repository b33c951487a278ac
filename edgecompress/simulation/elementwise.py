"""Sums and products of two tensors, activations that clamp, and changes of scale."""

from __future__ import annotations

import numpy as np

from edgecompress.simulation.fixed_point import multiply, quantize_multiplier
from edgecompress.simulation.kernels import (
    LITERT,
    TFLM,
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


@kernel("ADD", "SUB", engines=(LITERT,))
def litert_add(call: Call) -> np.ndarray:
    """XNNPACK's sum: multipliers of 21 bits, halves rounded up."""
    call.require_int8(call.output)
    factors = [np.float32(scale(call.tensor(i)) / scale(call.output)) for i in (0, 1)]
    if not all(2**-10 <= factor < 2**8 for factor in factors):
        raise NotSimulated("the ratio of its scales is outside [1/1024, 256), which XNNPACK leaves")
    # The larger multiplier is in [2^20, 2^21).
    shift = 20 - int(np.floor(np.log2(float(max(factors)))))
    first, second = (int(np.rint(float(factor) * 2.0**shift)) for factor in factors)
    a, b = broadcast(call)
    total = a * first + b * (second * _sign(call)) + (1 << (shift - 1))
    return call.clamp((total >> shift) + zero_point(call.output))


@kernel("ADD", "SUB", engines=(TFLM,))
def tflm_add(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's sum: both terms on a fine common grid, then requantized."""
    call.require_int8(call.output)
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


@kernel("MUL", engines=(LITERT,))
def litert_multiply(call: Call) -> np.ndarray:
    """XNNPACK's product, rounded in float32."""
    call.require_int8(call.output)
    a, b = broadcast(call)
    factor = scale(call.tensor(0)) * scale(call.tensor(1)) / scale(call.output)
    if not 2**-16 <= factor < 2**8:
        raise NotSimulated("the ratio of its scales is outside [2^-16, 256), which XNNPACK leaves")
    return call.clamp(round_in_float(a * b, factor, zero_point(call.output)))


@kernel("MUL", engines=(TFLM,))
def tflm_multiply(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's product."""
    call.require_int8(call.output)
    a, b = broadcast(call)
    scales = [float(scale(tensor)) for tensor in (call.tensor(0), call.tensor(1), call.output)]
    factor = quantize_multiplier(scales[0] * scales[1] / scales[2])
    return call.clamp(multiply(a * b, *factor) + zero_point(call.output))


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
    factor = quantize_multiplier(float(scale(call.tensor(0)) / scale(call.output)))
    codes = multiply(call.centred(0), *factor) + zero_point(call.output)
    return call.clamp(codes, activation)


@kernel("LEAKY_RELU", engines=(LITERT,))
def litert_leaky(call: Call) -> np.ndarray:
    """XNNPACK's leaky ReLU: multipliers of 8 fraction bits, halves rounded up."""
    call.require_int8(call.output)
    positive = scale(call.tensor(0)) / scale(call.output)
    negative = positive * np.float32(call.operator.options["alpha"])
    in_range = 2**-8 <= positive <= 128 and abs(negative) >= 2**-8 and -127.99 < negative <= 128
    if not in_range:
        raise NotSimulated("the ratio of its scales is one that XNNPACK leaves")
    values = call.centred(0)
    factors = [int(np.rint(np.float32(256) * factor)) for factor in (positive, negative)]
    steps = (values * np.where(values > 0, *factors) + 128) >> 8
    return call.clamp(steps + zero_point(call.output))


@kernel("LEAKY_RELU", engines=(TFLM,))
def tflm_leaky(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's leaky ReLU."""
    call.require_int8(call.output)
    alpha = np.float32(call.operator.options["alpha"])
    if alpha < 0:
        raise NotSimulated("its slope is negative")
    values, source, target = call.centred(0), scale(call.tensor(0)), scale(call.output)
    positive = multiply(values, *quantize_multiplier(float(source / target)))
    negative = multiply(values, *quantize_multiplier(float(source * alpha / target)))
    steps = np.where(values >= 0, positive, negative)
    return call.clamp(steps + zero_point(call.output))


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


@kernel("QUANTIZE", engines=(LITERT,))
def litert_quantize(call: Call) -> np.ndarray:
    """XNNPACK's change of scale: a multiplier of 8 fraction bits, halves rounded up."""
    call.require_int8(call.output)
    if call.tensor(0).type == "FLOAT32":
        return _from_float(call)
    factor = scale(call.tensor(0)) / scale(call.output)
    if not 2**-8 <= factor <= 2**7:
        raise NotSimulated("the ratio of its scales is outside [1/256, 128], which XNNPACK leaves")
    steps = (call.centred(0) * int(np.rint(np.float32(256) * factor)) + 128) >> 8
    return call.clamp(steps + zero_point(call.output))


@kernel("QUANTIZE", engines=(TFLM,))
def tflm_quantize(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's change of scale."""
    call.require_int8(call.output)
    if call.tensor(0).type == "FLOAT32":
        return _from_float(call)
    factor = quantize_multiplier(float(scale(call.tensor(0))) / float(scale(call.output)))
    return call.clamp(multiply(call.centred(0), *factor) + zero_point(call.output))


@kernel("DEQUANTIZE")
def dequantize(call: Call) -> np.ndarray:
    """Codes as float32: (q - zero point) * scale."""
    values = call.centred(0).astype(np.float32) * scale(call.tensor(0))
    return values.astype(numpy_type(call.output))
