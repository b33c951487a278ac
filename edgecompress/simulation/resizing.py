"""Bilinear resizing of maps."""

from __future__ import annotations

import numpy as np

from edgecompress.simulation.kernels import LITERT, TFLM, Call, kernel

_HALF_PIXELS, _CORNERS = "half_pixel_centers", "align_corners"


def _sizes(call: Call, axis: int) -> tuple[int, int, int, int]:
    """Returns the old and new size of an axis, and the two whose ratio is the step of places."""
    old, new = call.tensor(0).shape[axis], call.output.shape[axis]
    return (old, new, old - 1, new - 1) if call.option(_CORNERS) and new > 1 else (old, new) * 2


def _checked(call: Call) -> np.ndarray:
    call.require_int8(call.tensor(0), call.output)
    call.require_same_scale(call.tensor(0))
    return call.value(0).astype(np.int64)


@kernel("RESIZE_BILINEAR", engines=(LITERT,))
def litert_bilinear(call: Call) -> np.ndarray:
    """XNNPACK's: places in float32, weights of 11 bits, halves rounded up."""
    found = _checked(call)
    # Along the width, then along the height; rounded once.
    for axis in (2, 1):
        old, new, reach, steps = _sizes(call, axis)
        ratio = np.float32(reach) / np.float32(steps)
        places = np.arange(new, dtype=np.float32) * ratio
        if call.option(_HALF_PIXELS):
            places = places + (np.float32(0.5) * ratio - np.float32(0.5))
            places = np.clip(places, np.float32(0), np.float32(old - 1))
        lower = np.minimum(places.astype(np.int64), old - 1)
        weights = np.rint((places - lower.astype(np.float32)) * np.float32(2048)).astype(np.int64)
        shape = [1] * found.ndim
        shape[axis + 1] = new
        low = found.take(lower, axis + 1)
        high = found.take(np.minimum(lower + 1, old - 1), axis + 1)
        found = (low << 11) + (high - low) * weights.reshape(shape)
    return call.clamp((found + (1 << 21)) >> 22)


@kernel("RESIZE_BILINEAR", engines=(TFLM,))
def tflm_bilinear(call: Call) -> np.ndarray:
    """TensorFlow Lite Micro's: places of 10 fraction bits, halves away from zero."""
    found = _checked(call)
    for axis in (1, 2):
        old, new, reach, steps = _sizes(call, axis)
        ratio = ((reach << 10) + steps // 2) // steps
        places = np.arange(new, dtype=np.int64) * ratio
        if call.option(_HALF_PIXELS):
            places = places + ratio // 2 - (1 << 9)
        lower = np.maximum(places, 0) >> 10
        upper = np.clip((places + (1 << 10) - 1) >> 10, 0, old - 1)
        shape = [1] * found.ndim
        shape[axis + 1] = new
        weights = (places - (lower << 10)).reshape(shape)
        low, high = (found.take(np.minimum(at, old - 1), axis + 1) for at in (lower, upper))
        found = low * ((1 << 10) - weights) + high * weights
    return call.clamp(np.sign(found) * ((np.abs(found) + (1 << 19)) >> 20))
