"""Convolutions and matrix products: exact sums, then each engine's requantization.

The sums are integers, so all engines agree on them. They differ in how a sum becomes an int8 code:

* XNNPACK (LiteRT) converts it to float32, multiplies it by input scale * weight scale / output
  scale (also float32) and rounds halves to even.
* TensorFlow Lite Micro multiplies it by a 31-bit integer and shifts, rounding twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.core.fixed_point import (
    multiply,
    quantize_multiplier,
    quantize_multipliers,
    rounds_up,
    wrap,
)
from edgecompress.flatbuffers.tensors import PACKED, Tensor
from edgecompress.simulation.kernels import (
    LITERT,
    Call,
    NotSimulated,
    kernel,
    merged,
    scale,
    split,
    zero_point,
)
from edgecompress.simulation.windows import Window, convolve, convolve_depthwise, exact_type, window


def round_in_float(sums: np.ndarray, factors: np.ndarray | np.float32, offset: int) -> np.ndarray:
    """Returns sums * factors + offset as XNNPACK rounds it: float32, halves to even.

    Args:
        sums: int32 values.
        factors: float32, one for each channel or one for all.
        offset: Zero point of the output.
    """
    steps = np.rint(sums.astype(np.float32) * factors)
    # Far beyond int8; a larger float has no int32.
    return np.clip(steps, -(2.0**20), 2.0**20).astype(np.int64) + offset


def _factors(source: Tensor, filters: Tensor, output: Tensor) -> np.ndarray:
    """XNNPACK's float32 factors: input scale * weight scale / output scale, in this order."""
    scales = np.array(filters.scales, np.float32)
    factors: np.ndarray = scale(source) * scales / scale(output)
    return factors


