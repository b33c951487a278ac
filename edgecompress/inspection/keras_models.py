"""Inspecting Keras 3 and tf-keras models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgecompress.core.keras_graph import LayerCall, layer_calls, named_layers, walk_layers
from edgecompress.core.layer_kinds import LayerKind, kind_of
from edgecompress.core.registry import Registry
from edgecompress.core.shared_values import channels_first
from edgecompress.inspection.types import (
    Endpoint,
    Inspection,
    Row,
    Shape,
    count_operators,
    zero_filter_notes,
)

Mac = Callable[[Any, LayerCall], int]

# Formulas by family of layers: (layer, one call) -> multiply-accumulates of that call.
MACS: Registry[Mac] = Registry("family of layers")
# Operators that have a formula of their own within their family.
_BY_OPERATOR = ("heads",)
# Families whose parameters scale, normalize or look up: no weighted sums, by convention.
_NO_MACS = (
    "normalization", "statistics", "layer_normalization", "group_normalization",
    "unit_normalization", "rms_normalization", "slope", "scale", "lookup",
)  # fmt: skip
# Variables that are not weights in the sense of filters and matrices, whatever their rank.
_NO_WEIGHTS = ("alpha", "gamma", "beta", "bias", "moving_mean", "moving_variance", "mean",
               "variance")  # fmt: skip


def _elements(shape: Shape) -> int:
    """Returns the elements of one sample: the batch axis counts as 1.

    Raises:
        TypeError: another dimension is unknown.
    """
    return math.prod(shape[1:])  # type: ignore[arg-type]


@MACS.register("dense")
def _dense_macs(layer: Any, call: LayerCall) -> int:
    """One MAC for each input feature and output element."""
    return _elements(call.outputs[0]) * layer.kernel.shape[0]


@MACS.register("einsum")
def _einsum_dense_macs(layer: Any, call: LayerCall) -> int:
    """One MAC for each output element and each combination of contracted axes."""
    operands, result = layer.equation.replace("...", "").split("->")
    axes = zip(operands.split(",")[1], layer.kernel.shape, strict=True)
    return _elements(call.outputs[0]) * math.prod(size for axis, size in axes if axis not in result)


@MACS.register("convolution")
def _conv_macs(layer: Any, call: LayerCall) -> int:
    """One MAC for each output element, kernel position and input channel of its group."""
    return _elements(call.outputs[0]) * math.prod(layer.kernel.shape[:-1])


@MACS.register("binary")
def _binary_macs(layer: Any, call: LayerCall) -> int:
    """As a convolution or dense layer; binary ones if the input is reduced to signs, too."""
    return _conv_macs(layer, call)


@MACS.register("depthwise")
def _depthwise_macs(layer: Any, call: LayerCall) -> int:
    """One MAC for each output element and kernel position."""
    return _elements(call.outputs[0]) * math.prod(_kernel(layer).shape[:-2])


@MACS.register("separable")
def _separable_macs(layer: Any, call: LayerCall) -> int:
    """A depthwise and a 1x1 convolution at the same output positions."""
    positions = _elements(call.outputs[0]) // layer.pointwise_kernel.shape[-1]
    sizes = (layer.depthwise_kernel.shape, layer.pointwise_kernel.shape)
    return positions * sum(math.prod(size) for size in sizes)


@MACS.register("transposed")
def _transposed_macs(layer: Any, call: LayerCall) -> int:
    """One MAC for each input element, kernel position and output channel."""
    return _elements(call.inputs[0]) * math.prod(layer.kernel.shape[:-1])


@MACS.register("recurrent")
def _recurrent_macs(layer: Any, call: LayerCall) -> int:
    """Every matrix is used once in each time step."""
    kernel, recurrent = layer.cell.kernel.shape, layer.cell.recurrent_kernel.shape
    steps = _elements(call.inputs[0]) // kernel[0]
    return steps * (math.prod(kernel) + math.prod(recurrent))


@MACS.register("bidirectional")
def _bidirectional_macs(layer: Any, call: LayerCall) -> int:
    """Both directions."""
    return _recurrent_macs(layer.forward_layer, call) + _recurrent_macs(layer.backward_layer, call)


@MACS.register("heads")
def _attention_macs(layer: Any, call: LayerCall) -> int:
    """Four Dense layers; a score for each pair of positions and head, and a sum over values."""
    query, value = call.inputs[0], call.inputs[1]
    sizes = {
        part: math.prod(getattr(layer, f"{part}_dense").kernel.shape)
        for part in ("query", "key", "value", "output")
    }
    asked, given = _elements(query) // query[-1], _elements(value) // value[-1]  # type: ignore[operator]
    dense = asked * (sizes["query"] + sizes["output"]) + given * (sizes["key"] + sizes["value"])
    heads, depth, _ = layer.output_dense.kernel.shape
    axes = layer.get_config().get("attention_axes")
    axes = range(1, len(value) - 1) if axes is None else axes
    seen = math.prod(value[axis] for axis in axes)  # type: ignore[misc]
    return dense + asked * seen * heads * (layer.query_dense.kernel.shape[-1] + depth)


def _kernel(layer: Any) -> Any:
    kind = kind_of(layer)
    axes = None if kind is None else kind.kernel
    return layer.kernel if axes is None else axes.of(layer)


def _filters(layer: Any, kind: LayerKind | None) -> np.ndarray:
    """Returns a layer's weights as (output channels, rest); (0, 1) without separate channels."""
    axes = None if kind is None else kind.kernel
    if axes is None or axes.inputs is None:
        return np.empty((0, 1))
    filters = channels_first(_array(axes.of(layer)), axes.outputs)
    # If only signs count, a zero weight is a +1, so no such filter is zero.
    return np.where(filters >= 0, 1, -1) if kind is not None and kind.one_bit else filters


