"""The trained arithmetic as a Keras model: what the exported file is compared with."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.core.composites import Part
from edgecompress.core.errors import ArgumentError
from edgecompress.core.fusion import (
    FusedGraph,
    FusedOperator,
    Tap,
    analyse,
    layer_of_use,
    source_of,
)
from edgecompress.core.fusion_rules import RECURRENT
from edgecompress.core.inner_kernels import InnerKernel, inner_kernels
from edgecompress.core.keras_graph import layers_by_name
from edgecompress.core.layer_kinds import WEIGHTED, KernelAxes, int8_kernels
from edgecompress.core.learnt_ranges import own_means, settled_record, valid_record
from edgecompress.core.lstm_layers import cell_name, lstm_parts
from edgecompress.core.operator_copy import rebuild
from edgecompress.core.record import CompressionRecord
from edgecompress.precisions.base import PRECISIONS, Precision, trained_precision
from edgecompress.precisions.fake_quantization import spread_scales
from edgecompress.precisions.int8 import Int8
from edgecompress.precisions.integer_arithmetic import LITERT, grid_of, on_grid
from edgecompress.precisions.integer_lstm import layer_states, run_layers
from edgecompress.precisions.integer_operators import (
    OPERATORS,
    name_of,
    operate,
    operate_einsum,
    operate_weighted,
    with_kernel,
)
from edgecompress.precisions.mixed import (
    assign,
    kernel_name,
    operator_of,
    places_of,
    scale_axes,
    trained_kernels,
)
from edgecompress.precisions.requantization import for_filter


@keras.saving.register_keras_serializable(package="edgecompress")
class FakeQuantize(keras.layers.Layer):
    """Rounds its input to what a tensor with a fixed range holds in a precision.

    Args:
        low: Minimum of the range.
        high: Maximum of the range.
        precision: Name in `PRECISIONS`. Defaults to `"int8"`.
    """

    def __init__(self, low: float, high: float, precision: str = "int8", **kwargs: Any) -> None:
        """Keeps the range."""
        # Files of earlier versions store the bits: 8, for int8.
        kwargs.pop("bits", None)
        super().__init__(**kwargs)
        self.low, self.high, self.precision = float(low), float(high), precision

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the rounded input."""
        precision = PRECISIONS[self.precision]()
        if training or precision.activation_bits != 8:
            return precision.fake_quantize(inputs, self.low, self.high)
        grid = grid_of(self.low, self.high)
        return ops.cast(on_grid(ops.cast(inputs, "float32"), grid), inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        own = {"low": self.low, "high": self.high, "precision": self.precision}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="edgecompress")
