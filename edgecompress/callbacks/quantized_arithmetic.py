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
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks import backends
from edgecompress.callbacks.activation_ranges import ActivationRanges
from edgecompress.callbacks.hooks import Hook, StateHook, Wrapping
from edgecompress.callbacks.learnt_bounds import LearntBounds
from edgecompress.callbacks.model_inputs import map_inputs
from edgecompress.callbacks.rounded_kernels import RoundedKernels
from edgecompress.callbacks.trained_parts import TrainedParts
from edgecompress.core.composites import is_computed, told
from edgecompress.core.fusion import FusedGraph, Tap, layer_of_use, source_of, use_name
from edgecompress.core.fusion_rules import composite_of_use, split_activation, weighted_operator
from edgecompress.core.inner_kernels import inner_kernels
from edgecompress.core.keras_graph import layers_by_name, reading
from edgecompress.core.lstm_layers import cell_name, lstm_parts
from edgecompress.precisions.base import Precision
from edgecompress.precisions.integer_arithmetic import LITERT, Grid, grid_of, on_grid
from edgecompress.precisions.integer_lstm import layer_states, run_layers
from edgecompress.precisions.integer_operators import (
    linear,
    name_of,
    operate,
    operate_einsum,
    operate_weighted,
    with_kernel,
)
from edgecompress.precisions.mixed import fused_cells, operator_of
from edgecompress.precisions.requantization import for_filter


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
        self._model, self._graph, self.quantizer = model, graph, quantizer
        self._layers = set(layers)
        self._by_name = layers_by_name(model)
        self._bounds = LearntBounds(model)
        self.kernels = RoundedKernels(
            model,
            graph,
            quantizer,
            self._by_name,
            layers,
            kernels or {},
            scales or {},
            self._bounds,
        )
        self._parts = {layer_of_use(use) for use in graph.composites}
        # Where the operators of a layer are not followed, 8 bits are fine enough to stay in float.
        self._inner = {
            name: [k for k in found if self.kernels.precision_of(name, k.name).stored_bits < 8]
            for name, layer in self._by_name.items()
            if name not in self._parts and (found := inner_kernels(layer))
        }
        self._taps = {tap.name: tap for tap in graph.taps}
        self._tables = {
            tap.name
            for tap in graph.taps
            if tap.table and tap.same_as is None and quantizer.activation_bits == 8
        }
        own = [
            tap.name
            for tap in graph.taps
            if tap.fixed is None and tap.same_as is None and tap.name not in self._tables
        ]
        self._cells = dict(fused_cells(model, graph, quantizer, kernels or {}))
        self._lstms = {name: lstm_parts(self._by_name[name]) for name in self._cells.values()}
        lowered = {name: self._taps[name].lowered for name in own}
        self._learnt = ActivationRanges(
            quantizer, [*own, *self._cells], ranges, self._bounds, self._cells, lowered
        )
        self._rounding: dict[str, Callable[[Any], Any]] = {
            name: functools.partial(self._learnt.rounded, name) for name in own
        }
        # A loss needs the small probabilities of an output, which rounding would make 0.
        self._untouched = {t.name for t in graph.taps if t.fixed is not None and t.is_output}
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
            elif tap.name in self._tables:
                self._rounding[tap.name] = functools.partial(self._looked_up, tap)
            known.add(tap.name)
        self._training: bool | None = None
        self._seen = False
        self._uses: Counter[str] = Counter()
        # Rounding that clips at 0, to a range that depends on the extremes alone, needs no ReLU.
        self._clips = quantizer.activation_bits == 8 and self._learnt.follows_extremes
        self._rectified = {
            tap.name: tap.relu
            for tap in graph.taps
            if self._clips
            and tap.relu is not None
            and tap.layer not in self._parts
            and tap.name in self._learnt
            and not _is_separable(self._by_name[tap.layer])
        }
        # Rounding does not change which value is the largest: behind pooling there are fewer.
        self._pooled = {
            layer: tap
            for layer, tap in graph.pooled.items()
            if self._learnt.follows_extremes and tap in self._learnt
        }
        self._late = set(self._pooled.values())
        self._integer = quantizer.activation_bits == 8
        self._folded = {
            use
            for operator in graph.operators.values()
            if self._has_codes(operator.layer)
            for use in operator.batch_norms
        }
        self.observe()

    @property
    def seen(self) -> bool:
        """Whether every range has seen data, as `observe` found."""
        return self._seen

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
            name in self.kernels.axes
            and self._by_name[name].compute_dtype == "float32"
            and all(
                type(self.kernels.precision_of(name, attribute)).weight_codes
                is not Precision.weight_codes
                for attribute in self.kernels.axes[name]
            )
        )

    def _table_range(self, tap: Tap) -> tuple[Any, Any]:
        """Returns the range of a table's values, whose codes have the zero point 0."""
        table = ops.cast(
            ops.convert_to_tensor(getattr(self._by_name[tap.layer], tap.table)), "float32"
        )
        scale = ops.stop_gradient(ops.max(ops.abs(table))) / _LARGEST_CODE
        return -(_LARGEST_CODE + 1) * scale, _LARGEST_CODE * scale

    def _looked_up(self, tap: Tap, values: Any) -> Any:
        return self.quantizer.fake_quantize(values, *self._table_range(tap))

    def _learnt_like(self, name: str) -> Callable[[Any], Any]:
        source = source_of(self._taps[name], self._taps)
        if source.name in self._tables:
            return functools.partial(self._looked_up, source)
        if source.fixed is not None:
            low, high = self.quantizer.fixed_range(*source.fixed)
            return functools.partial(self.quantizer.fake_quantize, low=low, high=high)
        return functools.partial(self._learnt.frozen, source.name)

    def prepare(self) -> None:
        """Makes what the compiled step cannot make, once the hooks are attached."""
        self._bounds.prepare()

    def hooks(self) -> list[Hook]:
        """Returns the hooks that put it into the layers."""
        training = self._bounds.hook()
        inner = {tap.layer for tap in self._graph.taps if tap.layer}
        found: list[Hook] = [] if training is None else [training]
        found.append(StateHook([self._learnt.variable, *self.kernels.limits]))
        if self._integer:
            found += backends.current().precise_inference(self._model)
        for name, layer in self._by_name.items():
            if name in inner or name in self._layers or self._inner.get(name):
                found.append(Wrapping(layer, "call", functools.partial(self._layer_call, layer)))
            elif name in {layer_of_use(use) for use in self._graph.batch_norms}:
                wrap = functools.partial(self._batch_norm_call, name)
                found.append(Wrapping(layer, "call", wrap))
            elif name in self._pooled:
                wrap = functools.partial(self._pooling_call, self._pooled[name])
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
            elif source.name in self._tables:
                low, high = self._table_range(source)
                found[tap.name] = float(low), float(high)
            elif source.name in learnt:
                found[tap.name] = learnt[source.name]
        return found | {name: learnt[name] for name in self._cells if name in learnt}

    @property
    def in_training(self) -> bool:
        """Whether the call that is being traced is one of training."""
        return bool(self._training)

    @property
    def _with_integers(self) -> bool:
        """Whether the call that is being traced computes with integers."""
        return self._integer and self._training is False and self._seen

    @contextlib.contextmanager
    def _of_call(self) -> Iterator[None]:
        """Prepares what a call of the model needs of kernels and learnt ranges."""
        with contextlib.ExitStack() as stack:
            if self._training:
                stack.enter_context(self.kernels.rounded_together())
                stack.enter_context(self._learnt.learning())
            elif self._seen:
                stack.enter_context(self._learnt.settled(self._with_integers))
            yield

    def _grid(self, name: str) -> Grid:
        source = source_of(self._taps[name], self._taps)
        if source.fixed is not None:
            return grid_of(*self.quantizer.fixed_range(*source.fixed))
        if source.name in self._tables:
            return grid_of(*self._table_range(source))
        return self._learnt.grid(source.name)

    def insert(self, name: str, values: Any) -> Any:
        """Returns values as they are behind a tap."""
        rounding = self._rounding.get(name)
        if rounding is None:
            return values
        if self._with_integers:
            rounded = on_grid(ops.cast(values, "float32"), self._grid(name))
            return ops.cast(rounded, values.dtype)
        return rounding(values)

    def operate(
        self, name: str, function: Callable[..., Any], *values: Any, what: str | None = None
    ) -> Any:
        """Computes an operator without weights as the file does."""
        operator = self._graph.operators.get(name) if self._with_integers else None
        if operator is None or name in self._untouched:
            return function(*values)
        tensors = keras.tree.flatten(values)
        if not all(map(is_computed, tensors)):
            return function(*values)
        ranks = {len(tensor.shape) for tensor in tensors}
        types = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
        if len(ranks) > 1 or types != {"float32"}:
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
        kernel = ops.convert_to_tensor(getattr(layer, attribute))
        precision = self.kernels.precision_of(layer.name, attribute)
        code = operator_of(layer, attribute)
        return operate_weighted(
            run,
            kernel,
            bias,
            values,
            self._grid(operator.inputs[0]),
            self._grid(operator.output),
            precision,
            self.kernels.axes[layer.name][attribute],
            [self._by_name[layer_of_use(use)] for use in operator.batch_norms],
            scales=self.kernels.learnt_scales(layer.name, attribute),
            engine=for_filter(self.engine, precision.stored_bits, code, kernel.shape[0]),
        )

    def weigh(self, owner: str, name: str, attribute: str, layer: Any, values: Any) -> Any:
        """Returns the output of an EinsumDense layer without its activation.

        Args:
            owner: The layer of the graph, which it is or is inside of.
            name: Of the operator.
            attribute: Name of its inner kernel.
            layer: The EinsumDense layer.
            values: Its input.
        """
        kernel = ops.convert_to_tensor(layer.kernel)
        bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
        inner = next(k for k in inner_kernels(self._by_name[owner]) if k.name == attribute)
        operator = self._graph.operators.get(name)
        precision = self.kernels.precision_of(owner, attribute)
        chosen = owner in self._layers
        axes = self.kernels.inner_axes(owner, inner)
        exact = keras.backend.standardize_dtype(values.dtype) == "float32" and has_codes(precision)
        if not (chosen and exact and self._with_integers and operator is not None):
            kernel = precision.fake_quantize_weights(kernel, axes) if chosen else kernel
            outputs = ops.einsum(layer.equation, values, ops.cast(kernel, values.dtype))
            return outputs if bias is None else ops.add(outputs, ops.cast(bias, outputs.dtype))
        return operate_einsum(
            layer,
            inner.outputs,
            kernel,
            bias,
            values,
            self._grid(operator.inputs[0]),
            self._grid(operator.output),
            precision,
            axes,
            [self._by_name[layer_of_use(use)] for use in operator.batch_norms],
            engine=self.engine,
        )

    def _use_of(self, layer: Any) -> str:
        """Returns what the next call of a layer is called."""
        self._uses[layer.name] += 1
        return use_name(layer.name, self._uses[layer.name])

    def _layer_call(self, layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        plain = self._separable if _is_separable(layer) else self._quantized

        @functools.wraps(call)
        def quantized_call(*args: Any, **kwargs: Any) -> Any:
            use = self._use_of(layer)
            if use in self._graph.batch_norms and self.batch_norm_frozen:
                kwargs["training"] = False
            if use in self._folded and self._with_integers:
                return self.insert(use, args[0])
            late = self._training and use in self._late
            if use in self._rectified and self._training:
                outputs = self._before_relu(layer, call, *args, **kwargs)
                return outputs if late else self._rectify(use, outputs)
            run = self._with_inner(layer, functools.partial(plain, use, layer, call))
            if layer.name in self._lstms and self._training:
                return run(*args, **kwargs)
            outputs = run(*args, **kwargs)
            return outputs if late else self.insert(use, outputs)

        return quantized_call

    def _pooling_call(self, tap: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def pooling_call(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            if not self._training:
                return outputs
            rounding = self._rectify if tap in self._rectified else self.insert
            return rounding(tap, outputs)

        return pooling_call

    def _batch_norm_call(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        layer = self._by_name[name]

        @functools.wraps(call)
        def batch_norm_call(*args: Any, **kwargs: Any) -> Any:
            use = self._use_of(layer)
            if self.batch_norm_frozen:
                kwargs["training"] = False
            if use in self._folded and self._with_integers:
                return args[0]
            return call(*args, **kwargs)

        return batch_norm_call

    def _model_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def model_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._training = bool(args[0] if args else kwargs.get("training"))
            self._uses.clear()
            try:
                with self._of_call():
                    return call(map_inputs(self._model, inputs, self.insert), *args, **kwargs)
            finally:
                self._training = None

        return model_call

    def _scope(self, layer: Any, axes: Mapping[str, tuple[int, ...]]) -> keras.StatelessScope:
        """Returns a scope in which the layer reads rounded kernels."""
        variables = {name: getattr(layer, name) for name in axes}
        return reading(
            layer,
            [(v, self.kernels.rounded(layer, name, v.value)) for name, v in variables.items()],
        )

    def _with_inner(self, layer: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `run` with the layer's inner kernels rounded."""
        if not (kernels := self._inner.get(layer.name)):
            return run

        def rounded_run(*args: Any, **kwargs: Any) -> Any:
            values = [(k.variable, self.kernels.rounded_inner(layer.name, k)) for k in kernels]
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

    def _quantized(
        self,
        use: str,
        layer: Any,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        axes = self.kernels.axes.get(layer.name)
        parts = TrainedParts(use, layer, call, self)
        if type(layer).__name__ == "Activation":
            return parts.activate(layer, args[0])
        if use in self._graph.composites:
            known = told(kwargs)
            return composite_of_use(layer, args, known)(layer, parts, *args, **known)
        if layer.name in self._lstms:
            return self._sequences(layer, functools.partial(call, *args, **kwargs))
        split = split_activation(layer) is not None
        outputs = None
        if axes:
            (attribute,) = axes
            name = weighted_operator(layer, use)
            run = with_kernel(layer, attribute, functools.partial(call, **kwargs))
            bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
            outputs = self._operate_weighted(name, layer, attribute, run, bias, args[0])
        if outputs is not None:
            outputs = outputs if split else layer.activation(outputs)
        elif split:
            with linear(layer):
                outputs = self._in_float(layer, call, *args, **kwargs)
        elif axes:
            outputs = self._in_float(layer, call, *args, **kwargs)
        else:
            run = functools.partial(call, **kwargs)
            outputs = self.operate(use, run, *args, what=type(layer).__name__)
        if not split:
            return outputs
        return parts.activate(layer, self.insert(f"{use}/pre_activation", outputs))

    def _sequences(self, layer: Any, call: Callable[[], Any]) -> Any:
        """Computes LSTM layers; in training, learns the ranges of all their states."""

        def integer(name: str, part: Any, sequences: Any) -> Any:
            source = self._grid(self._graph.operators[layer.name].inputs[0])
            largest = self._learnt.largest(cell_name(name))
            grid = self._grid(layer.name)
            return layer_states(part, sequences, source, grid, largest, self.engine)

        known = self._with_integers and layer.name in self._graph.operators
        parts = self._lstms[layer.name]
        if not self._training:
            return run_layers(parts, call, integer if known else None)[0]
        outputs, seen = run_layers(
            parts, call, observe=self._learnt.observe, extremes_only=self._clips
        )
        return self._learnt.rounded(layer.name, outputs, ops.concatenate(seen, axis=-1))

    def _before_relu(self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Computes a layer without the ReLU it ends in."""
        if layer.name not in self._graph.weights:
            return args[0]
        with linear(layer):
            return self._in_float(layer, call, *args, **kwargs)

    def _rectify(self, tap: str, values: Any) -> Any:
        """Rounds what a ReLU reads; that takes its place."""
        return self._learnt.rectified(tap, values, self._rectified[tap])

    def _in_float(self, layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        axes = self.kernels.axes.get(layer.name)
        if not axes:
            return call(*args, **kwargs)
        with self._scope(layer, axes):
            return call(*args, **kwargs)

    def _separable(self, use: str, layer: Any, call: Callable[..., Any], inputs: Any) -> Any:
        axes = self.kernels.axes.get(layer.name, {})

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
            kernel = self.kernels.rounded(layer, attribute, kernel) if attribute in axes else kernel
            outputs = run(kernel, values)
            return outputs if bias is None else outputs + bias

        middle = half(f"{use}/depthwise", "depthwise_kernel", depthwise, inputs)
        middle = self.insert(f"{use}/depthwise", middle)
        bias = ops.convert_to_tensor(layer.bias) if layer.use_bias else None
        outputs = half(weighted_operator(layer, use), "pointwise_kernel", pointwise, middle, bias)
        outputs = self.insert(f"{use}/pre_activation", outputs)
        return TrainedParts(use, layer, call, self).activate(layer, outputs)


# Of an Embedding's table.
_LARGEST_CODE = 127


def has_codes(precision: Precision) -> bool:
    """Returns whether the weights of a precision have codes."""
    return type(precision).weight_codes is not Precision.weight_codes


def _is_separable(layer: Any) -> bool:
    """Returns whether a layer is two operators with a tap between them."""
    return type(layer).__name__.startswith("Separable")
