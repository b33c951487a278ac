"""Operators of a Keras model, computed in inference with the integers of its int8 file.

What rounds is looked up by what it computes (`OPERATORS`: a class of layers or a function); an
operator without an entry is computed in float and rounded behind it, which only differs where a
value is next to a tie.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from edgecompress.core.composites import Part
from edgecompress.core.keras_graph import reading
from edgecompress.core.registry import Registry
from edgecompress.precisions import integer_arithmetic as integers
from edgecompress.precisions.base import Precision
from edgecompress.precisions.integer_arithmetic import LITERT, Affine, Grid, grid_of
from edgecompress.precisions.requantization import Requantization, for_filter

# (function, values, their grids, the output's grid, the engine) -> the output on its grid.
Operator = Callable[[Callable[..., Any], Sequence[Any], Sequence[Grid], Grid, Requantization], Any]
OPERATORS: Registry[Operator] = Registry("operator with integer inference")


def _count(function: Any, values: Any) -> int:
    """Returns how many elements a mean over axes is of."""
    return math.prod(values.shape[axis] for axis in function.arguments["axis"])


def _slope(function: Any) -> float:
    """Returns the slope of leaky ReLU; that of Keras's function, unless a part has another."""
    return float(getattr(function, "arguments", {}).get("negative_slope", 0.2))


def _sum(sign: int) -> Operator:
    return lambda function, values, sources, target, engine: integers.add(
        values[0], values[1], sources, target, sign, engine
    )


for _name in ("Add", "add"):
    OPERATORS.register(_name)(_sum(1))
for _name in ("Subtract", "subtract"):
    OPERATORS.register(_name)(_sum(-1))
for _name in ("matmul", "product"):
    OPERATORS.register(_name)(
        lambda function, values, sources, target, engine: integers.product(
            function, values, sources, target, engine
        )
    )
for _name in ("Multiply", "multiply"):
    OPERATORS.register(_name)(
        lambda function, values, sources, target, engine: integers.multiply(
            values[0], values[1], sources, target, engine
        )
    )
OPERATORS.register("mean")(
    lambda function, values, sources, target, engine: integers.mean(
        function, _count(function, values[0]), values[0], sources[0], target, engine
    )
)
OPERATORS.register("squared_difference")(
    lambda function, values, sources, target, engine: integers.squared_difference(
        values[0], values[1], sources, target
    )
)
OPERATORS.register("inverse_root")(
    lambda function, values, sources, target, engine: integers.inverse_root(
        values[0], sources[0], target
    )
)
OPERATORS.register("softmax")(
    lambda function, values, sources, target, engine: integers.softmax(
        values[0], sources[0], target
    )
)
OPERATORS.register("leaky_relu")(
    lambda function, values, sources, target, engine: integers.leaky(
        values[0], _slope(function), sources[0], target, engine
    )
)
for _name in (
    "AveragePooling1D", "AveragePooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
):  # fmt: skip
    OPERATORS.register(_name)(
        lambda function, values, sources, target, engine: integers.average(
            function, values[0], target
        )
    )
for _name in ("bilinear", "UpSampling2D"):
    OPERATORS.register(_name)(
        lambda function, values, sources, target, engine: integers.enlarged(
            values[0], function(values[0]).shape[1:3], target
        )
    )
for _name in ("HardSilu", "hard_silu"):
    OPERATORS.register(_name)(
        lambda function, values, sources, target, engine: integers.hard_swish(
            values[0], sources[0], target
        )
    )


def name_of(function: Any) -> str:
    """Returns what an operator computes: the name of a layer's class or of a function."""
    if isinstance(function, Part):
        return function.function
    if isinstance(function, keras.layers.Activation):
        function = function.activation
    return getattr(function, "__name__", type(function).__name__)


def operate(
    what: str,
    function: Callable[..., Any],
    values: Sequence[Any],
    tensors: Sequence[Any],
    sources: Sequence[Grid],
    target: Grid,
    engine: Requantization = LITERT,
) -> Any:
    """Returns the output of an operator without weights.

    Args:
        what: What it computes, `name_of`.
        function: Computes it in float.
        values: Its arguments.
        tensors: The tensors in them, on their grids.
        sources: Their grids.
        target: The grid of its output.
        engine: The arithmetic to follow. Defaults to LiteRT's.
    """
    if what not in OPERATORS:
        return function(*values)
    if isinstance(function, Part):
        bounds = {position: grid_of(*found) for position, found in function.bounds.items()}
        tensors = function.filled(tuple(tensors))
        sources = function.filled(tuple(sources), bounds)
        function = replace(function, constants={}, bounds={})
    return OPERATORS[what](function, tensors, sources, target, engine)


