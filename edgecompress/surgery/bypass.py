"""Bypasses layers: each gives one of its inputs as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecompress.core.errors import ConversionError
from edgecompress.core.keras_graph import (
    functional_of,
    graph_nodes,
    input_layers,
    run_graph,
)
from edgecompress.core.model_copy import copy_model


def bypass(model: Any, layers: Mapping[str, int]) -> Any:
    """Returns a copy in which each of some layers gives one of its inputs as it is.

    Layers that nothing reads any more are not part of it. An output keeps its name.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        layers: Name of a layer, none of a nested model -> position of the input that it gives.

    Raises:
        ConversionError: the rest does not fit together.

    Example:
        >>> plain = bypass(model, {"add": 1})  # doctest: +SKIP
    """
    import keras

    copied = copy_model(model)
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=layer.name)
        for tensor, layer in zip(functional_of(copied).inputs, input_layers(copied), strict=True)
    ]
    outputs = {id(tensor) for tensor in functional_of(copied).outputs}
    last = {
        node.operation.name
        for node in graph_nodes(copied)
        if any(id(tensor) in outputs for tensor in node.outputs)
    }

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name not in layers:
            return layer(*args, **kwargs)
        tensor = keras.tree.flatten((args, kwargs))[layers[layer.name]]
        if layer.name in last:
            return identity_named(layer)(tensor)
        return tensor

    structure = keras.tree.pack_sequence_as(functional_of(copied).input, inputs)
    try:
        result = keras.Model(structure, run_graph(copied, structure, call), name=copied.name)
        # Once more: layers of `copied` now belong to two graphs.
        return copy_model(result)
    except ValueError as error:
        raise ConversionError(
            f"Model {model.name!r} does not fit together without {', '.join(sorted(layers))}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def identity_named(layer: Any) -> Any:
    """Returns a layer that does nothing, with a layer's name and dtype policy."""
    import keras

    # A policy as an object has no place in the config of a layer that writes its own.
    policy = keras.dtype_policies.serialize(layer.dtype_policy)
    return keras.layers.Identity(name=layer.name, dtype=policy)
