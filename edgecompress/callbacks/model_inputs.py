"""The inputs that a model is called with, in any of the forms that Keras takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from edgecompress.core.keras_graph import functional_of


def map_inputs(model: keras.Model, inputs: Any, function: Callable[[str, Any], Any]) -> Any:
    """Returns inputs in the form they were given, each changed by a function.

    Args:
        model: The model that is called.
        inputs: A tensor, or tensors in a list, tuple or dictionary.
        function: (tap of an input: `input:0`, ...; its values in the input's type) -> new values.
    """
    functional = functional_of(model)

    def changed(position: int, values: Any) -> Any:
        values = ops.cast(ops.convert_to_tensor(values), functional.inputs[position].dtype)
        return function(f"input:{position}", values)

    if isinstance(inputs, Mapping):
        # By key: a dict may hold the inputs in any order, or more than the model reads.
        keys = _keys(model)
        return {
            key: changed(keys[key], value) if key in keys else value
            for key, value in inputs.items()
        }
    flat = [changed(position, value) for position, value in enumerate(keras.tree.flatten(inputs))]
    return keras.tree.pack_sequence_as(inputs, flat)


def _keys(model: keras.Model) -> dict[str, int]:
    """Returns every key under which data for a model input may be given -> its position."""
    inputs = functional_of(model).inputs
    keys = {tensor.name: position for position, tensor in enumerate(inputs)}
    if isinstance(functional_of(model).input, Mapping):
        positions = {id(tensor): position for position, tensor in enumerate(inputs)}
        keys.update(
            {key: positions[id(tensor)] for key, tensor in functional_of(model).input.items()}
        )
    return keys
