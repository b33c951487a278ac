"""Convolutions and matrix products: exact sums, then each engine's requantization.

The sums are integers, so all engines agree on them. They differ in how a sum becomes an int8 code:

* XNNPACK (LiteRT) converts it to float32, multiplies it by input scale * weight scale / output
  scale (also float32) and rounds halves to even.
* TensorFlow Lite Micro multiplies it by a 31-bit integer and shifts, rounding twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.flatbuffers.tensors import Tensor
from edgecompress.simulation.fixed_point import multiply, quantize_multipliers, wrap
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
from edgecompress.simulation.windows import Window, convolve, convolve_depthwise, window


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


def _factors(call: Call, filters: Tensor) -> np.ndarray:
    """XNNPACK's float32 factors: input scale * weight scale / output scale, in this order."""
    scales = np.array(filters.scales, np.float32)
    factors: np.ndarray = scale(call.tensor(0)) * scales / scale(call.output)
    return factors


def _multipliers(call: Call, filters: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """TensorFlow Lite Micro's integer multipliers and shifts, from factors in float64."""
    source, output = float(scale(call.tensor(0))), float(scale(call.output))
    if call.operator.code == "FULLY_CONNECTED" and len(filters.scales) == 1:
        # This one product is made in float32.
        product = float(scale(call.tensor(0)) * scale(filters))
        return quantize_multipliers([product / output])
    return quantize_multipliers([source * float(s) / output for s in filters.scales])


def _requantized(call: Call, sums: np.ndarray) -> np.ndarray:
    """Adds the bias and returns the codes of the output."""
    filters, bias = call.tensor(1), call.flat.tensor(call.operator, 2)
    if bias is not None:
        if bias.type != "INT32":
            raise NotSimulated(f"its bias is {bias.type}, not INT32")
        sums = sums + call.constant(2).astype(np.int64)
    sums = wrap(sums)
    offset = zero_point(call.output)
    if call.engine == LITERT:
        return call.clamp(round_in_float(sums, _factors(call, filters), offset))
    return call.clamp(multiply(sums, *_multipliers(call, filters)) + offset)


def _weights(call: Call) -> np.ndarray:
    call.require_int8(call.tensor(0), call.output)
    filters = call.tensor(1)
    if filters.type != "INT8" or any(filters.zero_points) or not filters.scales:
        raise NotSimulated(f"its weights are {filters.type}, not symmetric int8")
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