@contextlib.contextmanager
def linear(layer: Any) -> Iterator[None]:
    """Takes a layer's activation away."""
    activation, layer.activation = layer.activation, keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def with_kernel(
    layer: Any, attribute: str, call: Callable[[Any], Any]
) -> Callable[[Any, Any], Any]:
    """Returns `(kernel, inputs) -> outputs` of a layer without bias and activation.

    Args:
        layer: The layer.
        attribute: The kernel's name in the layer.
        call: Computes the layer.
    """
    variable, bias = getattr(layer, attribute), getattr(layer, "bias", None)

    def run(kernel: Any, inputs: Any) -> Any:
        values = [(variable, kernel)]
        if bias is not None:
            values.append((bias, ops.zeros_like(bias)))
        with linear(layer), reading(layer, values):
            return call(inputs)

    return run


def operate_weighted(
    run: Callable[[Any, Any], Any],
    kernel: Any,
    bias: Any,
    values: Any,
    source: Grid,
    target: Grid,
    precision: Precision,
    axes: Sequence[int],
    batch_norms: Sequence[Any] = (),
    scales: Any = None,
    engine: Requantization = LITERT,
) -> Any:
    """Returns a convolution or matrix product with its bias, on the grid of its output.

    Args:
        run: `(kernel, inputs) -> outputs`, the sums of products.
        kernel: A float tensor.
        bias: A float tensor, or None.
        values: The input, on the grid `source`.
        source: The input's grid.
        target: The grid of its output, behind BatchNormalization and activation.
        precision: Of the kernel.
        axes: Axes of the kernel with separate scales.
        batch_norms: BatchNormalization layers folded into it.
        scales: The kernel's scales, if the precision does not choose them.
        engine: The arithmetic to follow. Defaults to LiteRT's.
    """
    more = {} if scales is None else {"scales": scales}
    found = precision.weight_codes(kernel, axes, **more)
    if found is None:
        raise TypeError(f"{precision.name} has no codes of weights.")
    codes, scales = found
    affine = folded(Affine(None, bias), batch_norms)
    return integers.weighted(
        functools.partial(run, codes),
        values,
        source,
        target,
        ops.reshape(scales, [-1]),
        affine,
        engine,
    )


def operate_einsum(
    layer: Any,
    outputs: Sequence[int],
    kernel: Any,
    bias: Any,
    values: Any,
    source: Grid,
    target: Grid,
    precision: Precision,
    axes: Sequence[int],
    batch_norms: Sequence[Any] = (),
    scales: Any = None,
    engine: Requantization = LITERT,
) -> Any:
    """Returns the output of an EinsumDense layer without its activation, on its grid.

    Args:
        layer: The layer.
        outputs: Axes of the kernel that count outputs: the last ones of the layer's output.
        kernel: As the other arguments, see `operate_weighted`.
    """
    shape: list[Any] = []
    sizes = [kernel.shape[axis] for axis in outputs]

    # The file's matrix has the outputs of all axes along one.
    def run(codes: Any, steps: Any) -> Any:
        sums = ops.einsum(layer.equation, steps, codes)
        shape[:] = [-1, *ops.shape(sums)[1:]]
        return ops.reshape(sums, [*shape[: -len(outputs)], math.prod(sizes)])

    if bias is not None:
        bias = ops.reshape(ops.broadcast_to(bias, sizes), [-1])
    rows = math.prod(kernel.shape) // math.prod(sizes)
    engine = for_filter(engine, precision.stored_bits, "FULLY_CONNECTED", rows)
    flat = operate_weighted(
        run, kernel, bias, values, source, target, precision, axes, batch_norms, scales, engine
    )
    return ops.reshape(flat, shape)


def folded(affine: Affine, batch_norms: Sequence[Any]) -> Affine:
    """Returns an operator's factor and offset with BatchNormalization layers folded in."""
    for layer in batch_norms:
        affine = integers.folded(
            affine,
            None if layer.gamma is None else ops.convert_to_tensor(layer.gamma),
            None if layer.beta is None else ops.convert_to_tensor(layer.beta),
            ops.convert_to_tensor(layer.moving_mean),
            ops.convert_to_tensor(layer.moving_variance),
            layer.epsilon,
        )
    return affine