def inspect_keras(model: Any, *, name: str | None = None) -> Inspection:
    """Inspects a Keras 3 or tf-keras model; nested models are entered.

    Args:
        model: The model. A subclassed one shows its layers without shapes and MACs.
        name: What to call it. Defaults to the model's name.

    Example:
        >>> inspect_keras(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])).macs
        ...  # doctest: +SKIP
        12
    """
    notes: list[str] = []
    rows = tuple(row for _, row in keras_rows(model, notes))
    signs = sum(row.bits == 1 for row in rows)
    if signs:
        notes.append(
            f"{signs} layers compute with one bit of each weight; the Keras model keeps float "
            "values of them for training."
        )
    return Inspection(
        name=name or model.name,
        format="keras",
        rows=rows,
        inputs=_keras_endpoints(model, "input"),
        outputs=_keras_endpoints(model, "output"),
        operators=count_operators((row.type, None) for row in rows),
        notes=(*notes, *zero_filter_notes(rows)),
    )


def keras_rows(model: Any, notes: list[str]) -> list[tuple[str, Row]]:
    """Returns a row for each layer, with its path: layers of nested models may share a name.

    Args:
        model: As in `inspect_keras`.
        notes: Takes a sentence for each thing that is not known.
    """
    calls: dict[int, list[LayerCall]] = {}
    graph = layer_calls(model)
    for call in graph:
        calls.setdefault(id(call.layer), []).append(call)
    if not graph:
        notes.append(
            f"Model {model.name!r} ({type(model).__name__}) shows no graph (subclassed, or "
            "not built yet): shapes and MACs are not known."
        )
    layers = [layer for layer in walk_layers(model) if type(layer).__name__ != "InputLayer"]
    known = {id(layer) for layer in layers}
    # keras.ops operations are part of the graph, but not layers.
    for call in graph:
        if id(call.layer) not in known:
            layers.append(call.layer)
            known.add(id(call.layer))
    order = {id(call.layer): position for position, call in enumerate(graph)}
    layers.sort(key=lambda layer: order.get(id(layer), len(order)))
    paths = {id(layer): path for path, layer in named_layers(model)}
    return [
        (
            paths.get(id(layer), layer.name),
            _layer_row(index, layer, calls.get(id(layer), []), notes),
        )
        for index, layer in enumerate(layers)
    ]


