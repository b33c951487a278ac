"""A Keras model rebuilt operator by operator, as the int8 converter sees it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from edgecompress.core.blank_weights import blank_weights
from edgecompress.core.composites import Composite, Computing, bounds_of, told
from edgecompress.core.fusion import analyse, find_taps, use_name
from edgecompress.core.fusion_rules import (
    activation_name,
    composite_of_use,
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
    copies = _Copies(analyse(model).composites, insert, weights, operate, constant)
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
        composites: frozenset[str],
        insert: Callable[[str, Any], Any],
        weights: Callable[[str, KernelAxes | InnerKernel, Any], Any] | None,
        operate: Operate,
        constant: Callable[[Any], Any],
    ) -> None:
        self.insert, self._weights, self.operate = insert, weights, operate
        self.constant = constant
        self._composites = composites
        self._made: dict[int, Any] = {}
        self._uses: Counter[int] = Counter()

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if is_nested(layer):
            return run_graph(layer, keras.tree.flatten(args), self.call)
        self._uses[id(layer)] += 1
        use = use_name(layer.name, self._uses[id(layer)])
        if type(layer).__name__ == "Activation":
            outputs = self._activated(use, layer, args[0])
        elif use in self._composites:
            run: Composite = composite_of_use(layer, args, kwargs)
            outputs = run(layer, _CopiedParts(use, layer, self), *args, **told(kwargs))
        elif not int8_kernels(layer):
            outputs = self.copy(use, layer, args, kwargs)
        elif len(int8_kernels(layer)) == 2:
            outputs = self._separable(use, layer, *args)
        else:
            outputs = self._weighted(use, layer, *args, **kwargs)
        if isinstance(outputs, keras.KerasTensor):
            return self.insert(use, outputs)
        return outputs

    def _activated(self, use: str, layer: Any, values: Any) -> Any:
        """Applies a layer's own activation, which does not fuse."""
        import keras

        function = self._made.get(-id(layer))
        if function is None:
            function = keras.layers.Activation(layer.activation, name=layer.name)
            self._made[-id(layer)] = function
        return _CopiedParts(use, layer, self).activate(layer, values, function)

    def copy(self, operator: str, layer: Any, args: Any, kwargs: Any, **changes: Any) -> Any:
        """Calls the copy of a layer; a layer that is used twice has one copy."""
        made = self._made.get(id(layer))
        copied = made or type(layer).from_config({**layer.get_config(), **changes})
        self._made[id(layer)] = copied
        plain = all(value is None or value is False for value in kwargs.values())
        if plain:
            kwargs = {}
        run = functools.partial(self.operate, operator, copied) if plain else copied
        outputs = run(*args, **kwargs)
        if made is None and getattr(layer, "weights", None) and copied.built:
            copied.set_weights(self._weights_of(layer))
        return outputs

    def weigh(self, owner: Any, operator: str, name: str, layer: Any, values: Any) -> Any:
        """Calls the copy of an EinsumDense layer, or of one inside a layer."""
        made = self._made.get(id(layer))
        copied = made or type(layer).from_config(
            {
                **layer.get_config(),
                "activation": "linear",
                "output_shape": _output_shape(layer, values),
                # Inside MultiHeadAttention, layers are named as in another one.
                "name": re.sub("/", "_", operator),
            }
        )
        self._made[id(layer)] = copied
        outputs = self.operate(operator, copied, values)
        if made is None:
            found, weights = layer.get_weights(), self._weights
            for kernel in inner_kernels(owner):
                if kernel.name == name and weights is not None:
                    found[0] = weights(owner.name, kernel, found[0])
            copied.set_weights(found)
        return outputs

    def _weights_of(self, layer: Any) -> list[Any]:
        import keras

        if self._weights is None:
            # Tensors, which share their memory with the layer's.
            return [keras.ops.convert_to_tensor(weight) for weight in layer.weights]
        values = layer.get_weights()
        for kernel in int8_kernels(layer):
            position = _position(layer, kernel.of(layer))
            values[position] = self._weights(layer.name, kernel, values[position])
        for inner in inner_kernels(layer):
            position = _position(layer, inner.variable)
            values[position] = self._weights(layer.name, inner, values[position])
        return values

    def _weighted(self, use: str, layer: Any, *args: Any, **kwargs: Any) -> Any:
        operator = weighted_operator(layer, use)
        if split_activation(layer) is None:
            return self.copy(operator, layer, args, kwargs)
        name = f"{layer.name}_pre_activation"
        linear = self.copy(operator, layer, args, kwargs, activation="linear", name=name)
        return self._activated(use, layer, self.insert(operator, linear))

    def _separable(self, use: str, layer: Any, inputs: Any) -> Any:
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
        made = self._made.setdefault(id(layer), (depthwise, pointwise))
        first, (depthwise, pointwise) = made[0] is depthwise, made
        values = dict(zip((id(w) for w in layer.weights), self._weights_of(layer), strict=True))
        middle = self.operate(f"{use}/depthwise", depthwise, inputs)
        if first:
            depthwise.set_weights([values[id(layer.depthwise_kernel)]])
        last = weighted_operator(layer, use)
        outputs = self.insert(f"{use}/depthwise", middle)
        outputs = self.operate(last, pointwise, outputs)
        bias = [values[id(layer.bias)]] if layer.use_bias else []
        if first:
            pointwise.set_weights([values[id(layer.pointwise_kernel)], *bias])
        if activation_name(layer) == "linear":
            return outputs
        if split_activation(layer) is not None:
            outputs = self.insert(last, outputs)
        return self._activated(use, layer, outputs)


class _CopiedParts(Computing):
    """Builds the operators of a layer into the new model."""

    def __init__(self, name: str, layer: Any, copies: _Copies) -> None:
        super().__init__(name)
        self._layer, self._copies = layer, copies

    def compute(self, operator: str, function: Callable[..., Any], *tensors: Any) -> Any:
        return self._copies.operate(operator, function, *tensors)

    def insert(self, tap: str, values: Any) -> Any:
        return self._copies.insert(tap, values)

    def rounded(self, values: Any, like: Any) -> tuple[Any, tuple[Any, Any]]:
        import keras

        array = np.asarray(keras.ops.convert_to_numpy(values), np.float32)
        rounded = array if array.ndim == 0 else self._copies.constant(array)
        low, high = bounds_of(array)
        return np.asarray(rounded, np.float32), (float(low), float(high))

    def weigh(self, operator: str, kernel: str, layer: Any, values: Any) -> Any:
        return self._copies.weigh(self._layer, operator, kernel, layer, values)

    def statistics(self, layer: Any, values: Any) -> tuple[Any, Any]:
        return layer.moving_mean, layer.moving_variance

    def inner(self, layer: Any, values: Any) -> Any:
        return values

    def looked_up(self, layer: Any, *values: Any, forces: bool = True) -> Any:
        return self._copies.copy(self.name, layer, values, {})


def _output_shape(layer: Any, values: Any) -> tuple[int | None, ...]:
    """Returns the output shape of an EinsumDense layer, where its own leaves sizes open."""
    import keras

    kernel = keras.KerasTensor(layer.kernel.shape)
    shape = keras.ops.einsum(layer.equation, keras.KerasTensor(values.shape), kernel).shape
    return tuple(shape[1:])


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

    with blank_weights():
        plain = rebuild(model, collect)
    outputs = {f"output:{i}": tensor for i, tensor in enumerate(plain.outputs)}
    return keras.Model(plain.input, {**found, **outputs}, name=model.name)
