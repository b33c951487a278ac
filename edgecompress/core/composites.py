"""Layers that are several operators in an int8 file, computed operator by operator.

One function for each kind: training, its simulation and the search for the file's tensors run it
in place of the layer's `call`. `core.fusion_rules` lists the same operators as steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# (suffix of the tap, value) -> what the next operator reads.
Insert = Callable[[str, Any], Any]
# (attribute of the layer) -> the constant that the file holds for it.
Constant = Callable[[str], Any]
# (layer, input, insert, constant) -> output.
Composite = Callable[[Any, Any, Insert, Constant], Any]


def layer_normalization(layer: Any, x: Any, insert: Insert, constant: Constant) -> Any:
    """Computes LayerNormalization as converters write it: `x g + (beta - mean g)`.

    `g = gamma / sqrt(variance + epsilon)`; every intermediate result is rounded.

    Args:
        layer: A LayerNormalization over the last axis with gamma and beta.
        x: Its input.
        insert: Called on each intermediate result.
        constant: Returns gamma and beta.
    """
    from keras import ops

    mean = insert("mean", ops.mean(x, axis=-1, keepdims=True))
    squares = insert("squared_difference", ops.square(ops.subtract(x, mean)))
    variance = insert("variance", ops.mean(squares, axis=-1, keepdims=True))
    positive = insert("epsilon", ops.add(variance, layer.epsilon))
    # Rounding may leave 0, of which the file takes the largest code.
    inverse = insert("inverse_root", ops.rsqrt(ops.maximum(positive, layer.epsilon)))
    factor = insert("factor", ops.multiply(inverse, constant("gamma")))
    product = insert("mean_product", ops.multiply(mean, factor))
    offset = insert("offset", ops.subtract(constant("beta"), product))
    return ops.add(insert("product", ops.multiply(x, factor)), offset)


# Operator of a layer class (`core.fusion_rules.LOWERINGS`) -> its function.
COMPOSITES: dict[str, Composite] = {"layer_normalization": layer_normalization}
