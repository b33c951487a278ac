"""Streaming: a model that reads a sequence becomes one that reads a few time steps at once.

What a layer must remember becomes a state, an input and an output of the new model:

- a recurrent layer: its own states (a fused LSTM keeps them as variables of the file);
- a convolution over time: the last inputs that its next windows reach back to;
- what ends the time axis (global pooling, Flatten): all time steps but the newest.

States start at zero, which is what causal padding has before the first time step. After the last
time step the outputs are those of the original model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from edgecompress.converters.fused_lstm import why_not_fused
from edgecompress.converters.loaders import LoadedModel, wrap
from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.keras_graph import GraphNode, follow_graph, functional_of
from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.stepping import Stepping

_TIME = 1
_UNEQUAL = (
    "it starts at the first whole window of a convolution without padding before it, which is "
    "later than the first time step"
)
_ALL_CAUSAL = "Pad every convolution over time before its first time step (padding='causal')"


@dataclass(frozen=True)
class Streamed:
    """A model that reads a few time steps at once.

    Attributes:
        loaded: It; its inputs are those of the original model, then the states.
        stepping: How it runs over a sequence.
    """

    loaded: LoadedModel
    stepping: Stepping


@dataclass(frozen=True)
class _Value:
    """A tensor of the new model.

    Attributes:
        tensor: Its Keras tensor.
        steps: Length of the time axis in the original model; None without one.
        lead: Zeros before the first time step that the next convolution still has to add.
        warm: Whether the first outputs of the new model have no counterpart in the original one,
            whose windows start with the first whole one.
    """

    tensor: Any
    steps: int | None
    lead: int = 0
    warm: bool = False


Rule = Callable[["_Builder", GraphNode, list[_Value]], _Value]
# Class of a layer or operation that reads a time axis -> rule.
LAYERS: Registry[Rule] = Registry("layer that can stream")


def stream(loaded: LoadedModel, fused: bool) -> Streamed:
    """Returns a model that reads a few time steps at once, and how it runs over a sequence.

    Args:
        loaded: A Keras 3 Sequential or Functional model whose inputs are sequences of one length,
            (steps, ...).
        fused: Whether LSTM layers keep their states as variables of the file, where they can.

    Raises:
        UnsupportedModelError: a layer cannot stream; the text names it and what to do.
    """
    import keras

    if loaded.flavour != "keras3":
        raise UnsupportedModelError(
            f"Model {loaded.name!r} cannot stream: only Keras 3 models are known layer by layer."
        )
    functional = functional_of(loaded.model)
    lengths = {spec.shape[0] if spec.shape else None for spec in loaded.inputs}
    steps = lengths.pop()
    if lengths or steps is None:
        raise UnsupportedModelError(
            f"Model {loaded.name!r} cannot stream: its inputs must be sequences of one fixed "
            "length, (steps, ...)."
        )
    hop = _hop(loaded.model)
    if steps % hop:
        raise UnsupportedModelError(
            f"Model {loaded.name!r} cannot stream: its strides over time make it read {hop} time "
            f"steps at once, and {steps} is not a multiple of that."
        )
    builder = _Builder(hop, fused)
    inputs = [
        keras.Input((hop, *tensor.shape[2:]), dtype=tensor.dtype, name=spec.name)
        for tensor, spec in zip(functional.inputs, loaded.inputs, strict=True)
    ]
    found = follow_graph(loaded.model, [_Value(tensor, steps) for tensor in inputs], builder.visit)
    for value in found:
        if value.lead:
            builder.refuse_lead("the model's output")
    model = keras.Model(
        [*inputs, *builder.states],
        [*(value.tensor for value in found), *builder.next_states],
        name=loaded.model.name,
    )
    count = len(found)
    stepping = Stepping(
        hop,
        tuple(range(count, count + len(builder.states))),
        tuple(value.steps or 0 for value in found),
    )
    made = replace(
        wrap(model), name=loaded.name, path=loaded.path, sha256=loaded.sha256, record=loaded.record
    )
    return Streamed(made, stepping)


def _stride(layer: Any) -> int:
    """Returns the stride of a layer over time."""
    strides = getattr(layer, "strides", None)
    if strides is None or type(layer).__name__.startswith("Global"):
        return 1
    return int(strides[0] if isinstance(strides, (tuple, list)) else strides)


def _hop(model: Any) -> int:
    """Returns the time steps for which every layer has a whole number of outputs."""
    found = [1]

    def visit(node: GraphNode, read: list[int]) -> list[int]:
        found.append(max(read, default=1) * _stride(node.operation))
        return [found[-1]] * len(node.outputs)

    follow_graph(model, [1] * len(functional_of(model).inputs), visit)
    return math.lcm(*found)


class _Builder:
    """Builds the new model, layer by layer."""

    def __init__(self, hop: int, fused: bool) -> None:
        self.hop, self.fused = hop, fused
        self.states: list[Any] = []
        self.next_states: list[Any] = []
        self._copies: dict[tuple[int, tuple[Any, ...]], Any] = {}

    def visit(self, node: GraphNode, read: list[_Value]) -> list[_Value]:
        """Returns the outputs of one layer."""
        layer = node.operation
        if all(value.steps is None for value in read):
            outputs = self.copy(layer, [value.tensor for value in read])
            found = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            return [_Value(tensor, None) for tensor in found]
        rule = LAYERS.get(type(layer).__name__)
        if rule is None or not node.plain or len(node.outputs) != 1:
            refuse(layer, "it is not known to compute one time step after the other")
        if any(value.steps is None for value in read):
            refuse(layer, "it combines a sequence with something that is none")
        if len({(value.steps, value.lead, value.warm) for value in read}) > 1:
            refuse(
                layer,
                "its inputs are sequences that start or end at different time steps",
                "Give all branches the same causal convolutions and strides",
            )
        return [rule(self, node, read)]

    def copy(self, layer: Any, tensors: Sequence[Any], call: Any = None, **changes: Any) -> Any:
        """Calls a layer's copy with the same weights, created with other settings if given."""
        key = (id(layer), tuple(sorted(changes.items(), key=str)))
        found = self._copies.get(key)
        if found is None:
            config = {**layer.get_config(), **changes}
            found = self._copies[key] = type(layer).from_config(config)
        outputs = found(*tensors if len(tensors) == 1 else [list(tensors)], **(call or {}))
        if getattr(layer, "weights", None):
            found.set_weights(layer.get_weights())
        return outputs

    def remember(self, layer: Any, value: _Value, rows: int) -> Any:
        """Returns the newest time steps of a value with the `rows` before them."""
        import keras

        if rows == 0:
            return value.tensor
        shape = value.tensor.shape
        state = self.state(f"{layer.name}_state", (rows, *shape[2:]), value.tensor.dtype)
        joined = keras.layers.Concatenate(axis=_TIME)([state, value.tensor])
        self.next_states.append(joined[:, shape[_TIME] :])
        return joined

    def state(self, name: str, shape: Sequence[int], dtype: str) -> Any:
        """Adds a state and returns its input."""
        import keras

        taken = {state.name for state in self.states}
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        self.states.append(keras.Input(tuple(shape), dtype=dtype, name=unique))
        return self.states[-1]

    def refuse_lead(self, reader: str) -> NoReturn:
        """Refuses zeros before a sequence that no convolution uses."""
        raise UnsupportedModelError(
            f"The model cannot stream: {reader} reads time steps that are only padding. Padding in "
            "time must be followed by a convolution with padding='valid' whose kernel covers one "
            "time step more than the padding."
        )