def _multipliers(source: Tensor, filters: Tensor, output: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Integer multipliers and shifts, from factors in float64."""
    factors = [float(scale(source)) * float(s) / float(scale(output)) for s in filters.scales]
    return quantize_multipliers(factors)


def _requantized(
    call: Call, sums: np.ndarray, source: int = 0, integers: bool = False
) -> np.ndarray:
    """Adds the bias, which follows the input and the weights, and returns the output's codes.

    Args:
        call: The operator.
        sums: Of products, the output's channels last.
        source: Position of the input.
        integers: Whether LiteRT's own kernel with integer multipliers runs instead of XNNPACK's.
            So does it where XNNPACK does not take the weights.
    """
    filters, bias = call.tensor(1), call.flat.tensor(call.operator, max(source, 1) + 1)
    if bias is not None:
        if bias.type != "INT32":
            raise NotSimulated(f"its bias is {bias.type}, not INT32")
        sums = sums + call.constant(max(source, 1) + 1).astype(np.int64)
    sums = wrap(sums)
    scales = call.tensor(source), filters, call.output
    narrow = call.engine == LITERT and not _taken_by_xnnpack(call)
    if call.engine == LITERT and not (integers or narrow):
        return call.clamp(round_in_float(sums, _factors(*scales), zero_point(call.output)))
    up = narrow and rounds_up(call.operator.code, sums.shape[-1])
    return call.clamp(multiply(sums, *_multipliers(*scales), up=up) + zero_point(call.output))


def _taken_by_xnnpack(call: Call) -> bool:
    """Returns whether XNNPACK computes with the weights of an operator.

    Of those of fewer than 8 bits, it takes the matrices of Dense layers whose rows fill whole
    bytes.
    """
    filters = call.tensor(1)
    in_a_byte = 8 // PACKED.get(filters.type, 8)
    whole = call.operator.code == "FULLY_CONNECTED" and filters.shape[1] % in_a_byte == 0
    return in_a_byte == 1 or whole


def _weights(call: Call, source: int = 0) -> np.ndarray:
    call.require_int8(call.tensor(source), call.output)
    filters = call.tensor(1)
    if (
        filters.type not in ("INT8", "INT4", "INT2")
        or any(filters.zero_points)
        or not filters.scales
    ):
        raise NotSimulated(f"its weights are {filters.type}, not symmetric int8, int4 or int2")
    return call.constant(1)


def _windows(call: Call, size: Sequence[int]) -> tuple[Window, Window]:
    height, width = call.tensor(0).shape[1:3]
    padding = call.option("padding")
    return (
        window(height, size[0], call.option("stride_h", 1), call.option("dilation_h_factor", 1),
               padding),
        window(width, size[1], call.option("stride_w", 1), call.option("dilation_w_factor", 1),
               padding),
    )  # fmt: skip


@kernel("CONV_2D", "DEPTHWISE_CONV_2D")
def convolution(call: Call) -> np.ndarray:
    """A convolution, depthwise or not."""
    weights = _weights(call)
    if call.engine == LITERT and call.flat.tensor(call.operator, 2) is None:
        # XNNPACK leaves it to a kernel with other rounding.
        raise NotSimulated("it has no bias")
    inputs = call.centred(0)
    summed = convolve_depthwise if call.operator.code == "DEPTHWISE_CONV_2D" else convolve
    sums = summed(merged(inputs), weights, _windows(call, weights.shape[1:3]))
    return split(_requantized(call, sums), len(inputs))


@kernel("FULLY_CONNECTED")
def fully_connected(call: Call) -> np.ndarray:
    """A matrix product over the last axis."""
    weights = _weights(call)
    inputs = call.centred(0)
    rows = inputs.reshape(-1, 1, 1, weights.shape[1])
    one = Window(1, 1, 1, 0, 1)
    sums = convolve(rows, weights[:, None, None], (one, one))
    return _requantized(call, sums).reshape(len(inputs), *call.output.shape)


@kernel("TRANSPOSE_CONV")
def transposed_convolution(call: Call) -> np.ndarray:
    """A transposed convolution: every input element adds a scaled kernel to the output."""
    weights, inputs = _weights(call, source=2), call.centred(2)
    maps: np.ndarray = merged(inputs).astype(exact_type(weights, 255, (1, 2, 3)))
    strides = call.option("stride_h", 1), call.option("stride_w", 1)
    # The window of the convolution that this one reverses: from the output to the input.
    windows = [
        window(length, size, stride, 1, call.option("padding"))
        for length, size, stride in zip(
            call.output.shape[1:3], weights.shape[1:3], strides, strict=True
        )
    ]
    ends = [
        max((n - 1) * w.stride + w.size, w.before + length)
        for n, w, length in zip(maps.shape[1:3], windows, call.output.shape[1:3], strict=True)
    ]
    sums = np.zeros((len(maps), *ends, len(weights)), np.int64)
    for y in range(weights.shape[1]):
        for x in range(weights.shape[2]):
            rows = slice(y, y + (maps.shape[1] - 1) * strides[0] + 1, strides[0])
            columns = slice(x, x + (maps.shape[2] - 1) * strides[1] + 1, strides[1])
            sums[:, rows, columns] += (maps @ weights[:, y, x].T.astype(maps.dtype)).astype(
                np.int64
            )
    rows, columns = (
        slice(w.before, w.before + n) for w, n in zip(windows, call.output.shape[1:3], strict=True)
    )
    # XNNPACK leaves kernels smaller than their stride.
    gaps = any(w.size < w.stride for w in windows)
    codes = _requantized(call, sums[:, rows, columns], source=2, integers=gaps)
    return split(codes, len(inputs))


@kernel("BATCH_MATMUL")
def matrix_product(call: Call) -> np.ndarray:
    """The product of two computed matrices."""
    call.require_int8(call.output)
    first, second = (call.centred(position).astype(np.float64) for position in (0, 1))
    if first.ndim != second.ndim:
        raise NotSimulated("its inputs have different ranks")
    if call.option("adj_x"):
        first = first.swapaxes(-1, -2)
    if call.option("adj_y"):
        second = second.swapaxes(-1, -2)
    sums = np.matmul(first, second).astype(np.int64)
    scales = call.tensor(0), call.tensor(1), call.output
    # XNNPACK leaves a second matrix with a zero point to a kernel with integer multipliers.
    if call.engine == LITERT and zero_point(call.tensor(1)) == 0:
        return call.clamp(round_in_float(sums, _factors(*scales), zero_point(call.output)))
    product = call.precise_scale(scales[0]) * call.precise_scale(scales[1])
    factor = quantize_multiplier(float(product) / float(scale(call.output)))
    return call.clamp(multiply(sums, *factor) + zero_point(call.output))
