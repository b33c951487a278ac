"""The arithmetic of a precision inside a model that is being trained.

The `call` of single layers is wrapped on their instances: kernels are read through a
straight-through quantizer, outputs at the taps are rounded. Weights stay float, the graph, the
config, the list of weights and every saved file stay those of the plain model.

Training rounds in float. Inference (validation) computes with the integers of the int8 file, as far
as `precisions.integer_operators` knows them, in the arithmetic of `engine`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.activation_ranges import ActivationRanges
from edgecompress.callbacks.fused_rounding import FusedRounding
from edgecompress.callbacks.hooks import Hook, Wrapping
from edgecompress.callbacks.learnt_bounds import LearntBounds, limits_allowed
from edgecompress.core.composites import Composite
from edgecompress.core.fusion import FusedGraph, source_of
from edgecompress.core.fusion_rules import composite, split_activation, weighted_operator
from edgecompress.core.inner_kernels import InnerKernel, inner_kernels
from edgecompress.core.keras_graph import functional_of, layers_by_name
from edgecompress.core.layer_kinds import KernelAxes
from edgecompress.core.lstm_layers import cell_name, lstm_parts
from edgecompress.core.operator_copy import apply_activation
from edgecompress.precisions.base import Precision
from edgecompress.precisions.integer_arithmetic import LITERT, Grid, grid_of, on_grid
from edgecompress.precisions.integer_lstm import has_fused, layer_states, run_layers
from edgecompress.precisions.integer_operators import (
    linear,
    name_of,
    operate,
    operate_weighted,
    with_kernel,
)
from edgecompress.precisions.mixed import kernel_name, scale_axes
from edgecompress.precisions.ranges.learnt import learnt_fake_quantize_weights
from edgecompress.precisions.uniform import Uniform


class QuantizedArithmetic:
    """Makes a model's layers compute as the quantized file will.

    Args:
        model: The model being trained.
        graph: Its taps and weights.
        quantizer: The precision.
        layers: Names of the layers whose weights are rounded.
        ranges: Learnt ranges to continue from, tap -> (minimum, maximum).
        kernels: Kernels that are rounded in a precision of their own (`precisions.mixed`). Defaults
            to none.
        scales: Learnt scales of kernels to continue from. Defaults to none.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: FusedGraph,
        quantizer: Precision,
        layers: Collection[str],
        ranges: Mapping[str, tuple[float, float]],
        kernels: Mapping[str, Precision] | None = None,
        scales: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Creates the range variables; the model is not touched yet."""
        self.batch_norm_frozen = False
        self.engine = LITERT
        self._model, self._graph, self._quantizer = model, graph, quantizer
        self._layers = set(layers)
        self._kernels = dict(kernels or {})
        self._by_name = layers_by_name(model)
        self._axes: dict[str, dict[str, tuple[int, ...]]] = {}
        self.choose_scales()
        # 8 bits are fine enough to leave these in float.
        self._inner = {
            name: [k for k in found if self._precision_of(name, k.name).stored_bits < 8]
            for name, layer in self._by_name.items()
            if (found := inner_kernels(layer))
        }
        self._taps = {tap.name: tap for tap in graph.taps}
        own = [tap.name for tap in graph.taps if tap.fixed is None and tap.same_as is None]
        self._cells = dict(graph.cells) if has_fused(quantizer) else {}
        self._lstms = {name: lstm_parts(self._by_name[name]) for name in self._cells.values()}
        self._bounds = LearntBounds(model)
        self._learnt = ActivationRanges(
            quantizer, [*own, *self._cells], ranges, self._bounds, self._cells
        )
        self._limits = self._learnt_limits(scales or {})
        self._together = FusedRounding(model, self._by_name, self._precision_of)
        self._ready: dict[str, Any] = {}
        self._rounding: dict[str, Callable[[Any], Any]] = {
            name: functools.partial(self._learnt.rounded, name) for name in own
        }
        # A tap whose source comes later is rounded there, by the concatenation.
        known: set[str] = set()
        for tap in graph.taps:
            if tap.fixed is not None and not tap.is_output:
                low, high = quantizer.fixed_range(*tap.fixed)
                self._rounding[tap.name] = functools.partial(
                    quantizer.fake_quantize, low=low, high=high
                )
            elif tap.same_as in known:
                self._rounding[tap.name] = self._learnt_like(tap.same_as)
            known.add(tap.name)
        self._training: bool | None = None
        self._seen = False
        # Rounding that clips at 0, to a range that depends on the extremes alone, needs no ReLU.
        clips = (
            isinstance(quantizer, Uniform)
            and quantizer.activation_bits == 8
            and quantizer.activation_method.extremes_only
        )
        self._rectified = {
            tap.layer: tap.relu
            for tap in graph.taps
            if clips
            and tap.relu is not None
            and tap.name == tap.layer
            and tap.name in self._learnt
            and not _is_separable(self._by_name[tap.layer])
        }
        self._integer = quantizer.activation_bits == 8
        self._folded = {
            name
            for operator in graph.operators.values()
            if self._has_codes(operator.layer)
            for name in operator.batch_norms
        }
        self.observe()

    def observe(self) -> bool:
        """Looks whether every range has seen data, from when on inference computes with integers.

        Returns:
            Whether that has changed: what is traced of inference is outdated.
        """
        count = len(self._taps) + len(self._cells)
        before, self._seen = self._seen, self._seen or len(self.ranges()) == count
        return self._seen != before

    def _has_codes(self, name: str) -> bool:
        """Returns whether inference computes a layer with the codes of its kernels."""
        return (
            name in self._axes
            and self._by_name[name].compute_dtype == "float32"
            and all(
                type(self._precision_of(name, attribute)).weight_codes is not Precision.weight_codes
                for attribute in self._axes[name]
            )
        )

    def _learnt_like(self, name: str) -> Callable[[Any], Any]:
        source = source_of(self._taps[name], self._taps)
        if source.fixed is not None:
            low, high = self._quantizer.fixed_range(*source.fixed)
            return functools.partial(self._quantizer.fake_quantize, low=low, high=high)
        return functools.partial(self._learnt.frozen, source.name)

    @property
    def one_scale(self) -> list[str]:
        """The layers with a kernel that has a single scale because its weights share few values."""
        return [
            name
            for name, axes in self._axes.items()
            if any(
                not axes[kernel.attribute] and self._given_axes(name, kernel)
                for kernel in self._graph.weights[name]
            )
        ]

    def choose_scales(self) -> bool:
        """Gives kernels that now share values a single scale, all others per-channel scales.

        Returns:
            Whether a kernel's scales have changed: the train function must be rebuilt.
        """
        before = self._axes
        self._axes = {
            name: {kernel.attribute: self._scale_axes(name, kernel) for kernel in kernels}
            for name, kernels in self._graph.weights.items()
            if name in self._layers
        }
        return self._axes != before

    def _precision_of(self, layer: str, attribute: str) -> Precision:
        return self._kernels.get(kernel_name(layer, attribute), self._quantizer)

    def _given_axes(self, name: str, kernel: KernelAxes) -> tuple[int, ...]:
        rank = len(kernel.of(self._by_name[name]).shape)
        return self._precision_of(name, kernel.attribute).weight_axes(kernel.outputs, rank)

    def _scale_axes(self, name: str, kernel: KernelAxes) -> tuple[int, ...]:
        values = ops.convert_to_numpy(ops.cast(kernel.of(self._by_name[name]), "float32"))
        axes = self._given_axes(name, kernel)
        return scale_axes(values, axes, self._precision_of(name, kernel.attribute))

    def _learnt_limits(self, scales: Mapping[str, Sequence[float]]) -> dict[str, keras.Variable]:
        """Returns the limits of the kernels whose scales have gradients."""
        found = {}
        for layer, kernels in self._axes.items():
            for attribute, axes in kernels.items():
                precision = self._precision_of(layer, attribute)
                if not isinstance(precision, Uniform) or not precision.weight_method.learnt:
                    continue
                name = kernel_name(layer, attribute)
                values = ops.cast(getattr(self._by_name[layer], attribute), "float32")
                start: Any = precision.weight_scales(values, axes)
                if math.prod(start.shape) == len(scales.get(name, ())):
                    start = ops.reshape(ops.convert_to_tensor(scales[name], "float32"), start.shape)
                limits = limits_allowed(ops.convert_to_numpy(start * _largest(precision)))
                found[name] = keras.Variable(
                    limits, dtype="float32", autocast=False, trainable=False, name="weight_limits"
                )
                self._bounds.add(name, found[name], limits_allowed)
        return found

    def _learnt_scales(self, layer: str, attribute: str) -> Any | None:
        """Returns the learnt scales of a kernel as a tensor; None if it has none."""
        limits = self._limits.get(kernel_name(layer, attribute))
        if limits is None:
            return None
        return limits.value / _largest(self._precision_of(layer, attribute))

    def weight_scales(self) -> dict[str, list[float]]:
        """Returns the learnt scales of kernels, in the order of their channels."""
        found = {}
        for name, limits in self._limits.items():
            layer, _, attribute = name.rpartition("/")
            scales = ops.convert_to_numpy(limits) / _largest(self._precision_of(layer, attribute))
            found[name] = scales.ravel().tolist()
        return found

    def prepare(self) -> None:
        """Makes what the compiled step cannot make, once the hooks are attached."""
        self._bounds.prepare()

    def hooks(self) -> list[Hook]:
        """Returns the hooks that put it into the layers."""
        training = self._bounds.hook()
        inner = {tap.layer for tap in self._graph.taps if tap.layer}
        found: list[Hook] = [] if training is None else [training]
        for name, layer in self._by_name.items():
            if name in inner or name in self._layers or self._inner.get(name):
                found.append(Wrapping(layer, "call", functools.partial(self._layer_call, layer)))
            elif name in self._graph.batch_norms:
                wrap = functools.partial(self._batch_norm_call, name)
                found.append(Wrapping(layer, "call", wrap))
        found.append(Wrapping(self._model, "call", self._model_call))
        return found

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Returns the range of every tap that has seen data or is prescribed; NaN where it is."""
        learnt, found = self._learnt.learnt(), {}
        for tap in self._graph.taps:
            source = source_of(tap, self._taps)
            if source.fixed is not None:
                found[tap.name] = source.fixed
            elif source.name in learnt:
                found[tap.name] = learnt[source.name]
        return found | {name: learnt[name] for name in self._cells if name in learnt}

    @property
    def _with_integers(self) -> bool:
        """Whether the call that is being traced computes with integers."""
        return self._integer and self._training is False and self._seen

    def _of_call(self) -> contextlib.AbstractContextManager[None]:
        """Returns what a call of the model needs of the learnt ranges."""
        if self._training:
            self._ready = self._together.rounded(self._axes)
            return self._learnt.learning()
        if self._seen:
            return self._learnt.settled(self._with_integers)
        return contextlib.nullcontext()

    def _grid(self, name: str) -> Grid:
        source = source_of(self._taps[name], self._taps)
        if source.fixed is not None:
            return grid_of(*self._quantizer.fixed_range(*source.fixed))
        return self._learnt.grid(source.name)

    def _insert(self, name: str, values: Any) -> Any:
        rounding = self._rounding.get(name)
        if rounding is None:
            return values
        if self._with_integers:
            rounded = on_grid(ops.cast(values, "float32"), self._grid(name))
            return ops.cast(rounded, values.dtype)
        return rounding(values)

    def _operate(
        self, name: str, function: Callable[..., Any], *values: Any, what: str | None = None
    ) -> Any:
        """Computes an operator without weights as the file does."""
        operator = self._graph.operators.get(name) if self._with_integers else None
        tensors = keras.tree.flatten(values)
        ranks = {len(tensor.shape) for tensor in tensors}
        types = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
        if operator is None or len(ranks) > 1 or types != {"float32"}:
            return function(*values)
        sources = [self._grid(tap) for tap in operator.inputs]
        target = self._grid(operator.output)
        return operate(
            what or name_of(function), function, values, tensors, sources, target, self.engine
        )

    def _operate_weighted(
        self,
        name: str,
        layer: Any,
        attribute: str,
        run: Callable[[Any, Any], Any],
        bias: Any,
        values: Any,
    ) -> Any | None:
        """Computes a layer without its activation as the file does; None if that is not known."""
        operator = self._graph.operators.get(name)
        if not self._with_integers or operator is None or not self._has_codes(layer.name):
            return None
        return operate_weighted(
            run,
            ops.convert_to_tensor(getattr(layer, attribute)),
            bias,
            values,
            self._grid(operator.inputs[0]),
            self._grid(operator.output),
            self._precision_of(layer.name, attribute),
            self._axes[layer.name][attribute],
            [self._by_name[batch_norm] for batch_norm in operator.batch_norms],
            scales=self._learnt_scales(layer.name, attribute),
            engine=self.engine,
        )

    def _layer_call(self, layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        if _is_separable(layer):
            plain = functools.partial(self._separable, layer)
        else:
            plain = functools.partial(self._quantized, layer, call)
        run = self._with_inner(layer, plain)
        frozen = layer.name in self._graph.batch_norms

        @functools.wraps(call)
        def quantized_call(*args: Any, **kwargs: Any) -> Any:
            if frozen and self.batch_norm_frozen:
                kwargs["training"] = False
            if layer.name in self._folded and self._with_integers:
                return self._insert(layer.name, args[0])
            if layer.name in self._rectified and self._training:
                return self._rectify(layer, call, *args, **kwargs)
            if layer.name in self._lstms and self._training:
                return run(*args, **kwargs)
            return self._insert(layer.name, run(*args, **kwargs))

        return quantized_call

    def _batch_norm_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def batch_norm_call(*args: Any, **kwargs: Any) -> Any:
            if self.batch_norm_frozen:
                kwargs["training"] = False
            if name in self._folded and self._with_integers:
                return args[0]
            return call(*args, **kwargs)

        return batch_norm_call

    def _model_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        functional = functional_of(self._model)

        def rounded(position: int, values: Any) -> Any:
            values = ops.cast(ops.convert_to_tensor(values), functional.inputs[position].dtype)
            return self._insert(f"input:{position}", values)

        @functools.wraps(call)
        def model_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._training = bool(args[0] if args else kwargs.get("training"))
            try:
                with self._of_call():
                    return call(rounded_inputs(inputs), *args, **kwargs)
            finally:
                self._training, self._ready = None, {}

        def rounded_inputs(inputs: Any) -> Any:
            if isinstance(inputs, Mapping):
                # By key: a dict may hold the inputs in any order, or more than the model reads.
                keys = _input_keys(self._model)
                return {
                    key: rounded(keys[key], value) if key in keys else value
                    for key, value in inputs.items()
                }
            flat = keras.tree.flatten(inputs)
            flat = [rounded(position, value) for position, value in enumerate(flat)]
            return keras.tree.pack_sequence_as(inputs, flat)

        return model_call

    def _scope(self, layer: Any, axes: Mapping[str, tuple[int, ...]]) -> keras.StatelessScope:
        """Returns a scope in which the layer reads rounded kernels."""
        variables = {name: getattr(layer, name) for name in axes}
        return keras.StatelessScope(
            [(v, self._rounded(layer, name, v.value)) for name, v in variables.items()]
        )

    def _with_inner(self, layer: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `run` with the layer's inner kernels rounded."""
        if not (kernels := self._inner.get(layer.name)):
            return run

        def rounded_run(*args: Any, **kwargs: Any) -> Any:
            values = [(k.variable, self._rounded_inner(layer.name, k)) for k in kernels]
            known = {id(variable) for variable, _ in values}
            values += [(v, v.value) for v in layer.variables if id(v) not in known]
            with keras.StatelessScope(values) as scope:
                outputs = run(*args, **kwargs)
            for variable, value in values:
                # The state of dropout or of a recurrent layer.
                if (new := scope.get_current_value(variable)) is not value:
                    variable.assign(new)
            return outputs

        return rounded_run

    def _rounded_inner(self, layer: str, kernel: InnerKernel) -> Any:
        precision = self._precision_of(layer, kernel.name)
        axes = precision.weight_axes(kernel.outputs, 2)
        rounded = [
            precision.fake_quantize_weights(part, axes)
            for part in kernel.split(kernel.variable.value)
        ]
        return rounded[0] if len(rounded) == 1 else ops.concatenate(rounded, -1)

    def _rounded(self, layer: Any, attribute: str, values: Any) -> Any:
        precision = self._precision_of(layer.name, attribute)
        name = kernel_name(layer.name, attribute)
        if name in self._ready:
            return self._ready[name]
        if name in self._limits:
            return learnt_fake_quantize_weights(
                ops.convert_to_tensor(values),
                self._limits[name].value,
                precision.weight_bits,
                functools.partial(self._bounds.found, name),
            )
        return precision.fake_quantize_weights(values, self._axes[layer.name][attribute])

    def _quantized(
        self,
        layer: Any,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        axes = self._axes.get(layer.name)
        if type(layer).__name__ == "Activation":
            return apply_activation(layer, args[0], self._insert, operate=self._operate)
        if (parts := composite(layer)) is not None:
            return self._composite(parts, layer, args[0])
        if layer.name in self._lstms:
            return self._sequences(layer, functools.partial(call, *args, **kwargs))
        split = split_activation(layer) is not None
        outputs = None
        if axes:
            (attribute,) = axes
            name = weighted_operator(layer)
            run = with_kernel(layer, attribute, functools.partial(call, **kwargs))
            bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
            outputs = self._operate_weighted(name, layer, attribute, run, bias, args[0])
        if outputs is not None:
            outputs = outputs if split else layer.activation(outputs)
        elif split:
            with linear(layer):
                outputs = self._in_float(layer, call, *args, **kwargs)
        elif axes or kwargs:
            outputs = self._in_float(layer, call, *args, **kwargs)
        else:
            outputs = self._operate(layer.name, call, *args, what=type(layer).__name__)
        if not split:
            return outputs
        outputs = self._insert(f"{layer.name}/pre_activation", outputs)
        return apply_activation(layer, outputs, self._insert, operate=self._operate)

    def _composite(self, run: Composite, layer: Any, inputs: Any) -> Any:
        def insert(suffix: str, values: Any) -> Any:
            return self._insert(f"{layer.name}/{suffix}", values)

        def constant(attribute: str) -> Any:
            values = ops.cast(ops.convert_to_tensor(getattr(layer, attribute)), inputs.dtype)
            return self._quantizer.fake_quantize(values, ops.min(values), ops.max(values))

        return run(layer, inputs, insert, constant)

    def _sequences(self, layer: Any, call: Callable[[], Any]) -> Any:
        """Computes LSTM layers; in training, learns the ranges of all their states."""

        def integer(name: str, part: Any, sequences: Any) -> Any:
            source = self._grid(self._graph.operators[layer.name].inputs[0])
            largest = self._learnt.largest(cell_name(name))
            grid = self._grid(layer.name)
            return layer_states(part, sequences, source, grid, largest, self.engine)

        known = self._with_integers and layer.name in self._graph.operators
        parts = self._lstms[layer.name]
        outputs, seen = run_layers(parts, call, integer if known else None, self._learnt.observe)
        if not self._training:
            return outputs
        return self._learnt.rounded(layer.name, outputs, ops.concatenate(seen, axis=-1))

    def _rectify(self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Computes a layer that ends in ReLU in training; rounding takes ReLU's place."""
        if layer.name in self._graph.weights:
            with linear(layer):
                outputs = self._in_float(layer, call, *args, **kwargs)
        else:
            outputs = args[0]
        return self._learnt.rectified(layer.name, outputs, self._rectified[layer.name])

    def _in_float(self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        axes = self._axes.get(layer.name)
        if not axes:
            return call(*args, **kwargs)
        with self._scope(layer, axes):
            return call(*args, **kwargs)

    def _separable(self, layer: Any, inputs: Any) -> Any:
        axes = self._axes.get(layer.name, {})

        def depthwise(kernel: Any, values: Any) -> Any:
            return ops.depthwise_conv(
                values,
                kernel,
                strides=layer.strides,
                padding=layer.padding,
                data_format=layer.data_format,
                dilation_rate=layer.dilation_rate,
            )

        def pointwise(kernel: Any, values: Any) -> Any:
            return ops.conv(values, kernel, padding="valid", data_format=layer.data_format)

        def half(name: str, attribute: str, run: Any, values: Any, bias: Any = None) -> Any:
            found = None
            if attribute in axes:
                found = self._operate_weighted(name, layer, attribute, run, bias, values)
            if found is not None:
                return found
            kernel = ops.convert_to_tensor(getattr(layer, attribute))
            kernel = self._rounded(layer, attribute, kernel) if attribute in axes else kernel
            outputs = run(kernel, values)
            return outputs if bias is None else outputs + bias

        middle = half(f"{layer.name}/depthwise", "depthwise_kernel", depthwise, inputs)
        middle = self._insert(f"{layer.name}/depthwise", middle)
        bias = ops.convert_to_tensor(layer.bias) if layer.use_bias else None
        outputs = half(weighted_operator(layer), "pointwise_kernel", pointwise, middle, bias)
        outputs = self._insert(f"{layer.name}/pre_activation", outputs)
        return apply_activation(layer, outputs, self._insert, operate=self._operate)


def _largest(precision: Precision) -> int:
    """Returns the largest code of a weight."""
    return int(2 ** (precision.weight_bits - 1) - 1)


def _is_separable(layer: Any) -> bool:
    """Returns whether a layer is two operators with a tap between them."""
    return type(layer).__name__.startswith("Separable")


def _input_keys(model: keras.Model) -> dict[str, int]:
    """Returns every key under which data for a model input may be given -> its position."""
    inputs = functional_of(model).inputs
    keys = {tensor.name: position for position, tensor in enumerate(inputs)}
    if isinstance(functional_of(model).input, Mapping):
        positions = {id(tensor): position for position, tensor in enumerate(inputs)}
        keys.update(
            {key: positions[id(tensor)] for key, tensor in functional_of(model).input.items()}
        )
    return keys
