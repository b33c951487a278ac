"""NaN and infinity: found where they arise, and named by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.core.errors import NotFiniteError, UnsupportedModelError
from edgecompress.core.keras_graph import functional_of, graph_nodes, walk_layers


def weight_arrays(layer: Any) -> Iterator[np.ndarray]:
    """Yields the floating-point weights of a Keras layer, in float32, one at a time."""
    for weight in layer.weights:
        if "float" in str(getattr(weight.dtype, "name", weight.dtype)):
            yield np.asarray(weight.numpy()).astype(np.float32, copy=False)


def check_weights(model: Any, hint: str) -> None:
    """Refuses a Keras model with a weight that is NaN or infinite.

    Args:
        model: A Keras 3 or tf_keras model.
        hint: What to do, one sentence.

    Raises:
        NotFiniteError: a weight is not finite; the text names the layer and the weight.
    """
    for layer in walk_layers(model):
        if all(np.isfinite(array).all() for array in weight_arrays(layer)):
            continue
        for weight in layer.weights:
            values = np.asarray(weight.numpy())
            bad = int(np.count_nonzero(~np.isfinite(values.astype(np.float32))))
            if bad:
                raise NotFiniteError(
                    f"Layer {layer.name!r}: {bad} of {values.size} values of its weight "
                    f"{weight.name.split('/')[-1]!r} are NaN or infinite. {hint}"
                )


def check_ranges(ranges: Mapping[str, tuple[float, float]], hint: str) -> None:
    """Refuses activation ranges that are NaN or infinite.

    Args:
        ranges: Layer or tap -> (minimum, maximum).
        hint: What to do, one sentence.

    Raises:
        NotFiniteError: a range is not finite; the text names the layer.
    """
    for name, bounds in ranges.items():
        if not np.isfinite(bounds).all():
            low, high = bounds
            raise NotFiniteError(
                f"The activations of {name!r} are NaN or infinite (range {low:g} to {high:g}). "
                f"{hint}"
            )


def check_outputs(model: Any, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
    """Refuses outputs of a model that are NaN or infinite.

    Args:
        model: The Keras model that computed them; other kinds of model are not inspected.
        outputs: One array for each output, first axis samples.
        inputs: What it computed them from, one array for each input.

    Raises:
        NotFiniteError: an output is not finite; the text names the first such layer.
    """
    for position, output in enumerate(outputs):
        bad = [i for i, sample in enumerate(output) if not np.isfinite(sample).all()]
        if bad:
            where = _first_layer(model, [array[bad[0]][None] for array in inputs])
            raise NotFiniteError(
                f"Output {position} of the Keras model is NaN or infinite in {len(bad)} of "
                f"{len(output)} samples, the first is sample {bad[0]}{where}. Check the model and "
                "the scaling of the data."
            )


def _first_layer(model: Any, inputs: Sequence[np.ndarray]) -> str:
    """Returns words on the first layer that computes NaN or infinity; none where hidden."""
    import keras

    try:
        functional = functional_of(model)
    except UnsupportedModelError:
        return ""
    nodes = graph_nodes(model)
    probe = keras.Model(functional.inputs, [node.outputs[0] for node in nodes])
    values = keras.tree.flatten(probe([keras.ops.convert_to_tensor(x) for x in inputs]))
    for node, value in zip(nodes, values, strict=True):
        if not np.isfinite(keras.ops.convert_to_numpy(value)).all():
            return f"; it arises in layer {node.operation.name!r}"
    return ""
