"""Kernels of layers as matrix products, and the inputs that these read."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.core.layer_kinds import exact_kind_of

# Positions of a layer's input that its second moments are computed from.
_MOST_ROWS = 8192
_CHUNK = 16


def is_product(layer: Any) -> bool:
    """Returns whether a layer's kernel is a product that `rows_of` knows."""
    kind = exact_kind_of(layer)
    if kind is None or kind.family not in ("dense", "convolution", "depthwise"):
        return False
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return last and getattr(layer, "groups", 1) == 1


def as_products(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as (groups, inputs, outputs), of which a depthwise layer has many groups."""
    if _is_depthwise(layer):
        channels, multiplier = kernel.shape[-2:]
        return kernel.reshape(-1, channels, multiplier).transpose(1, 0, 2)
    return kernel.reshape(1, -1, kernel.shape[-1])


def from_products(layer: Any, products: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel that `as_products` was given."""
    if _is_depthwise(layer):
        return products.transpose(1, 0, 2).reshape(shape)
    return products.reshape(shape)


def _is_depthwise(layer: Any) -> bool:
    kind = exact_kind_of(layer)
    return kind is not None and kind.family == "depthwise"


def second_moments(layer: Any, inputs: Any) -> np.ndarray:
    """Returns the mean of `x x^T` over the positions of a layer's input: (groups, inputs, inputs).

    Args:
        layer: A layer for which `is_product` holds.
        inputs: A tensor of samples.
    """
    count = int(inputs.shape[0])
    each = max(_MOST_ROWS * _CHUNK // count, 1)
    total: Any = 0.0
    number = 0
    for start in range(0, count, _CHUNK):
        rows = _rows_of(layer, inputs[start : start + _CHUNK])
        # Evenly spaced: neighbouring positions of an image say nearly the same.
        rows = rows[:: max(len(rows) // each, 1)].astype(np.float64)
        by_group = rows.transpose(1, 0, 2)
        total = total + by_group.transpose(0, 2, 1) @ by_group
        number += len(rows)
    return np.asarray(total / max(number, 1))


def _rows_of(layer: Any, inputs: Any) -> np.ndarray:
    """Returns what a layer multiplies its kernel with: (positions, groups, inputs)."""
    import tensorflow as tf

    if not hasattr(layer, "kernel_size"):
        return np.asarray(inputs).reshape(-1, 1, inputs.shape[-1])
    size, strides = list(layer.kernel_size), list(layer.strides)
    dilation, padding = list(layer.dilation_rate), layer.padding
    if len(size) == 1:
        if padding == "causal":
            inputs = tf.pad(inputs, [[0, 0], [(size[0] - 1) * dilation[0], 0], [0, 0]])
            padding = "valid"
        inputs = tf.expand_dims(inputs, 1)
        size, strides, dilation = [1, *size], [1, *strides], [1, *dilation]
    patches = tf.image.extract_patches(
        inputs, [1, *size, 1], [1, *strides, 1], [1, *dilation, 1], padding.upper()
    )
    rows = np.asarray(patches).reshape(-1, int(np.prod(size)), inputs.shape[-1])
    if _is_depthwise(layer):
        return rows.transpose(0, 2, 1)
    return rows.reshape(len(rows), 1, -1)
