"""Folds BatchNormalization into the layers before it, without taking it out of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.core.fusion import analyse
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.layer_kinds import KernelAxes, int8_kernels
from edgecompress.core.model_copy import Weights, copy_model


def paths(model: Any) -> dict[str, str]:
    """Returns the path of each layer by its name, nested models entered."""
    return {layer.name: path for path, layer in named_layers(model)}


def attributes(layer: Any) -> dict[str, np.ndarray]:
    """Returns a copy of a layer's weights by attribute."""
    names = [kernel.attribute for kernel in int8_kernels(layer)]
    names += ["bias", "gamma", "beta", "moving_mean", "moving_variance"]
    found = {name: getattr(layer, name, None) for name in names}
    return {name: np.array(value) for name, value in found.items() if value is not None}


def by_output(kernel: np.ndarray, axes: KernelAxes, factors: np.ndarray) -> np.ndarray:
    """Returns a kernel with each output channel multiplied by a factor, (channels,)."""
    shape = [1] * kernel.ndim
    for axis in axes.outputs:
        shape[axis] = kernel.shape[axis]
    return np.asarray(kernel * factors.reshape(shape), np.float32)


def fold_batch_norms(model: Any) -> tuple[Any, frozenset[str]]:
    """Returns a copy whose folded BatchNormalization layers are the identity, and their names.

    What they did is in the kernels and biases of the layers before them, so that the kernels are
    those of the file.

    Args:
        model: A built Sequential or Functional model.
    """
    layers, where = dict(named_layers(model)), paths(model)
    weights: Weights = {}
    folded: set[str] = set()
    for operator in analyse(model).operators.values():
        path = where.get(operator.layer, "")
        kernels = int8_kernels(layers[path]) if path else ()
        if not kernels or not operator.batch_norms or operator.layer == "":
            continue
        own = weights.get(path) or attributes(layers[path])
        kernel = kernels[-1]
        sizes = [own[kernel.attribute].shape[axis] for axis in kernel.outputs]
        bias = own.get("bias", np.zeros(int(np.prod(sizes)), np.float32)).astype(np.float64)
        for name in operator.batch_norms:
            norm = layers[where[name]]
            values = attributes(norm)
            deviation = np.sqrt(values["moving_variance"].astype(np.float64) + norm.epsilon)
            factor = values.get("gamma", 1.0) / deviation
            bias = (bias - values["moving_mean"]) * factor + values.get("beta", 0.0)
            own[kernel.attribute] = by_output(own[kernel.attribute], kernel, factor)
            weights[where[name]] = _identity(values, norm.epsilon)
            folded.add(name)
        own["bias"] = bias.astype(np.float32)
        weights[path] = own

    def edit(path: str, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "use_bias": True} if "bias" in weights.get(path, {}) else config

    return copy_model(model, edit, weights), frozenset(folded)


def _identity(values: dict[str, np.ndarray], epsilon: float) -> dict[str, np.ndarray]:
    """Returns the weights with which BatchNormalization returns its input."""
    neutral = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0 - epsilon}
    return {name: np.full_like(array, neutral[name]) for name, array in values.items()}
