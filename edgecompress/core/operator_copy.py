"""A Keras model rebuilt operator by operator, as the int8 converter sees it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from edgecompress.core.composites import Composite
from edgecompress.core.fusion import find_taps
from edgecompress.core.fusion_rules import (
    activation_name,
    composite,
    split_activation,
    weighted_operator,
)
from edgecompress.core.inner_kernels import InnerKernel, inner_kernels
from edgecompress.core.keras_graph import functional_of, is_nested, run_graph, walk_layers
from edgecompress.core.layer_kinds import KernelAxes, int8_kernels

Operate = Callable[..., Any]


def plainly(name: str, function: Callable[..., Any], *values: Any) -> Any:
    """Computes an operator as Keras does."""
    return function(*values)


def apply_activation(
    layer: Any,
    values: Any,
    insert: Callable[[str, Any], Any],
    function: Any = None,
    operate: Operate = plainly,
) -> Any:
    """Applies a layer's activation operator by operator, calling `insert` on inner taps.

    Args:
        layer: A layer with an `activation`.
        values: The linear output, any shape.
        insert: `(tap name, tensor) -> tensor`, called for the gate inside SiLU.
        function: The activation; defaults to `layer.activation`.
        operate: `(operator, function, *tensors) -> tensor`, computes each operator. Defaults to
            calling the function.
    """
    import keras

    if activation_name(layer) == "silu":
        gate = insert(f"{layer.name}/sigmoid", keras.ops.sigmoid(values))
        return operate(layer.name, keras.ops.multiply, values, gate)
    return operate(layer.name, function or layer.activation, values)


def rebuild(
    model: Any,
    insert: Callable[[str, Any], Any],
    weights: Callable[[str, KernelAxes | InnerKernel, Any], Any] | None = None,
    operate: Operate = plainly,
    constant: Callable[[Any], Any] = lambda values: values,
) -> Any:
    """Rebuilds the model from copies of its layers, operator by operator.

    The copies hold the current weights; the model itself is not modified. Nested models are
    dissolved, separable convolutions become a depthwise and a pointwise one, and activations that
    do not fuse become layers, so that every tap is a tensor of the new model.

    Args:
        model: A built Sequential or Functional model.
        insert: `(name, tensor) -> tensor`, called on the model's inputs (`input:0`, ...), on each
            layer's output and on the parts inside a layer; returns what is read instead.
        weights: `(layer, kernel, array) -> array` for each kernel that the file holds rounded.
            Defaults to none.
        operate: `(operator, function, *tensors) -> tensor`, called for each operator
            (`FusedGraph.operators`) with the copy of its layer or its function. Defaults to calling
            that.
        constant: `array -> array`, called on weights that the file holds as activations. Defaults
            to none.

    Returns:
        A keras.Model with the same inputs and outputs.

    Raises:
        UnsupportedModelError: as for `analyse`.
    """
    import keras

    functional = functional_of(model)
    _reserve_names(model)
    copies = _Copies(insert, weights, operate, constant)
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
        for tensor in functional.inputs
    ]
    entered = [insert(f"input:{position}", tensor) for position, tensor in enumerate(inputs)]
    outputs = run_graph(model, entered, copies.call)
    struct = keras.tree.pack_sequence_as(functional.input, inputs)
    return keras.Model(struct, outputs, name=model.name)


def _reserve_names(model: Any) -> None:
    """Keeps Keras from giving a new operator the name of one of the model's layers.

    Keras counts the names that it gave in this process; a model from a file brings others.
    """
    import keras

    for layer in walk_layers(model):
        prefix, _, number = layer.name.rpartition("_")
        if not re.fullmatch(r"[0-9]{1,5}", number):
            prefix, number = layer.name, "0"
        while keras.backend.get_uid(prefix) <= int(number):
            pass


class _Copies:
    """Calls copies of layers, one operator at a time."""

    def __init__(
        self,
        insert: Callable[[str, Any], Any],
        weights: Callable[[str, KernelAxes | InnerKernel, Any], Any] | None,
        operate: Operate,
        constant: Callable[[Any], Any],
    ) -> None:
        self._insert, self._weights, self._operate = insert, weights, operate
        self._constant = constant
        self._made: dict[int, Any] = {}

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if is_nested(layer):
            return run_graph(layer, keras.tree.flatten(args), self.call)
        if type(layer).__name__ == "Activation":
            function = keras.layers.Activation(layer.activation, name=layer.name)
            outputs = apply_activation(layer, args[0], self._insert, function, self._operate)
        elif (run := composite(layer)) is not None:
            outputs = self._composite(run, layer, *args)
        elif not int8_kernels(layer):
            outputs = self._copy(layer.name, layer, args, kwargs)
        elif len(int8_kernels(layer)) == 2:
            outputs = self._separable(layer, *args)
        else:
            outputs = self._weighted(layer, *args, **kwargs)
        if isinstance(outputs, keras.KerasTensor):
            return self._insert(layer.name, outputs)
        return outputs

    def _copy(self, operator: str, layer: Any, args: Any, kwargs: Any, **changes: Any) -> Any:
        """Calls the copy of a layer; a layer that is used twice has one copy."""
        if id(layer) in self._made:
            return self._made[id(layer)](*args, **kwargs)
        copied = type(layer).from_config({**layer.get_config(), **changes})
        self._made[id(layer)] = copied
        plain = all(value is None or value is False for value in kwargs.values())
        if plain:
            kwargs = {}
        run = functools.partial(self._operate, operator, copied) if plain else copied
        outputs = run(*args, **kwargs)
        if getattr(layer, "weights", None) and copied.built:
            copied.set_weights(self._weights_of(layer))
        return outputs

    def _composite(self, run: Composite, layer: Any, inputs: Any) -> Any:
        def insert(suffix: str, tensor: Any) -> Any:
            return self._insert(f"{layer.name}/{suffix}", tensor)

        def constant(attribute: str) -> Any:
            return self._constant(getattr(layer, attribute).numpy())

        return run(layer, inputs, insert, constant)

    def _weights_of(self, layer: Any) -> list[Any]:
        values = layer.get_weights()
        if self._weights is None:
            return values
        for kernel in int8_kernels(layer):
            position = _position(layer, kernel.of(layer))
            values[position] = self._weights(layer.name, kernel, values[position])
        for inner in inner_kernels(layer):
            position = _position(layer, inner.variable)
            values[position] = self._weights(layer.name, inner, values[position])
        return values

    def _weighted(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if split_activation(layer) is None:
            return self._copy(weighted_operator(layer), layer, args, kwargs)
        operator, name = weighted_operator(layer), f"{layer.name}_pre_activation"
        linear = self._copy(operator, layer, args, kwargs, activation="linear", name=name)
        linear = self._insert(operator, linear)
        function = keras.layers.Activation(layer.activation, name=layer.name)
        return apply_activation(layer, linear, self._insert, function, self._operate)

    def _separable(self, layer: Any, inputs: Any) -> Any:
        import keras

        rank = len(layer.kernel_size)
        common = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
        depthwise = getattr(keras.layers, f"DepthwiseConv{rank}D")(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            name=f"{layer.name}_depthwise",
            **common,
        )
        pointwise = getattr(keras.layers, f"Conv{rank}D")(
            layer.filters, 1, use_bias=layer.use_bias, name=f"{layer.name}_pointwise", **common
        )
        values = dict(zip((id(w) for w in layer.weights), self._weights_of(layer), strict=True))
        middle = self._operate(f"{layer.name}/depthwise", depthwise, inputs)
        depthwise.set_weights([values[id(layer.depthwise_kernel)]])
        last = weighted_operator(layer)
        outputs = self._insert(f"{layer.name}/depthwise", middle)
        outputs = self._operate(last, pointwise, outputs)
        bias = [values[id(layer.bias)]] if layer.use_bias else []
        pointwise.set_weights([values[id(layer.pointwise_kernel)], *bias])
        if activation_name(layer) == "linear":
            return outputs
        function = keras.layers.Activation(layer.activation, name=layer.name)
        if split_activation(layer) is None:
            return function(outputs)
        outputs = self._insert(last, outputs)
        return apply_activation(layer, outputs, self._insert, function, self._operate)


def _position(layer: Any, variable: Any) -> int:
    return next(i for i, weight in enumerate(layer.weights) if weight is variable)


def tap_model(model: Any) -> Any:
    """Returns a copy of the model whose outputs are all its taps.

    Args:
        model: A built Sequential or Functional model; not changed.

    Returns:
        A keras.Model of independent layers with the current weights. Its output is a dict: tap
        name -> tensor for every tap but the inputs (an input's tensor is the model's input
        itself), and `output:0`, `output:1`, ... for the model's outputs. Values are those of
        `model` in inference.

    Raises:
        UnsupportedModelError: as for `analyse`.

    Example:
        >>> sorted(tap_model(model).output)  # doctest: +SKIP
        ['dense', 'dense/pre_activation', 'output:0', 're_lu']
    """
    import keras

    names = {tap.name for tap in find_taps(model) if tap.layer}
    found: dict[str, Any] = {}

    def collect(name: str, tensor: Any) -> Any:
        if name in names:
            found[name] = tensor
        return tensor

    plain = rebuild(model, collect)
    outputs = {f"output:{i}": tensor for i, tensor in enumerate(plain.outputs)}
    return keras.Model(plain.input, {**found, **outputs}, name=model.name)