def refuse(layer: Any, reason: str, advice: str = "") -> NoReturn:
    """Refuses a model because one of its layers cannot stream."""
    advice = advice or "Put it after the end of the time axis, or export without --streaming"
    raise UnsupportedModelError(
        f"Layer {layer.name!r} ({type(layer).__name__}) cannot stream: {reason}. {advice}."
    )


def _register(names: str) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        for name in names.split():
            LAYERS.register(name)(rule)
        return rule

    return add


def _axes(layer: Any) -> tuple[int, ...]:
    axis = getattr(layer, "axis", ())
    return tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)


@_register(
    "Activation ReLU LeakyReLU ELU PReLU Softmax Dropout SpatialDropout1D SpatialDropout2D "
    "GaussianDropout GaussianNoise AlphaDropout ActivityRegularization Identity Rescaling "
    "BatchNormalization LayerNormalization RMSNormalization UnitNormalization Normalization Dense "
    "Add Subtract Multiply Maximum Minimum Average Concatenate Embedding TimeDistributed Relu "
    "Relu6 Sigmoid Tanh HardSilu Silu Gelu"
)
def _each_step(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Layers that compute each time step by itself."""
    layer, first = node.operation, read[0]
    rank = len(first.tensor.shape)
    _needs_no_lead(builder, layer, first)
    if any(axis in (_TIME, _TIME - rank) for axis in _axes(layer) if isinstance(axis, int)):
        refuse(layer, "it computes over the time axis")
    kind = type(layer).__name__
    softmax = kind == "Activation" and layer.activation.__name__ == "softmax"
    if rank == 2 and (kind == "Dense" or softmax):
        refuse(layer, "it computes over the time axis")
    if kind == "PReLU" and layer.alpha.shape[0] != 1:
        refuse(layer, "each time step has a slope of its own", "Create it with shared_axes=[1]")
    if kind == "Embedding" and layer.mask_zero:
        refuse(layer, "it makes a mask", "Create it with mask_zero=False")
    return replace(first, tensor=builder.copy(layer, [value.tensor for value in read]))


@_register("Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D")
def _convolution(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Convolutions whose windows end with the newest time step."""
    layer, (value,) = node.operation, read
    if layer.data_format != "channels_last":
        refuse(layer, "its data format is channels_first", "Build it with channels_last")
    reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    stride, padding = _stride(layer), layer.padding
    causal = "Use padding='causal' (Conv1D)"
    if len(layer.kernel_size) > 1:
        causal = (
            f"Put ZeroPadding2D((({reach}, 0), (left, right))) before it and use padding='valid'"
        )
    if padding == "same" and reach:
        refuse(layer, "its padding looks ahead in time", causal)
    lead = reach if padding == "causal" else value.lead
    if padding == "causal" and value.lead:
        builder.refuse_lead(f"layer {layer.name!r}")
    if lead not in (0, reach):
        builder.refuse_lead(f"layer {layer.name!r}")
    if lead and value.warm:
        refuse(layer, _UNEQUAL, _ALL_CAUSAL)
    changes = {"padding": "valid"} if padding == "causal" else {}
    outputs = builder.copy(layer, [builder.remember(layer, value, reach)], **changes)
    steps = value.steps or 0
    if lead == reach:
        return _Value(outputs, -(-steps // stride), warm=value.warm)
    if reach % stride:
        refuse(layer, "its windows do not end with the newest time step", causal)
    return _Value(outputs, (steps - reach - 1) // stride + 1, warm=True)


@_register("ZeroPadding1D ZeroPadding2D")
def _zeros(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Zeros before the first time step, which the state of the next convolution starts with."""
    layer, (value,) = node.operation, read
    both = type(layer).__name__ == "ZeroPadding2D"
    padding: list[Any] = list(layer.padding) if both else [layer.padding]
    before, after = padding[0]
    if after:
        refuse(layer, "it pads after the last time step", "Pad before the first one only")
    if before and value.warm:
        refuse(layer, _UNEQUAL, _ALL_CAUSAL)
    tensor = value.tensor
    if len(padding) > 1 and any(padding[1]):
        tensor = builder.copy(layer, [tensor], padding=((0, 0), tuple(padding[1])))
    return replace(value, tensor=tensor, lead=value.lead + before)


@_register("MaxPooling1D MaxPooling2D AveragePooling1D AveragePooling2D")
def _pooling(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Pooling of windows that do not overlap in time."""
    layer, (value,) = node.operation, read
    _needs_no_lead(builder, layer, value)
    size = layer.pool_size[0] if isinstance(layer.pool_size, (tuple, list)) else layer.pool_size
    if size != _stride(layer):
        refuse(layer, "its windows overlap in time", "Use strides equal to the pool size")
    if size > 1 and value.warm:
        refuse(layer, _UNEQUAL, _ALL_CAUSAL)
    outputs = builder.copy(layer, [value.tensor])
    return replace(value, tensor=outputs, steps=(value.steps or 0) // size)


@_register(
    "GlobalAveragePooling1D GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D Flatten"
)
def _ending(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Layers that end the time axis: they need all its time steps."""
    layer, (value,) = node.operation, read
    _needs_no_lead(builder, layer, value)
    missing = (value.steps or 0) - value.tensor.shape[_TIME]
    return _Value(builder.copy(layer, [builder.remember(layer, value, missing)]), None)


@_register("Reshape")
def _reshape(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Reshapes of each time step; others end the time axis."""
    layer, (value,) = node.operation, read
    _needs_no_lead(builder, layer, value)
    target = node.outputs[0].shape
    if len(target) > 1 and target[_TIME] == value.steps:
        shape = (value.tensor.shape[_TIME], *target[2:])
        return replace(value, tensor=builder.copy(layer, [value.tensor], target_shape=shape))
    return _ending(builder, node, read)


@_register("LSTM GRU SimpleRNN")
def _recurrent(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    """Recurrent layers: their states are kept."""
    layer, (value,) = node.operation, read
    _needs_no_lead(builder, layer, value)
    if value.warm:
        refuse(layer, _UNEQUAL, _ALL_CAUSAL)
    if layer.go_backwards:
        refuse(layer, "it starts with the last time step", "Build it with go_backwards=False")
    steps = value.steps if layer.return_sequences else None
    if builder.fused and why_not_fused(layer, []) is None:
        return _Value(builder.copy(layer, [value.tensor]), steps)
    sizes = layer.cell.state_size
    sizes = list(sizes) if isinstance(sizes, (tuple, list)) else [sizes]
    names = ["state", "carry"][: len(sizes)]
    states = [
        builder.state(f"{layer.name}_{name}", (size,), layer.compute_dtype)
        for name, size in zip(names, sizes, strict=True)
    ]
    outputs, *new = builder.copy(
        layer, [value.tensor], {"initial_state": states}, return_state=True
    )
    builder.next_states += new
    return _Value(outputs, steps)


@_register("Bidirectional")
def _bidirectional(builder: _Builder, node: GraphNode, read: list[_Value]) -> _Value:
    refuse(
        node.operation,
        "it reads the sequence from its end, too",
        "Use its forward layer alone",
    )


def _needs_no_lead(builder: _Builder, layer: Any, value: _Value) -> None:
    if value.lead:
        builder.refuse_lead(f"layer {layer.name!r}")
