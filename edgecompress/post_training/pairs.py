"""Which layers of a model can be equalized with each other, and the equalized model."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.core.fusion_rules import activation_name
from edgecompress.core.keras_graph import GraphNode, follow_graph, functional_of, named_layers
from edgecompress.core.layer_kinds import KernelAxes, exact_kind_of, int8_kernels
from edgecompress.core.model_copy import Weights, copy_model
from edgecompress.post_training.equalization import Pair, factors, settled
from edgecompress.post_training.folding import attributes, by_output, fold_batch_norms, paths

# Families that move values or combine those of one channel linearly.
_LINEAR = ("pooling", "padding", "identity", "flatten")
_OUTPUT = "it is an output"
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")


def _passes(layer: Any, folded: frozenset[str]) -> bool:
    """Returns whether `f(s x) = s f(x)` for every positive factor of a channel."""
    kind = exact_kind_of(layer)
    if kind is None:
        return False
    if kind.family == "activation" and type(layer).__name__ == "ReLU":
        return layer.max_value is None and not layer.threshold
    if kind.family == "activation":
        known = type(layer).__name__ in ("LeakyReLU", "Relu")
        return known or (hasattr(layer, "activation") and activation_name(layer) in _HOMOGENEOUS)
    return kind.family in (*_LINEAR, "slope") or layer.name in folded


def _why_not(layer: Any) -> str:
    """Returns why a layer's kernel cannot be scaled by input channel; "" if it can."""
    if len(int8_kernels(layer)) != 1:
        return f"{layer.name} has two kernels"
    if getattr(layer, "groups", 1) != 1:
        return f"{layer.name} is a grouped convolution"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return f"{layer.name} has its channels first"
    return ""


def find_pairs(
    model: Any, folded: frozenset[str] = frozenset()
) -> tuple[tuple[Pair, ...], dict[str, str]]:
    """Returns the pairs of layers between which scaling is exact, and why others are left out.

    Args:
        model: A built Sequential or Functional model.
        folded: BatchNormalization layers that are the identity.

    Returns:
        The pairs in the order of the model; first layer -> reason.
    """
    readers: dict[str, list[tuple[str, str]]] = {}
    unable: dict[str, str] = {}

    def read(source: str, second: str, reason: str = "") -> None:
        if source:
            readers[source].append((second, reason))

    # Values: the layer whose channels a tensor holds, each times a positive factor; "" for none.
    def visit(node: GraphNode, sources: list[str]) -> list[str]:
        layer = node.operation
        kernels = int8_kernels(layer)
        if kernels and len(sources) == 1 and node.plain:
            read(sources[0], layer.name, _why_not(layer))
            readers[layer.name] = []
            if len(kernels) != 1:
                unable[layer.name] = "it has two kernels"
            elif activation_name(layer) not in _HOMOGENEOUS:
                unable[layer.name] = f"its activation is {activation_name(layer)}"
            return [layer.name]
        if len(sources) == 1 and node.plain and _passes(layer, folded):
            return sources
        does = "combines it with others" if len(sources) > 1 else "does not scale with its input"
        for source in sources:
            read(source, "", f"{layer.name} ({type(layer).__name__}) {does}")
        return [""] * len(node.outputs)

    for source in follow_graph(model, [""] * len(functional_of(model).inputs), visit):
        read(source, "", _OUTPUT)
    pairs, skipped = [], {}
    for first, found in readers.items():
        reason = next((why for _, why in found if why), "")
        if reason == _OUTPUT and len(found) == 1:
            continue
        reason = unable.get(first) or reason
        if len(found) == 1 and not reason:
            pairs.append(Pair(first, found[0][0]))
        else:
            skipped[first] = reason or f"{len(found)} layers read it"
    return tuple(pairs), skipped


def _by_channels(kernel: np.ndarray, axes: KernelAxes) -> np.ndarray:
    """Returns a kernel as (rest, output channels)."""
    ordered = np.moveaxis(kernel, axes.outputs, tuple(range(-len(axes.outputs), 0)))
    return ordered.reshape(-1, int(np.prod(ordered.shape[-len(axes.outputs) :])))


def _inputs(kernel: np.ndarray, axes: KernelAxes, channels: int) -> np.ndarray:
    """Returns a kernel as (input channels, rest); behind Flatten, channels repeat."""
    ordered = np.moveaxis(kernel, axes.inputs or -2, 0)
    positions = ordered.reshape(-1, channels, *ordered.shape[1:])
    return np.moveaxis(positions, 1, 0).reshape(channels, -1)


def _by_input(kernel: np.ndarray, axes: KernelAxes, values: np.ndarray) -> np.ndarray:
    """Returns a kernel with each input channel multiplied by a factor."""
    axis = axes.inputs or -2
    shape = [1] * kernel.ndim
    shape[axis] = kernel.shape[axis]
    repeated = np.tile(values, kernel.shape[axis] // len(values))
    return np.asarray(kernel * repeated.reshape(shape), np.float32)


def equalized(model: Any, rounds: int) -> tuple[Any, tuple[Pair, ...], dict[str, str]]:
    """Returns a copy with equalized pairs, the pairs, and why other layers are left out.

    Args:
        model: A built Sequential or Functional model; not changed.
        rounds: How often all pairs are gone through, at most.
    """
    copy, folded = fold_batch_norms(model)
    pairs, skipped = find_pairs(copy, folded)
    layers, where = dict(named_layers(copy)), paths(copy)
    weights: Weights = {
        where[name]: attributes(layers[where[name]]) for p in pairs for name in (p.first, p.second)
    }
    kernels = {path: int8_kernels(layers[path])[0] for path in weights}
    for _ in range(rounds):
        moved = [_equalize(weights, kernels, where[p.first], where[p.second]) for p in pairs]
        if all(moved):
            break
    return copy_model(copy, weights=weights), pairs, skipped


def _equalize(weights: Weights, kernels: dict[str, KernelAxes], first: str, second: str) -> bool:
    """Equalizes one pair in place; returns whether it was settled."""
    one, two = weights[first], weights[second]
    out_axes, in_axes = kernels[first], kernels[second]
    matrix = _by_channels(one[out_axes.attribute], out_axes)
    scales = factors(matrix, _inputs(two[in_axes.attribute], in_axes, matrix.shape[1]))
    one[out_axes.attribute] = by_output(one[out_axes.attribute], out_axes, 1 / scales)
    if "bias" in one:
        one["bias"] = (one["bias"] / scales).astype(np.float32)
    two[in_axes.attribute] = _by_input(two[in_axes.attribute], in_axes, scales)
    return settled(scales)