class IntegerOperator(keras.layers.Layer):
    """Computes an operator in inference with the integers of an int8 file, in training in float.

    Args:
        operator: A layer, or the name of a function of a part (`core.composites.function_of`).
        inputs: The range of each input.
        output: The range of the output.
        batch_norms: BatchNormalization layers folded into the operator. Defaults to none.
        attribute: For a layer with weights: that of its kernel. Defaults to none.
        precision: Name of the kernel's precision. Defaults to `"int8"`.
        axes: Axes of the kernel with separate scales.
        scales: The kernel's scales. Defaults to those that the precision chooses.
        arguments: Further arguments of the function. Defaults to none.
        constants: Position among the function's values -> a constant, as the file holds it.
        bounds: Position -> range of the constant.
        outputs: For an EinsumDense layer, the axes of its kernel that count outputs.
    """

    def __init__(
        self,
        operator: Any,
        inputs: Sequence[tuple[float, float]],
        output: tuple[float, float],
        batch_norms: Sequence[Any] = (),
        attribute: str = "",
        precision: str = "int8",
        axes: Sequence[int] = (),
        scales: Sequence[float] | None = None,
        arguments: Mapping[str, Any] | None = None,
        constants: Mapping[str, Any] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        outputs: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        """Keeps the operator."""
        super().__init__(**kwargs)
        restore = keras.saving.deserialize_keras_object
        self.operator = restore(operator) if isinstance(operator, dict) else operator
        self.batch_norms = [restore(b) if isinstance(b, dict) else b for b in batch_norms]
        self.ranges = [tuple(bounds) for bounds in inputs], tuple(output)
        self.attribute, self.precision, self.axes = attribute, precision, tuple(axes)
        self.scales = None if scales is None else list(scales)
        self.outputs = tuple(outputs)
        if isinstance(operator, str):
            held = {int(k): np.asarray(v, np.float32) for k, v in (constants or {}).items()}
            known = {int(k): (v[0], v[1]) for k, v in (bounds or {}).items()}
            self.operator = Part(operator, dict(arguments or {}), held, known)

    def _run(self, values: Any) -> Any:
        if isinstance(self.operator, Part):
            return self.operator(*keras.tree.flatten(values))
        return self.operator(values)

    @property
    def kernel(self) -> Any:
        """The kernel of its layer."""
        return getattr(self.operator, self.attribute)

    def build(self, input_shape: Any) -> None:
        """Builds the layers."""
        if not isinstance(self.operator, Part) and not self.operator.built:
            self.operator.build(input_shape)
        for layer in self.batch_norms:
            if not layer.built:
                layer.build(self.operator.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the output, unrounded in training."""
        if training:
            outputs = self._run(inputs)
            for layer in self.batch_norms:
                outputs = layer(outputs, training=True)
            return outputs
        sources, target = [grid_of(*bounds) for bounds in self.ranges[0]], grid_of(*self.ranges[1])
        if not self.attribute:
            tensors = keras.tree.flatten(inputs)
            part = isinstance(self.operator, Part)
            function, values = (self.operator, tensors) if part else (self._run, (inputs,))
            return operate(name_of(self.operator), function, values, tensors, sources, target)
        layer, kernel, scales = self.operator, ops.convert_to_tensor(self.kernel), None
        if self.scales is not None:
            scales = spread_scales(self.scales, kernel.shape, self.axes)
        precision = PRECISIONS[self.precision]()
        if self.outputs:
            run = functools.partial(operate_einsum, layer, self.outputs)
        else:
            with_codes = with_kernel(layer, self.attribute, layer.call)
            code = operator_of(layer, self.attribute)
            engine = for_filter(LITERT, precision.stored_bits, code, kernel.shape[0])
            run = functools.partial(operate_weighted, with_codes, engine=engine)
        outputs = run(
            kernel,
            None if layer.bias is None else ops.convert_to_tensor(layer.bias),
            inputs,
            sources[0],
            target,
            precision,
            self.axes,
            self.batch_norms,
            scales,
        )
        return layer.activation(outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the operator's."""
        if isinstance(self.operator, Part):
            shapes = [input_shape] if isinstance(input_shape[0], (int, type(None))) else input_shape
            return self.operator(*(keras.KerasTensor(shape) for shape in shapes)).shape
        return self.operator.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        save = keras.saving.serialize_keras_object
        part = self.operator if isinstance(self.operator, Part) else None
        own = {
            "operator": part.function if part else save(self.operator),
            "inputs": self.ranges[0],
            "output": self.ranges[1],
            "batch_norms": [save(layer) for layer in self.batch_norms],
            "attribute": self.attribute,
            "precision": self.precision,
            "axes": self.axes,
            "scales": self.scales,
            "outputs": self.outputs,
        }
        if part is not None:
            own["arguments"] = dict(part.arguments)
            own["constants"] = {str(k): np.asarray(v).tolist() for k, v in part.constants.items()}
            own["bounds"] = {str(k): list(v) for k, v in part.bounds.items()}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="edgecompress")
class IntegerLSTM(keras.layers.Layer):
    """Computes an LSTM, or a Bidirectional of them, in inference as the int8 operator does.

    Args:
        layer: The layer.
        inputs: The range of its input.
        output: The range of its states.
        cells: The largest absolute cell state of each of its `core.lstm_layers.lstm_parts`.
    """

    def __init__(
        self,
        layer: Any,
        inputs: tuple[float, float],
        output: tuple[float, float],
        cells: Sequence[float],
        **kwargs: Any,
    ) -> None:
        """Keeps the layer."""
        super().__init__(**kwargs)
        restore = keras.saving.deserialize_keras_object
        self.layer = restore(layer) if isinstance(layer, dict) else layer
        self.ranges, self.cells = (tuple(inputs), tuple(output)), list(cells)

    def build(self, input_shape: Any) -> None:
        """Builds the layer."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the output, unrounded in training."""
        if training:
            return self.layer(inputs, training=True)
        source, target = (grid_of(*bounds) for bounds in self.ranges)
        parts = lstm_parts(self.layer)
        cells = dict(zip(parts, self.cells, strict=True))

        def integer(name: str, part: Any, sequences: Any) -> Any:
            return layer_states(part, sequences, source, target, cells[name])

        return run_layers(parts, functools.partial(self.layer, inputs), integer)[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        layer = keras.saving.serialize_keras_object(self.layer)
        inputs, output = self.ranges
        own = {"layer": layer, "inputs": inputs, "output": output, "cells": self.cells}
        return {**super().get_config(), **own}


def simulate(
    model: keras.Model,
    record: CompressionRecord | None = None,
    quantizer: Precision | None = None,
) -> keras.Model:
    """Returns a Keras model that computes what the quantized file will compute.

    Kernels hold the rounded weights, and every tap rounds with its learnt range. In inference, its
    operators compute with the integers of the file as LiteRT does: predictions differ from those of
    the exported file in LiteRT only where float arithmetic falls on the other side of a tie, which
    is rare, and where the record's notes say "not simulated".

    Args:
        model: A trained Sequential or Functional model; not changed.
        record: Holds the ranges. Defaults to the record attached to `model`, if its weights are
            still those with which the ranges were learnt.
        quantizer: The precision. Defaults to the one the record says it was trained in, else int8.

    Returns:
        A model of new layers with the current weights; it can be saved and loaded.

    Raises:
        ArgumentError: the record has no range for a tap of the model, or the Keras backend is not
            TensorFlow.
        UnsupportedModelError: the model is subclassed or has no input shape.

    Example:
        >>> model.fit(x, y, callbacks=[QuantizationAwareTraining()])  # doctest: +SKIP
        >>> simulate(model).evaluate(x_test, y_test)  # doctest: +SKIP
    """
    if keras.backend.backend() != "tensorflow":
        # JAX would compute integers of 64 bits with 32, and the layers could not tell.
        raise ArgumentError(
            "KERAS_BACKEND",
            "be tensorflow for simulate",
            keras.backend.backend(),
            "Save the model and simulate what load_model returns there.",
        )
    record = valid_record(model, settled_record(model)) if record is None else record
    trained = trained_precision(record)
    quantizer = quantizer or trained or Int8()
    graph = analyse(model, own_means(record))
    if trained is not None and quantizer == trained:
        kernels = trained_kernels(record)
    else:
        kernels = assign(places_of(model, graph), quantizer)
    scales = record.weight_scales if quantizer == trained else {}
    taps = {tap.name: tap for tap in graph.taps}
    ranges = {name: _range_of(tap, taps, record, quantizer) for name, tap in taps.items()}

    def insert(name: str, tensor: Any) -> Any:
        if name not in ranges:
            return tensor
        layer_name = re.sub(r"[/:]", "_", name) + f"_{quantizer.name}"
        return FakeQuantize(*ranges[name], quantizer.name, name=layer_name)(tensor)

    def weights(layer: str, kernel: KernelAxes | InnerKernel, values: Any) -> Any:
        if isinstance(kernel, InnerKernel):
            own = kernels.get(kernel_name(layer, kernel.name), quantizer)
            return inner(own, kernel, values, layer in parts)
        precision = kernels.get(kernel_name(layer, kernel.attribute), quantizer)
        axes = precision.weight_axes(kernel.outputs, values.ndim)
        axes = scale_axes(values, axes, precision)
        known = given_scales(values, axes, scales.get(kernel_name(layer, kernel.attribute)))
        return ops.convert_to_numpy(precision.quantize_weights(values, axes, **known))

    parts = {layer_of_use(use) for use in graph.composites}

    def inner(precision: Precision, kernel: InnerKernel, values: Any, followed: bool) -> Any:
        if precision.stored_bits >= 8 and not followed:
            return values
        axes = precision.weight_axes(kernel.outputs, 2)
        parts = [precision.quantize_weights(part, axes) for part in kernel.split(values)]
        return ops.convert_to_numpy(ops.concatenate(parts, -1))

    def constant(values: Any) -> Any:
        rounded = quantizer.fake_quantize(values, values.min(), values.max())
        return ops.convert_to_numpy(rounded)

    cells = {name: record.ranges[name] for name in graph.cells if name in record.ranges}
    operate = _Operators(model, graph, ranges | cells, quantizer, kernels, scales)
    return rebuild(model, insert, weights, operate, constant)


class _Operators:
    """Computes the operators of a rebuilt model with integers."""

    def __init__(
        self,
        model: Any,
        graph: FusedGraph,
        ranges: Mapping[str, tuple[float, float]],
        quantizer: Precision,
        kernels: Mapping[str, Precision],
        scales: Mapping[str, Sequence[float]],
    ) -> None:
        self._graph, self._ranges, self._layers = graph, ranges, layers_by_name(model)
        self._quantizer, self._kernels, self._scales = quantizer, kernels, scales
        self._folded: set[str] = set()
        self._named: set[str] = set()

    def __call__(self, name: str, function: Any, *values: Any) -> Any:
        operator = self._graph.operators.get(name)
        if name in self._folded:
            return values[0]
        tensors = keras.tree.flatten(values)
        if (
            self._quantizer.activation_bits != 8
            or operator is None
            or any(getattr(tensor, "dtype", "") != "float32" for tensor in tensors)
        ):
            return function(*values)
        inputs, output = (
            [self._ranges[tap] for tap in operator.inputs],
            self._ranges[operator.output],
        )
        known: dict[str, Any] = {"name": self._name_of(name, function)}
        if operator.kind == WEIGHTED:
            kernel, precision, axes, scales = self._kernel_of(name, operator)
            if type(precision).weight_codes is Precision.weight_codes:
                return function(*values)
            known |= {"attribute": kernel, "precision": precision.name, "axes": axes}
            known["scales"] = scales
            self._folded |= set(operator.batch_norms)
            if operator.kernel:
                known["outputs"] = self._inner(operator).outputs
            originals = [self._layers[layer_of_use(use)] for use in operator.batch_norms]
            copies = [type(layer).from_config(layer.get_config()) for layer in originals]
            outputs = IntegerOperator(function, inputs, output, copies, **known)(*values)
            for copy, original in zip(copies, originals, strict=True):
                copy.set_weights(original.get_weights())
            return outputs
        if operator.kind == RECURRENT:
            cells = [self._ranges.get(cell_name(part)) for part in lstm_parts(function)]
            # Training with another form of the layer has seen no cell states.
            if None in cells or not self._quantizer.fuses_lstm:
                return function(*values)
            largest = [max(map(abs, bounds)) for bounds in cells if bounds is not None]
            return IntegerLSTM(function, inputs[0], output, largest, **known)(*values)
        what = name_of(function)
        if what not in OPERATORS or len({len(tensor.shape) for tensor in tensors}) > 1:
            return function(*values)
        if isinstance(function, keras.layers.Layer):
            return IntegerOperator(function, inputs, output, **known)(*values)
        if isinstance(function, Part):
            known |= {"arguments": function.arguments, "bounds": function.bounds}
            known["constants"] = function.constants
        single = values[0] if len(values) == 1 else list(values)
        return IntegerOperator(what, inputs, output, **known)(single)

    def _name_of(self, name: str, function: Any) -> str:
        """Returns a name for a new layer: of the layer it computes, or of the operator."""
        own = getattr(function, "name", None)
        if own is None or own in self._named:
            own = re.sub("/", "_", name)
        self._named.add(own)
        return own

    def _inner(self, operator: FusedOperator) -> InnerKernel:
        layer = self._layers[operator.layer]
        return next(k for k in inner_kernels(layer) if k.name == operator.kernel)

    def _kernel_of(
        self, name: str, operator: FusedOperator
    ) -> tuple[str, Precision, tuple[int, ...], list[float] | None]:
        """Returns the attribute of a copied layer's kernel, its precision, its scales and axes."""
        layer = self._layers[operator.layer]
        if operator.kernel:
            inner = self._inner(operator)
            precision = self._kernels.get(kernel_name(operator.layer, inner.name), self._quantizer)
            values, axes = inner.variable, precision.weight_axes(inner.outputs, 2)
            codes = precision.weight_codes(ops.convert_to_tensor(values), axes)
            scales = None if codes is None else ops.convert_to_numpy(codes[1]).ravel().tolist()
            return "kernel", precision, axes, scales
        found = int8_kernels(layer)
        kernel = found[0] if name.endswith("/depthwise") else found[-1]
        name_of_kernel = kernel_name(operator.layer, kernel.attribute)
        precision = self._kernels.get(name_of_kernel, self._quantizer)
        values = ops.convert_to_numpy(kernel.of(layer))
        axes = scale_axes(values, precision.weight_axes(kernel.outputs, values.ndim), precision)
        learnt = self._scales.get(name_of_kernel)
        codes = precision.weight_codes(values, axes, **given_scales(values, axes, learnt))
        scales = None if codes is None else ops.convert_to_numpy(codes[1]).ravel().tolist()
        # A separable layer is copied as two layers.
        return "kernel" if len(found) == 2 else kernel.attribute, precision, axes, scales


def given_scales(
    values: Any, axes: Sequence[int], learnt: Sequence[float] | None
) -> dict[str, Any]:
    """Returns the argument `scales` of the functions that round weights; {} for no learnt ones."""
    if learnt is None:
        return {}
    return {"scales": spread_scales(learnt, values.shape, axes)}


def _range_of(
    tap: Tap, taps: dict[str, Tap], record: CompressionRecord, quantizer: Precision
) -> tuple[float, float]:
    tap = source_of(tap, taps)
    if tap.fixed is not None:
        return quantizer.fixed_range(*tap.fixed)
    if tap.name not in record.ranges:
        raise ArgumentError(
            "record",
            f"hold an activation range for {tap.name!r}",
            sorted(record.ranges),
            "Its weights changed after training learnt it: train quantization-aware again."
            if tap.name in record.outdated
            else "Train with QuantizationAwareTraining, or pass the record of this model.",
        )
    low, high = record.ranges[tap.name]
    return (min(low, 0.0) - tap.lowered, high) if tap.lowered else (low, high)
