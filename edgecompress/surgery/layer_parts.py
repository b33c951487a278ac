"""Layers that take another's place: which can be replaced, what the parts cost, their settings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecompress.core.keras_graph import LayerCall, named_layers
from edgecompress.core.layer_kinds import exact_kind_of, kind_of
from edgecompress.surgery.factors.base import Part, multiply_accumulates

NO_DEPTHWISE = "there is no depthwise convolution with its padding or strides"
# From this share of zeros on, a kernel counts as pruned.
_PRUNED = 0.05
# 2 spatial axes, inputs and outputs.
_MOST_AXES = 4
# Families of layers that may be replaced.
REPLACED = ("dense", "convolution")


def has_kernel(layer: Any, own: str, families: Sequence[str] = REPLACED) -> bool:
    """Returns whether a layer may be replaced.

    Args:
        layer: The layer.
        own: The end of the names of layers that took another's place: those stay.
        families: Families of layers in `core.layer_kinds` that are replaced.
    """
    kind = exact_kind_of(layer)
    return kind is not None and kind.family in families and not layer.name.endswith(own)


def of_other_classes(
    model: Any, layers: str, replaced: Sequence[str], expected: Sequence[str] | None, rule: str
) -> list[str]:
    """Returns `LAYER: why` for layers with kernels that are of no class that is replaced.

    Args:
        model: The model.
        layers: Regular expression: those whose whole name it matches.
        replaced: Families in `core.layer_kinds` whose own classes are replaced.
        expected: Families that a user might expect to be replaced; None: all.
        rule: A clause for the text: which classes are replaced.
    """
    found = []
    for path, layer in named_layers(model):
        exact, kind = exact_kind_of(layer), kind_of(layer)
        known = exact is not None and exact.family in replaced
        meant = expected is None or (kind is not None and kind.family in expected)
        matrix = any(len(weight.shape) > 1 for weight in layer.weights)
        if matrix and meant and not known and re.fullmatch(layers, path):
            found.append(f"{path}: {type(layer).__name__} layers stay, {rule}")
    return found


def why_not_split(layer: Any, uses: Sequence[LayerCall]) -> str | None:
    """Returns why a layer is left as it is; None if parts can take its place."""
    if not uses:
        return "its model is subclassed and shows no shapes"
    if len({use.inputs for use in uses}) > 1:
        return "it is shared by inputs of different shapes"
    if getattr(layer, "quantization_mode", None) is not None:
        return f"its weights are quantized ({layer.quantization_mode})"
    if getattr(layer, "groups", 1) > 1:
        return "it is a grouped convolution"
    if len(layer.kernel.shape) > _MOST_AXES:
        return "it is a convolution over three axes"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "it is channels_first"
    if None in uses[0].inputs[0][1:]:
        return "the size of its input is unknown"
    return None


def depthwise_exists(layer: Any) -> bool:
    """Returns whether Keras has a depthwise convolution with a layer's padding and strides."""
    return layer.padding != "causal" and len(set(layer.strides)) == 1


def part_macs(parts: Sequence[Part], call: LayerCall) -> int:
    """Returns the multiply-accumulates of one sample in parts that take a layer's place."""
    space = len(parts[0].shape) - 2
    inputs, outputs = call.inputs[0][1:-1], call.outputs[0][1:-1]
    if space:
        return multiply_accumulates(parts, inputs, outputs)  # type: ignore[arg-type]
    return math.prod(inputs) * multiply_accumulates(parts, (), ())  # type: ignore[arg-type]


def given_up(layer: Any) -> list[str]:
    """Returns what the parts do not keep of a layer."""
    import keras

    found = []
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    zeros = 1 - np.count_nonzero(kernel) / kernel.size
    if zeros >= _PRUNED:
        found.append(f"{zeros:.0%} of its kernel is zero, that of its parts is not")
    if layer.kernel_constraint is not None:
        found.append("its kernel_constraint is left out")
    return found


def part_layer(layer: Any, part: Part, name: str, bias: bool, activation: bool) -> Any:
    """Returns the layer of a part, with the settings of the layer whose place it takes.

    Args:
        layer: That layer.
        part: The part; strides, padding and dilation act where it extends along their axis.
        name: Its name.
        bias: Whether it has the layer's bias, if there is one.
        activation: Whether it has the layer's activation.
    """
    import keras

    config = {
        "name": name,
        "dtype": layer.dtype_policy,
        "use_bias": layer.use_bias and bias,
        "activation": layer.activation if activation else None,
        "activity_regularizer": layer.activity_regularizer if activation else None,
        "bias_regularizer": layer.bias_regularizer if bias else None,
        "bias_constraint": layer.bias_constraint if bias else None,
    }
    regularizer = "depthwise_regularizer" if part.depthwise else "kernel_regularizer"
    config[regularizer] = layer.kernel_regularizer
    *size, _, outputs = part.shape
    if not size:
        return keras.layers.Dense(outputs, **config)
    along = part.axes
    # Padding and strides of an axis act where the factors extend along it; elsewhere they would
    # act twice.
    padding = layer.padding if along else "valid"
    config |= {
        "kernel_size": tuple(size),
        "strides": tuple(s if axis in along else 1 for axis, s in enumerate(layer.strides)),
        "dilation_rate": tuple(
            d if axis in along and size[axis] > 1 else 1
            for axis, d in enumerate(layer.dilation_rate)
        ),
        "padding": padding,
    }
    kind = f"Conv{len(size)}D"
    if part.depthwise:
        return getattr(keras.layers, f"Depthwise{kind}")(**config)
    return getattr(keras.layers, kind)(outputs, groups=part.groups, **config)