def _layer_row(index: int, layer: Any, calls: list[LayerCall], notes: list[str]) -> Row:
    inner = _unwrapped(layer)
    kind = type(inner).__name__
    variables = {id(v): v for v in getattr(inner, "weights", ())}.values()
    weight_bytes = sum(_array(variable).nbytes for variable in variables)
    weights = zeros = weight_bits = 0
    for variable in weight_variables(layer):
        values = _array(variable)
        weights += values.size
        zeros += int((values == 0).sum())
        weight_bits += 8 * values.nbytes
    known = kind_of(inner)
    filters = _filters(inner, known if weights else None)
    macs, binary_macs = _layer_macs(inner, layer.name, weights, calls, notes), 0
    if known is not None and known.one_bit:
        zeros, weight_bits = 0, weights
        if inner.input_quantizer is not None:
            macs, binary_macs = 0, macs
    return Row(
        index=index,
        name=layer.name,
        type=kind if inner is layer else f"{type(layer).__name__}({kind})",
        output_shape=calls[-1].outputs[0] if calls and calls[-1].outputs else None,
        parameters=sum(_array(variable).size for variable in variables),
        weights=weights,
        zeros=zeros,
        filters=len(filters),
        zero_filters=int((~filters.any(axis=1)).sum()),
        bits=weight_bits / weights if weights else None,
        macs=macs,
        weight_bytes=weight_bytes,
        dense_bytes=weight_bytes,
        binary_macs=binary_macs,
    )


def weight_variables(layer: Any) -> list[Any]:
    """Returns a layer's filters and matrices: no biases, no normalization; each variable once."""
    variables = {id(v): v for v in getattr(_unwrapped(layer), "weights", ())}.values()
    return [v for v in variables if len(v.shape) >= 2 and leaf_name(v) not in _NO_WEIGHTS]


def _unwrapped(layer: Any) -> Any:
    """Returns the layer inside a wrapper (TimeDistributed, pruning or quantization wrappers)."""
    while type(layer).__name__ != "Bidirectional" and hasattr(layer, "layer"):
        layer = layer.layer
    return layer


def _array(variable: Any) -> np.ndarray:
    return np.asarray(variable.numpy() if hasattr(variable, "numpy") else variable)


def leaf_name(variable: Any) -> str:
    """Returns a variable's own name, e.g. `kernel`, without its layer's."""
    return str(variable.name).rsplit("/", 1)[-1].split(":")[0]


def _layer_macs(
    layer: Any, name: str, weights: int, calls: list[LayerCall], notes: list[str]
) -> int | None:
    kind, known = type(layer).__name__, kind_of(layer)
    family = "" if known is None else known.family
    operator = "" if known is None else known.operator
    formula = MACS.get(operator if operator in _BY_OPERATOR else family)
    if formula is None:
        # Products multiply activations by activations, without parameters.
        if family in _NO_MACS or not (weights or family == "product"):
            return 0
        notes.append(f"MACs of {name!r} ({kind}) are not counted: no rule for this layer.")
        return None
    try:
        return sum(formula(layer, call) for call in calls) if calls else None
    except TypeError:
        notes.append(
            f"MACs of {name!r} ({kind}) are not counted: some of its sizes are only known when the "
            "model runs."
        )
        return None


def _keras_endpoints(model: Any, side: str) -> tuple[Endpoint, ...]:
    try:
        tensors = getattr(model, f"{side}s")
    except (AttributeError, ValueError):
        return ()
    return tuple(
        Endpoint(tensor.name, tuple(tensor.shape), _dtype_name(tensor.dtype))
        for tensor in tensors or ()
    )


def _dtype_name(dtype: Any) -> str:
    return getattr(dtype, "name", None) or str(dtype)


def layer_macs(model: Any) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """Returns the multiply-accumulates of each layer, and why some are not known.

    Returns:
        Layer, `<nested model>/<layer>` inside nested models -> MACs of all its calls, None if
        unknown; then a sentence for each unknown one.
    """
    calls: dict[int, list[LayerCall]] = {}
    for call in layer_calls(model):
        calls.setdefault(id(call.layer), []).append(call)
    notes: list[str] = []
    found = {}
    for path, layer in named_layers(model):
        inner = _unwrapped(layer)
        weights = sum(math.prod(variable.shape) for variable in weight_variables(layer))
        found[path] = _layer_macs(inner, layer.name, weights, calls.get(id(layer), []), notes)
    return found, tuple(notes)
