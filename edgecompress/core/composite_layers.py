"""What computes each layer of several operators, part by part: attention, normalizations, ...

As converters write them: the names of their parts become those of taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgecompress.core.composites import (
    COMPOSITES,
    MASKED,
    Composite,
    Constant,
    Declined,
    Parts,
    is_computed,
    is_number,
)
from edgecompress.core.keras_graph import dropout_of, inner_layer


def _axes_of(axes: Any, rank: int) -> tuple[int, ...]:
    listed = [axes] if isinstance(axes, int) else list(axes)
    return tuple(sorted(int(axis) % rank for axis in listed))


def _spread(values: Any, axes: tuple[int, ...], rank: int) -> Any:
    """Returns weights along some axes in a shape that broadcasts to `rank` dimensions."""
    from keras import ops

    sizes = iter(values.shape)
    return ops.reshape(values, [next(sizes) if i in axes else 1 for i in range(rank)])


def _normalized(
    layer: Any, parts: Parts, x: Any, axes: tuple[int, ...], gamma: Any, beta: Any, own: bool
) -> Any:
    """Computes a normalization as converters write it: `x g + (beta - mean g)`.

    `g = gamma / sqrt(variance + epsilon)`; every intermediate result is rounded. With `own`, the
    difference from the mean is rounded before it is squared.
    """
    mean = parts.operate("mean", "mean", x, axis=axes, keepdims=True)
    if own:
        difference = parts.operate("difference", "subtract", x, mean)
        squares = parts.operate("squared_difference", "multiply", difference, difference)
    else:
        squares = parts.operate("squared_difference", "squared_difference", x, mean)
    variance = parts.operate("variance", "mean", squares, axis=axes, keepdims=True)
    positive = parts.operate("epsilon", "add", variance, Constant(layer.epsilon))
    factor = parts.operate("inverse_root", "inverse_root", positive, epsilon=layer.epsilon)
    if gamma is not None:
        factor = parts.operate("factor", "multiply", factor, Constant(gamma))
    product = parts.operate("mean_product", "multiply", mean, factor)
    if beta is None:
        scaled = parts.operate("product", "multiply", x, factor)
        return parts.operate("", "subtract", scaled, product)
    offset = parts.operate("offset", "subtract", Constant(beta), product)
    return parts.operate("", "add", parts.operate("product", "multiply", x, factor), offset)


@COMPOSITES.register("layer_normalization")
def layer_normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """LayerNormalization over any axes."""
    if getattr(layer, "rms_scaling", False):
        raise Declined("int8 simulation does not know rms_scaling")
    rank = len(x.shape)
    axes = _axes_of(layer.axis, rank)
    gamma = _spread(layer.gamma, axes, rank) if layer.scale else None
    beta = _spread(layer.beta, axes, rank) if layer.center else None
    return _normalized(layer, parts, x, axes, gamma, beta, own=False)


@COMPOSITES.register("group_normalization")
def group_normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """GroupNormalization of the last axis."""
    rank = len(x.shape)
    if layer.axis not in (-1, rank - 1):
        raise Declined("its axis is not the last one")
    if any(size is None for size in x.shape[1:]):
        raise Declined("its input has open dimensions")
    groups = layer.groups
    width = x.shape[-1] // groups
    grouped = parts.move("reshape", x, newshape=(-1, *x.shape[1:-1], groups, width))
    axes = tuple(i for i in range(1, rank + 1) if i != rank - 1)
    both = (rank - 1, rank)

    def spread(weights: Any) -> Any:
        from keras import ops

        return _spread(ops.reshape(weights, (groups, width)), both, rank + 1)

    gamma = spread(layer.gamma) if layer.scale else None
    beta = spread(layer.beta) if layer.center else None
    normal = _normalized(layer, parts, grouped, axes, gamma, beta, own=True)
    return parts.move("reshape", normal, newshape=(-1, *x.shape[1:]))


@COMPOSITES.register("rms_normalization")
def rms_normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """RMSNormalization: `x / sqrt(mean(x^2) + epsilon) * scale`."""
    rank = len(x.shape)
    axes = _axes_of(layer.axis, rank)
    squares = parts.operate("squares", "multiply", x, x)
    mean = parts.operate("mean", "mean", squares, axis=axes, keepdims=True)
    positive = parts.operate("epsilon", "add", mean, Constant(layer.epsilon))
    inverse = parts.operate("inverse_root", "inverse_root", positive, epsilon=layer.epsilon)
    normal = parts.operate("normal", "multiply", x, inverse)
    return parts.operate("", "multiply", normal, Constant(_spread(layer.scale, axes, rank)))


@COMPOSITES.register("unit_normalization")
def unit_normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """UnitNormalization, and ops.normalize of order 2: `x / |x|`."""
    if getattr(layer, "order", 2) != 2:
        raise Declined("its order is not 2")
    squares = parts.operate("squares", "multiply", x, x)
    axes = _axes_of(layer.axis, len(x.shape))
    total = parts.operate("sum", "sum", squares, axis=axes, keepdims=True)
    inverse = parts.operate("inverse_root", "inverse_root", total, epsilon=1e-24)
    inverse = parts.operate("limited", "minimum", inverse, Constant(1e12))
    return parts.operate("", "multiply", x, inverse)


@COMPOSITES.register("einsum")
def einsum_dense(layer: Any, parts: Parts, x: Any) -> Any:
    """EinsumDense whose kernel is a matrix of inputs and outputs."""
    from keras import activations

    linear = layer.activation is None or layer.activation is activations.linear
    outputs = parts.weighted("" if linear else "pre_activation", "kernel", layer, x)
    return parts.activate(layer, outputs)


@COMPOSITES.register("heads")
def multi_head_attention(
    layer: Any,
    parts: Parts,
    query: Any,
    value: Any,
    key: Any = None,
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
    **masks: Any,
) -> Any:
    """MultiHeadAttention over the axis of a sequence."""
    settings = layer.get_config()
    if any(mask is not None for mask in masks.values()) or return_attention_scores:
        raise Declined("it is called with a mask or returns its scores")
    if len(query.shape) != 3 or settings.get("use_gate") or settings.get("sliding_window"):
        raise Declined("int8 simulation knows it over one axis, without gate and window")
    dropped = dropout_of(layer) if settings["dropout"] else None
    return _heads(layer, parts, query, value, key, settings["key_dim"], 1, use_causal_mask, dropped)


@COMPOSITES.register("grouped heads")
def group_query_attention(
    layer: Any,
    parts: Parts,
    query: Any,
    value: Any,
    key: Any = None,
    use_causal_mask: bool = False,
    return_attention_scores: bool = False,
    **masks: Any,
) -> Any:
    """GroupQueryAttention: heads of queries share those of keys and values."""
    settings = layer.get_config()
    if any(mask is not None for mask in masks.values()) or return_attention_scores:
        raise Declined("it is called with a mask or returns its scores")
    if settings.get("use_gate") or settings.get("sliding_window") or settings["dropout"]:
        raise Declined("int8 simulation knows it without gate, window and dropout")
    times = layer.num_query_heads // layer.num_key_value_heads
    return _heads(
        layer, parts, query, value, key, settings["head_dim"], times, use_causal_mask, None
    )


def _heads(
    layer: Any,
    parts: Parts,
    query: Any,
    value: Any,
    key: Any,
    size: int,
    times: int,
    causal: bool,
    dropout: Any,
) -> Any:
    """Computes attention of several heads.

    Args:
        layer: Has the layers `query_dense`, `key_dense`, `value_dense` and `output_dense`.
        parts: The parts.
        query: (batch, places, channels).
        value: (batch, other places, channels).
        key: As `value`, which stands for None.
        size: Channels of a head.
        times: Heads of queries that share one of keys and values.
        causal: Whether a place sees those before it alone.
        dropout: Layer between shares and values; None for none. Keras scales the queries then,
            else the scores.
    """
    queries, keys, values, outputs = (
        inner_layer(layer, f"{part}_dense") for part in ("query", "key", "value", "output")
    )
    rows = parts.weighted("query", "query_dense.kernel", queries, query)
    columns = parts.weighted("key", "key_dense.kernel", keys, value if key is None else key)
    held = parts.weighted("value", "value_dense.kernel", values, value)
    if times > 1:
        columns, held = (parts.move("repeat", v, repeats=times, axis=2) for v in (columns, held))
    scale = Constant(1.0 / float(size) ** 0.5)
    if dropout is None:
        scores = parts.operate("scores", "product", rows, columns, equation="abcd,aecd->acbe")
        scores = parts.operate("scaled", "multiply", scores, scale)
    else:
        rows = parts.operate("scaled", "multiply", rows, scale)
        scores = parts.operate("scores", "product", columns, rows, equation="aecd,abcd->acbe")
    if causal:
        scores = parts.masked(scores, np.tril(np.ones((query.shape[1], value.shape[1]), bool)))
    shares = parts.operate("shares", "softmax", scores)
    if dropout is not None:
        shares = parts.inner(dropout, shares)
    context = parts.operate("context", "product", shares, held, equation="acbe,aecd->abcd")
    return parts.weighted("", "output_dense.kernel", outputs, context)


@COMPOSITES.register("attention")
def attention(
    layer: Any,
    parts: Parts,
    inputs: Any,
    mask: Any = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> Any:
    """Attention with scores of products."""
    masked = mask is not None and any(one is not None for one in mask)
    if masked or use_causal_mask or return_attention_scores:
        raise Declined("it is called with a mask or returns its scores")
    if layer.score_mode != "dot" or layer.dropout:
        raise Declined("int8 simulation knows it with scores of products and without dropout")
    query, value, key = (*inputs, inputs[1])[:3] if len(inputs) == 2 else inputs
    scores = parts.operate("scores", "product", query, key, equation="abc,adc->abd")
    if layer.scale is not None:
        scores = parts.operate("scaled", "multiply", scores, Constant(layer.scale))
    shares = parts.operate("shares", "softmax", scores)
    return parts.operate("", "product", shares, value, equation="abd,adc->abc")


@COMPOSITES.register("dot")
def dot(layer: Any, parts: Parts, inputs: Any) -> Any:
    """Dot of two sequences."""
    first, second = inputs
    if layer.normalize or len(first.shape) != 3 or len(second.shape) != 3:
        raise Declined("int8 simulation knows it for inputs of three dimensions, not normalized")
    a, b = (layer.axes,) * 2 if isinstance(layer.axes, int) else layer.axes
    left, right = ["abc", "ade"]
    summed = left[a % 3]
    right = right.replace(right[b % 3], summed)
    kept = "".join(c for c in left + right[1:] if c != summed)
    return parts.operate("", "product", first, second, equation=f"{left},{right}->{kept}")


@COMPOSITES.register("matmul")
def matmul(layer: Any, parts: Parts, first: Any, second: Any) -> Any:
    """The product of two computed matrices, of keras.ops."""
    if not (is_computed(first) and is_computed(second)):
        raise Declined("one of its factors is a constant; use a Dense layer")
    if len(first.shape) != len(second.shape):
        raise Declined("its inputs have different ranks")
    return parts.operate("", "matmul", first, second)


@COMPOSITES.register("einsum of tensors")
def einsum(layer: Any, parts: Parts, *operands: Any) -> Any:
    """einsum of two computed tensors that is a product of matrices."""
    equation = layer.subscripts.replace(" ", "")
    sources, arrow, kept = equation.partition("->")
    names = sources.split(",")
    if len(operands) != 2 or not all(map(is_computed, operands)) or not arrow or "." in equation:
        raise Declined("int8 simulation knows products of two computed tensors")
    single = any(len(set(part)) != len(part) for part in (*names, kept))
    alone = (set(names[0]) ^ set(names[1])) - set(kept)
    if single or alone:
        raise Declined("int8 simulation knows products of matrices")
    return parts.operate("", "product", *operands, equation=equation)


def _pair(function: str) -> Composite:
    def run(layer: Any, parts: Parts, first: Any, second: Any) -> Any:
        values = [v if is_computed(v) else Constant(v) for v in (first, second)]
        return parts.operate("", function, *values)

    return run


for _name in ("subtract", "multiply"):
    COMPOSITES.register(_name)(_pair(_name))


@COMPOSITES.register("add")
def add(layer: Any, parts: Parts, first: Any, second: Any) -> Any:
    """A sum of keras.ops; a constant may be a mask."""
    if is_computed(first) and is_computed(second):
        return parts.operate("", "add", first, second)
    values, constant = (first, second) if is_computed(first) else (second, first)
    if np.min(np.asarray(constant), initial=0) <= MASKED:
        return parts.operate("", "masked_sum", values, mask=np.asarray(constant, np.float32))
    return parts.operate("", "add", values, Constant(constant))


@COMPOSITES.register("divide")
def divide(layer: Any, parts: Parts, first: Any, second: Any) -> Any:
    """A quotient, of keras.ops; by a constant, the file multiplies."""
    if is_computed(second):
        return parts.operate("", "divide", first if is_computed(first) else Constant(first), second)
    return parts.operate("", "multiply", first, Constant(1.0 / np.asarray(second, np.float32)))


@COMPOSITES.register("curve")
def curve(layer: Any, parts: Parts, *values: Any) -> Any:
    """An operation of keras.ops for which int8 has no operator, but a table."""
    return parts.looked_up(layer, *values)


@COMPOSITES.register("inside a curve")
def negative(layer: Any, parts: Parts, x: Any) -> Any:
    """Negation: its sign may move into the next sum, so that it is known in tables only."""
    return parts.looked_up(layer, x, forces=False)


@COMPOSITES.register("power")
def power(layer: Any, parts: Parts, x: Any, exponent: Any) -> Any:
    """A power with a constant exponent."""
    if is_computed(exponent) or not is_number(exponent):
        raise Declined("its exponent is not one number")
    # The converter has other operators for these.
    if float(exponent) == 2.0:
        return parts.operate("", "multiply", x, x)
    if float(exponent) in (-1.0, -0.5, 1.0):
        raise Declined("write a quotient or ops.rsqrt instead of a power")
    return parts.looked_up(layer, x, exponent)


@COMPOSITES.register("square")
def square(layer: Any, parts: Parts, x: Any) -> Any:
    """Square: `x x`."""
    return parts.operate("", "multiply", x, x)


@COMPOSITES.register("reciprocal")
def reciprocal(layer: Any, parts: Parts, x: Any) -> Any:
    """Reciprocal: `1 / x`."""
    return parts.operate("", "divide", Constant(1.0), x)


@COMPOSITES.register("limit")
def limit(layer: Any, parts: Parts, first: Any, second: Any) -> Any:
    """Maximum and Minimum of a tensor and a number."""
    values, constant = (first, second) if is_computed(first) else (second, first)
    if not is_number(constant):
        raise Declined("it reads a constant of several numbers")
    return parts.operate("", type(layer).__name__.lower(), values, Constant(float(constant)))


@COMPOSITES.register("clip")
def clip(layer: Any, parts: Parts, x: Any) -> Any:
    """Clip: `max(min(x, high), low)`."""
    low, high = layer.x_min, layer.x_max
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float))):
        raise Declined("its limits are not two numbers")
    # The converter has other operators for these.
    if (low, high) == (-1, 1):
        return parts.looked_up(layer, x)
    if (low, high) == (0, 6):
        return parts.operate("", "relu6", x)
    below = parts.operate("minimum", "minimum", x, Constant(float(high)))
    if low == 0:
        return parts.operate("", "relu", below)
    return parts.operate("", "maximum", below, Constant(float(low)))


@COMPOSITES.register("resizing")
def resizing(layer: Any, parts: Parts, x: Any) -> Any:
    """Resizing of maps. Called as a layer, it would have Keras train what follows."""
    if layer.interpolation not in ("nearest", "bilinear"):
        raise Declined(f"int8 has no operator for {layer.interpolation} resizing")
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias:
        raise Declined("it crops, pads or smooths")
    if layer.data_format == "channels_first" or len(x.shape) != 4:
        raise Declined("its data format is channels_first, or its input is no map")
    size = (layer.height, layer.width)
    if layer.interpolation == "nearest":
        return parts.move("nearest", x, size=size)
    return parts.operate("", "bilinear", x, size=size)


@COMPOSITES.register("sum of all")
def chained(layer: Any, parts: Parts, inputs: Any) -> Any:
    """Add and Multiply of three tensors or more, one after the other; Average."""
    name = type(layer).__name__
    function = "multiply" if name == "Multiply" else "add"
    total = inputs[0]
    for number, value in enumerate(inputs[1:], 1):
        last = number == len(inputs) - 1 and name != "Average"
        total = parts.operate("" if last else f"part_{number}", function, total, value)
    if name == "Average":
        return parts.operate("", "multiply", total, Constant(1.0 / len(inputs)))
    return total


@COMPOSITES.register("sum over axes")
def sum_over_axes(layer: Any, parts: Parts, x: Any) -> Any:
    """Sum of keras.ops."""
    axes = range(len(x.shape)) if layer.axis is None else layer.axis
    return parts.operate("", "sum", x, axis=_axes_of(axes, len(x.shape)), keepdims=layer.keepdims)


@COMPOSITES.register("slice")
def get_item(layer: Any, parts: Parts, x: Any, key: Any) -> Any:
    """Slicing of a tensor by constants."""
    return parts.move("get_item", x, key=key)


def _silu(parts: Parts, x: Any) -> Any:
    """SiLU: `x sigmoid(x)`."""
    return parts.operate("", "multiply", x, parts.operate("sigmoid", "sigmoid", x))


def _hard_sigmoid(parts: Parts, x: Any) -> Any:
    """Hard sigmoid: `relu6(x + 3) / 6`."""
    moved = parts.operate("moved", "add", x, Constant(3.0))
    clipped = parts.operate("clipped", "relu6", moved)
    return parts.operate("", "multiply", clipped, Constant(1.0 / 6.0))


# Activations of several operators.
ACTIVATIONS: Mapping[str, Callable[[Parts, Any], Any]] = {
    "silu": _silu,
    "hard_sigmoid": _hard_sigmoid,
}
for _name, _activation in ACTIVATIONS.items():
    COMPOSITES.register(_name)(lambda layer, parts, x, run=_activation: run(parts, x))


@COMPOSITES.register("rectifier with maximum")
def rectified(layer: Any, parts: Parts, x: Any) -> Any:
    """ReLU with a maximum."""
    above = parts.operate("rectified", "relu", x)
    below = parts.operate("minimum", "minimum", above, Constant(layer.max_value))
    return parts.operate("", "relu", below)


@COMPOSITES.register("leaky_relu")
def leaky_relu(layer: Any, parts: Parts, x: Any) -> Any:
    """Leaky ReLU."""
    slope = float(layer.negative_slope)
    return parts.operate("", "leaky_relu", x, negative_slope=slope)


@COMPOSITES.register("prelu")
def prelu(layer: Any, parts: Parts, x: Any) -> Any:
    """PReLU."""
    return parts.operate("", "prelu", x, Constant(layer.alpha))


# A column with fewer codes has lost what it says, and ranges reach so many deviations from a mean.
_FEWEST_CODES, _CODES, _REACH = 16, 255, 3.0


def _erases(mean: np.ndarray, deviation: np.ndarray) -> bool:
    """Returns whether one int8 scale leaves a column of this mean and deviation too few codes."""
    low = min(float((mean - _REACH * deviation).min(initial=0)), 0.0)
    high = max(float((mean + _REACH * deviation).max(initial=0)), 0.0)
    spread = 2 * _REACH * deviation[deviation > 0]
    return bool((spread < _FEWEST_CODES * (high - low) / _CODES).any())


@COMPOSITES.register("normalization")
def normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """Normalization with known statistics: `(x - mean) / deviation`."""
    from keras import ops

    if layer.invert or layer.mean is None:
        raise Declined("it is inverted or not adapted")
    if _erases(np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))):
        raise Declined(
            "int8 would erase columns of its input; the file scales them in float if it is made "
            "with calibration data"
        )
    centred = parts.operate("sub", "subtract", x, Constant(layer.mean))
    deviation = ops.maximum(ops.sqrt(layer.variance), 1e-7)
    return parts.operate("", "multiply", centred, Constant(1.0 / deviation))


@COMPOSITES.register("affine")
def batch_normalization(layer: Any, parts: Parts, x: Any) -> Any:
    """A BatchNormalization or Rescaling that does not fold into a convolution."""
    from keras import ops

    if type(layer).__name__ == "Rescaling":
        if not layer.offset:
            return parts.operate("", "multiply", x, Constant(layer.scale))
        product = parts.operate("product", "multiply", x, Constant(layer.scale))
        return parts.operate("", "add", product, Constant(layer.offset))
    axes = _axes_of(layer.axis, len(x.shape))
    mean, variance = parts.statistics(layer, x)
    factor = ops.rsqrt(variance + layer.epsilon)
    factor = factor * layer.gamma if layer.scale else factor
    offset = -mean * factor + layer.beta if layer.center else -mean * factor
    rank = len(x.shape)
    product = parts.operate("product", "multiply", x, Constant(_spread(factor, axes, rank)))
    return parts.operate("", "add", product, Constant(_spread(offset, axes, rank)))
