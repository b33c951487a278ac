"""Where an int8 model rounds its activations: the boundaries of fused operators.

The converter folds BatchNormalization into the convolution before it and fuses ReLU and ReLU6 into
the operator before them, so Conv+BN+ReLU rounds once, after the ReLU. Training and conversion must
agree on these points, called taps, or the trained ranges belong to other tensors than the file's.
This module finds them in a Keras model; rules and operator lists follow the LiteRT converter of
TensorFlow and the `static_wi8_ai8` recipe of litert-quantizer.

A tap is named after its layer (`conv_relu`), `<layer>/pre_activation` for the linear output of a
layer whose own activation cannot be fused (softmax, sigmoid, ...), `<layer>/sigmoid` for the gate
inside SiLU, `<layer>/depthwise` for the first half of a separable convolution, and `input:0`,
`input:1`, ... for the model's inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.keras_graph import functional_of, graph_nodes, run_graph
from edgecompress.core.registry import Registry

# What a step does to scales. Rounding kinds get a tap, the others keep their input's.
WEIGHTED = "weighted"  # convolution or matrix product: own range, takes in BN and ReLU
AFFINE = "affine"  # BatchNormalization, Rescaling: folded where possible
RELU, RELU6 = "relu", "relu6"  # fused where possible
BINARY = "binary"  # add, subtract, multiply: own range, takes in ReLU
FREE = "free"  # own range, takes in nothing: mean, hard swish, leaky ReLU, ...
FIXED = "fixed"  # range set by the operator: softmax, sigmoid, tanh
JOIN = "join"  # own range, which its inputs take over: concatenate, maximum
AVERAGE = "average"  # rounds, with its input's range: average pooling, bilinear resizing
MAXPOOL = "maxpool"  # keeps values and range, takes in ReLU
VIEW = "view"  # keeps values and range; ReLU and BN are moved in front of it
MOVE = "move"  # keeps values and range: padding, cropping, global maximum
IDENTITY = "identity"  # does nothing in inference: dropout
UNSUPPORTED = "unsupported"  # not simulated
_OWN_RANGE = (WEIGHTED, AFFINE, RELU, RELU6, BINARY, FREE)
_KEEPS_RANGE = (MAXPOOL, VIEW, MOVE, IDENTITY)


@dataclass(frozen=True)
class Tap:
    """A point where the int8 model rounds activations.

    Attributes:
        name: The tap's name, unique in the model.
        layer: Name of the layer it belongs to; "" for a model input.
        fixed: (minimum, maximum) where the operator prescribes its range, else None.
        same_as: Tap whose range this one must have, else None. An earlier tap for average
            pooling, which rounds to its input's range; a later one for what only a concatenation
            or maximum reads, where that tap does the rounding.
        is_output: Whether its values are an output of the model.
    """

    name: str
    layer: str = ""
    fixed: tuple[float, float] | None = None
    same_as: str | None = None
    is_output: bool = False


@dataclass(frozen=True)
class FusedGraph:
    """A model as the int8 converter sees it.

    Attributes:
        taps: In the order of the graph, inputs first.
        weights: Layer name -> its weights as (attribute, channel axes): each index along the
            channel axes has a scale of its own.
        batch_norms: Names of BatchNormalization layers that fold into the layer before.
        notes: What training cannot simulate, one sentence each with the layer and the reason.
    """

    taps: tuple[Tap, ...]
    weights: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]] = field(default_factory=dict)
    batch_norms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Step:
    """One operator a layer turns into; reads the values at `reads`, counted from the last one."""

    kind: str
    suffix: str = ""
    fixed: tuple[float, float] | None = None
    reason: str = ""
    reads: tuple[int, ...] = (-1,)


_Lowering = Callable[[Any], tuple[_Step, ...]]
_LOWERINGS: Registry[_Lowering] = Registry("layer class")

# Ranges that LiteRT's kernels prescribe: scale 1/256, zero point -128; tanh 1/128 and 0.
_UNIT = (0.0, 255 / 256)
_ACTIVATIONS: dict[str, tuple[_Step, ...]] = {
    "linear": (),
    "relu": (_Step(RELU),),
    "relu6": (_Step(RELU6),),
    "softmax": (_Step(FIXED, fixed=_UNIT),),
    "sigmoid": (_Step(FIXED, fixed=_UNIT),),
    "tanh": (_Step(FIXED, fixed=(-1.0, 127 / 128)),),
    "hard_silu": (_Step(FREE),),
    "gelu": (_Step(FREE),),
    "leaky_relu": (_Step(FREE),),
    "elu": (_Step(FREE),),
    "silu": (_Step(FIXED, "sigmoid", _UNIT), _Step(BINARY, reads=(-2, -1))),
}

# Weights of each class: attribute and channel axes.
_WEIGHTS: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "Dense": (("kernel", (-1,)),),
    "Conv1D": (("kernel", (-1,)),),
    "Conv2D": (("kernel", (-1,)),),
    "Conv2DTranspose": (("kernel", (-2,)),),
    "DepthwiseConv1D": (("kernel", (-2, -1)),),
    "DepthwiseConv2D": (("kernel", (-2, -1)),),
    "SeparableConv1D": (("depthwise_kernel", (-2, -1)), ("pointwise_kernel", (-1,))),
    "SeparableConv2D": (("depthwise_kernel", (-2, -1)), ("pointwise_kernel", (-1,))),
}

# Classes of layers and of keras.ops operations that always turn into one operator.
_PLAIN = {
    AFFINE: ("BatchNormalization",),
    BINARY: ("Add", "Subtract", "Multiply"),
    FREE: (
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "Mean",
        "HardSilu",
        "LeakyReLU",
        "ELU",
    ),
    JOIN: ("Concatenate", "Maximum", "Minimum"),
    AVERAGE: ("AveragePooling1D", "AveragePooling2D"),
    MAXPOOL: ("MaxPooling1D", "MaxPooling2D"),
    VIEW: ("Reshape", "Flatten", "Permute", "Transpose"),
    MOVE: (
        "ZeroPadding1D",
        "ZeroPadding2D",
        "Cropping1D",
        "Cropping2D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
    ),
    IDENTITY: (
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "GaussianDropout",
        "GaussianNoise",
        "AlphaDropout",
        "ActivityRegularization",
        "Identity",
    ),
    RELU: ("Relu",),
    RELU6: ("Relu6",),
}


def _always(*steps: _Step) -> _Lowering:
    """Returns a rule for classes that turn into the same operators whatever their settings."""
    return lambda layer: steps


for _kind, _names in _PLAIN.items():
    for _name in _names:
        _LOWERINGS.register(_name)(_always(_Step(_kind)))


def _unsupported(reason: str) -> tuple[_Step, ...]:
    return (_Step(UNSUPPORTED, reason=reason),)


def _activation_name(layer: Any) -> str:
    """Returns the registered name of a layer's activation, or its own name for a custom one."""
    import keras

    function = layer.activation
    for name in _ACTIVATIONS:
        if function is keras.activations.get(name):
            return name
    return str(getattr(function, "__name__", function))


def _activation_steps(name: str) -> tuple[_Step, ...]:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    return _unsupported(f"int8 has no operator for its activation {name}")


@_LOWERINGS.register("Activation")
def _lower_activation(layer: Any) -> tuple[_Step, ...]:
    return _activation_steps(_activation_name(layer)) or (_Step(IDENTITY),)


for _name in ("softmax", "sigmoid", "tanh"):
    _LOWERINGS.register(_name.capitalize())(_always(*_ACTIVATIONS[_name]))


@_LOWERINGS.register("ReLU")
def _lower_relu(layer: Any) -> tuple[_Step, ...]:
    if layer.negative_slope and layer.max_value is None and not layer.threshold:
        return (_Step(FREE),)
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        return _unsupported("int8 knows ReLU, ReLU6 and leaky ReLU only")
    return (_Step(RELU if layer.max_value is None else RELU6),)


@_LOWERINGS.register("UpSampling2D")
def _lower_upsampling(layer: Any) -> tuple[_Step, ...]:
    if layer.interpolation == "bilinear":
        return (_Step(AVERAGE),)
    return _unsupported(f"{layer.interpolation} upsampling becomes a float TILE operator")


@_LOWERINGS.register("Rescaling")
def _lower_rescaling(layer: Any) -> tuple[_Step, ...]:
    if not all(isinstance(value, (int, float)) for value in (layer.scale, layer.offset)):
        return _unsupported("its scale is not one number")
    return (_Step(AFFINE),)


def _lower_weighted(layer: Any) -> tuple[_Step, ...]:
    if getattr(layer, "data_format", None) == "channels_first":
        return _unsupported("its data format is channels_first")
    activation = _activation_steps(_activation_name(layer))
    separable = type(layer).__name__.startswith("Separable")
    first = (_Step(WEIGHTED, "depthwise"),) if separable else ()
    return (*first, _Step(WEIGHTED, "pre_activation" if activation else ""), *activation)


for _name in _WEIGHTS:
    _LOWERINGS.register(_name)(_lower_weighted)


def _lower(layer: Any, inputs: int, plain: bool) -> tuple[_Step, ...]:
    """Returns the operators that a layer or operation turns into."""
    kind = type(layer)
    if kind.__name__ not in _LOWERINGS or not kind.__module__.startswith("keras."):
        return _unsupported("int8 quantization does not know this class")
    if not plain:
        return _unsupported("it is called with further arguments or constants")
    if kind.__name__ == "SeparableConv1D" and layer.padding == "causal":
        return _unsupported("causal padding inside a separable convolution")
    steps = _LOWERINGS[kind.__name__](layer)
    if steps[0].kind == BINARY and inputs != 2:
        return _unsupported(f"it combines {inputs} tensors; chain layers that combine two")
    return steps


def _is_nested(layer: Any) -> bool:
    """Tells whether a layer is a model whose graph can be entered."""
    import keras

    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "operations")
    )


@dataclass
class _Operator:
    """One operator with the values it reads and writes (numbers), and what became of it."""

    layer: Any
    step: _Step
    inputs: tuple[int, ...]
    output: int
    last: bool
    same_channels: bool
    rank: int
    dtype: str
    absorbed: bool = False  # fused into the operator before it
    folded_forward: bool = False  # Rescaling that the next convolution's weights take in

    @property
    def name(self) -> str:
        return f"{self.layer.name}/{self.step.suffix}" if self.step.suffix else self.layer.name


class _Graph:
    """The operators of a model, nested models entered, in the order of execution."""

    def __init__(self, model: Any) -> None:
        self.operators: list[_Operator] = []
        self.notes: list[str] = []
        self._count = 0
        functional = functional_of(model)
        self.inputs = [self._new() for _ in functional.inputs]
        self.input_dtypes = [str(tensor.dtype) for tensor in functional.inputs]
        self.outputs = self._walk(functional, self.inputs)
        self._refuse_shared()
        self.producer = {operator.output: operator for operator in self.operators}
        self.readers = Counter(v for o in self.operators for v in o.inputs)
        self.readers.update(self.outputs)

    def _new(self) -> int:
        self._count += 1
        return self._count

    def _walk(self, model: Any, inputs: Iterable[int]) -> list[int]:
        functional = functional_of(model)
        values = {id(t): v for t, v in zip(functional.inputs, inputs, strict=True)}
        for node in graph_nodes(model):
            read = [values[id(tensor)] for tensor in node.inputs]
            layer = node.operation
            written = self._walk(layer, read) if _is_nested(layer) else self._add(node, read)
            values.update((id(t), v) for t, v in zip(node.outputs, written, strict=True))
        return [values[id(tensor)] for tensor in functional.outputs]

    def _add(self, node: Any, read: list[int]) -> list[int]:
        layer, outputs = node.operation, node.outputs
        if len(outputs) != 1:
            self.notes.append(_not_simulated(layer, "it has several outputs"))
            return [self._new() for _ in outputs]
        steps = _lower(layer, len(read), node.plain)
        shapes = [t.shape for t in (*node.inputs, *outputs)]
        same = len(shapes[0]) > 0 and shapes[0][-1] == shapes[-1][-1]
        values = list(read)
        for position, step in enumerate(steps):
            used = read if position == 0 else [values[offset] for offset in step.reads]
            last = position == len(steps) - 1
            values.append(self._new())
            dtype = str(outputs[0].dtype)
            self.operators.append(
                _Operator(layer, step, tuple(used), values[-1], last, same, len(shapes[-1]), dtype)
            )
            if step.reason:
                self.notes.append(_not_simulated(layer, step.reason))
        return [values[-1]]

    def _refuse_shared(self) -> None:
        uses = Counter(id(o.layer) for o in self.operators if o.last)
        layers = {id(o.layer): o.layer for o in self.operators if o.step.kind not in _KEEPS_RANGE}
        for key, layer in layers.items():
            if uses[key] > 1:
                raise UnsupportedModelError(
                    f"Layer {layer.name!r} is used {uses[key]} times in the model's graph: each "
                    "use would need an activation range of its own. Create one layer per use."
                )
        names = Counter(layer.name for layer in layers.values())
        for name, count in names.items():
            if count > 1:
                raise UnsupportedModelError(
                    f"{count} layers of nested models share the name {name!r}. Give each layer a "
                    "name of its own."
                )

    def before(self, operator: _Operator, transparent: tuple[str, ...]) -> _Operator | None:
        """Returns the operator whose only reader is this one, looking through some kinds."""
        value = operator.inputs[0]
        merged = operator.step.kind in (RELU, RELU6) and self._is_merged(operator)
        while (self.readers[value] == 1 or merged) and value in self.producer:
            merged = False
            found = self.producer[value]
            if found.step.kind not in transparent:
                return found
            if found.step.kind == VIEW and operator.step.kind == AFFINE and not _keeps_axis(found):
                return None
            value = found.inputs[0]
        return None

    def _is_merged(self, operator: _Operator) -> bool:
        """Tells whether all readers of this one's input are equal: the converter makes them one."""
        readers = [o for o in self.operators if operator.inputs[0] in o.inputs]
        return len(readers) == self.readers[operator.inputs[0]] and all(
            o.step.kind == operator.step.kind for o in readers
        )

    def after(self, operator: _Operator) -> _Operator | None:
        """Returns the only reader of an operator's output, looking through dropout."""
        value = operator.output
        while self.readers[value] == 1:
            readers = [o for o in self.operators if value in o.inputs]
            if not readers:
                return None
            if readers[0].step.kind != IDENTITY:
                return readers[0]
            value = readers[0].output
        return None

    def root(self, operator: _Operator) -> _Operator:
        """Returns the operator that this one is fused into; itself where it is not."""
        while operator.absorbed and (before := self.before(operator, (VIEW, IDENTITY))):
            operator = before
        return operator


def _not_simulated(layer: Any, reason: str) -> str:
    return f"not simulated: {layer.name} ({type(layer).__name__}): {reason}."


def _keeps_axis(view: _Operator) -> bool:
    """Tells whether a reshape leaves the channel axis alone."""
    return view.same_channels and type(view.layer).__name__ in ("Reshape", "Flatten")


def _absorb(graph: _Graph, operator: _Operator) -> None:
    """Decides whether an operator is fused into the one before it."""
    kind = operator.step.kind
    if kind == AFFINE:
        before = graph.before(operator, (VIEW, IDENTITY))
        channels_last = getattr(operator.layer, "axis", -1) in (-1,) or _last_axis(operator.layer)
        operator.absorbed = (
            before is not None
            and channels_last
            and (before.step.kind == WEIGHTED or (before.step.kind == AFFINE and before.absorbed))
        )
        if not operator.absorbed:
            _fold_forward(graph, operator)
    elif kind in (RELU, RELU6):
        before = graph.before(operator, (VIEW, IDENTITY))
        takes = (WEIGHTED, AFFINE, BINARY, AVERAGE, MAXPOOL)
        operator.absorbed = before is not None and (
            (before.step.kind in takes and not before.folded_forward)
            or (kind == RELU and before.step.kind in (RELU, RELU6))
        )


def _last_axis(layer: Any) -> bool:
    axis, spec = getattr(layer, "axis", None), getattr(layer, "input_spec", None)
    return isinstance(axis, int) and getattr(spec, "ndim", None) == axis + 1


def _fold_forward(graph: _Graph, operator: _Operator) -> None:
    """Folds Rescaling into the weights of the convolution after it, else notes what is lost."""
    layer, after = operator.layer, graph.after(operator)
    rescaling = type(layer).__name__ == "Rescaling"
    if rescaling and after is not None and after.step.kind == WEIGHTED:
        convolution = type(after.layer).__name__ not in ("Dense", "Conv2DTranspose")
        # An offset would also have to reach the padded border.
        operator.folded_forward = convolution and (
            layer.offset == 0 or after.layer.padding == "valid"
        )
    if rescaling and layer.offset == 0:
        return
    if operator.folded_forward:
        graph.notes.append(
            _not_simulated(
                layer,
                "its offset becomes part of the next convolution's bias, computed from weights "
                "before rounding",
            )
        )
        return
    graph.notes.append(
        _not_simulated(
            layer,
            "it folds into no convolution before it and becomes a multiplication and an addition; "
            "the product between them is rounded in the int8 model only",
        )
    )


def analyse(model: Any) -> FusedGraph:
    """Returns the taps, quantized weights and foldable layers of a Keras model.

    Args:
        model: A built Sequential or Functional model; nested models are entered.

    Raises:
        UnsupportedModelError: the model is subclassed, has no input shape yet, uses a layer twice
            or has two layers of one name.

    Example:
        >>> [tap.name for tap in analyse(model).taps]    # Conv2D, BatchNormalization, ReLU, Dense
        ...  # doctest: +SKIP
        ['input:0', 're_lu', 'dense/pre_activation', 'dense']
    """
    graph = _Graph(model)
    for operator in graph.operators:
        _absorb(graph, operator)

    taps: list[Tap] = []
    covering: dict[int, str | None] = {}
    for position, (value, dtype) in enumerate(zip(graph.inputs, graph.input_dtypes, strict=True)):
        covering[value] = None
        if "float" in dtype:
            taps.append(Tap(f"input:{position}"))
            covering[value] = taps[-1].name
        else:
            graph.notes.append(f"not simulated: input:{position}: it holds {dtype}, not floats.")

    # Values that a fused ReLU or BN reads are inside a fused operator.
    inside = _inside(graph)
    for operator in graph.operators:
        source = covering.get(operator.inputs[0]) if operator.inputs else None
        tap = _tap_of(graph, operator, source)
        if operator.output in inside or operator.step.kind in _KEEPS_RANGE or tap is None:
            covering[operator.output] = source
        else:
            taps.append(tap)
            covering[operator.output] = tap.name

    layers = {o.layer.name: o.layer for o in graph.operators if o.step.kind == WEIGHTED}
    return FusedGraph(
        taps=tuple(taps),
        weights={name: _WEIGHTS[type(layer).__name__] for name, layer in layers.items()},
        batch_norms=tuple(
            o.layer.name
            for o in graph.operators
            if o.absorbed and type(o.layer).__name__ == "BatchNormalization"
        ),
        notes=tuple(dict.fromkeys(graph.notes)),
    )


def _inside(graph: _Graph) -> set[int]:
    """Returns the values between an operator and what is fused into it."""
    inside: set[int] = set()
    for operator in graph.operators:
        if not operator.absorbed:
            continue
        value = operator.inputs[0]
        while True:
            inside.add(value)
            producer = graph.producer[value]
            if producer.step.kind not in (VIEW, IDENTITY):
                break
            value = producer.inputs[0]
    return inside


def _tap_of(graph: _Graph, operator: _Operator, source: str | None) -> Tap | None:
    """Returns the tap on an operator's output, or None where its values are already rounded."""
    name, layer, step = operator.name, operator.layer.name, operator.step
    if "float" not in operator.dtype or operator.folded_forward:
        return None
    is_output = operator.output in graph.outputs
    root, after = graph.root(operator), graph.after(operator)
    if root.step.kind == MAXPOOL:
        return None  # a fused ReLU: pooling keeps its input's range
    if root.step.kind == AVERAGE:
        return Tap(name, layer, same_as=source, is_output=is_output)
    # Convolutions of one dimension end in a reshape, which must keep their range.
    reshaped = root.step.kind == WEIGHTED and operator.rank == 3
    if after is not None and after.step.kind == JOIN and step.kind in _OWN_RANGE and not reshaped:
        return Tap(name, layer, same_as=after.name)
    return Tap(name, layer, fixed=step.fixed, is_output=is_output)


def find_taps(model: Any) -> tuple[Tap, ...]:
    """Returns the points where the int8 model rounds activations, inputs first.

    Args:
        model: A built Sequential or Functional model; nested models are entered.

    Raises:
        UnsupportedModelError: as for `analyse`.
    """
    return analyse(model).taps


def source_of(tap: Tap, taps: Mapping[str, Tap]) -> Tap:
    """Returns the tap whose range a tap has: itself, or where its chain of `same_as` ends.

    Args:
        tap: A tap of a model.
        taps: All taps of the model by name.
    """
    while tap.same_as is not None:
        tap = taps[tap.same_as]
    return tap


def layers_by_name(model: Any) -> dict[str, Any]:
    """Returns the layers and operations of a model's graph by name, nested models entered."""
    found: dict[str, Any] = {}
    for node in graph_nodes(model):
        if _is_nested(node.operation):
            found.update(layers_by_name(node.operation))
        else:
            found[node.operation.name] = node.operation
    return found


def kernels_of(layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Returns a layer's int8 weights as (attribute, channel axes); none for other classes.

    Args:
        layer: A layer of Keras 3 or of tf-keras.
    """
    return _WEIGHTS.get(type(layer).__name__, ())


def split_activation(layer: Any) -> str | None:
    """Returns the name of a weighted layer's activation where it is an operator of its own.

    None for linear, ReLU and ReLU6, which fuse, and for layers without weights.
    """
    if type(layer).__name__ not in _WEIGHTS:
        return None
    name = _activation_name(layer)
    return None if name in ("linear", "relu", "relu6") else name


def apply_activation(
    layer: Any, values: Any, insert: Callable[[str, Any], Any], function: Any = None
) -> Any:
    """Applies a layer's activation operator by operator, calling `insert` on inner taps.

    Args:
        layer: A layer with an `activation`.
        values: The linear output, any shape.
        insert: `(tap name, tensor) -> tensor`, called for the gate inside SiLU.
        function: The activation; defaults to `layer.activation`.
    """
    import keras

    if _activation_name(layer) == "silu":
        gate = insert(f"{layer.name}/sigmoid", keras.ops.sigmoid(values))
        return keras.ops.multiply(values, gate)
    return (function or layer.activation)(values)


def rebuild(
    model: Any,
    insert: Callable[[str, Any], Any],
    weights: Callable[[Any, tuple[int, ...]], Any] | None = None,
) -> Any:
    """Builds the model anew from copies of its layers, operator by operator.

    The copies hold the weights of now; the model itself is left alone. Nested models are
    dissolved, separable convolutions become a depthwise and a pointwise one, and activations that
    do not fuse become layers, so that every tap is a tensor of the new model.

    Args:
        model: A built Sequential or Functional model.
        insert: `(name, tensor) -> tensor`, called on the model's inputs (`input:0`, ...), on each
            layer's output and on the parts inside a layer; returns what is read from then on.
        weights: `(array, channel axes) -> array` for each quantized kernel. Defaults to none.

    Returns:
        A keras.Model with the same inputs and outputs.

    Raises:
        UnsupportedModelError: as for `analyse`.
    """
    import keras

    functional = functional_of(model)
    copies = _Copies(insert, weights)
    inputs = [
        keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
        for tensor in functional.inputs
    ]
    entered = [insert(f"input:{position}", tensor) for position, tensor in enumerate(inputs)]
    outputs = run_graph(model, entered, copies.call)
    struct = keras.tree.pack_sequence_as(functional.input, inputs)
    return keras.Model(struct, outputs, name=model.name)


class _Copies:
    """Calls copies of layers, one operator at a time."""

    def __init__(
        self,
        insert: Callable[[str, Any], Any],
        weights: Callable[[Any, tuple[int, ...]], Any] | None,
    ) -> None:
        self._insert, self._weights = insert, weights
        self._made: dict[int, Any] = {}

    def call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if _is_nested(layer):
            return run_graph(layer, keras.tree.flatten(args), self.call)
        kind = type(layer).__name__
        if kind == "Activation":
            function = keras.layers.Activation(layer.activation, name=layer.name)
            outputs = apply_activation(layer, args[0], self._insert, function)
        elif kind not in _WEIGHTS:
            outputs = self._copy(layer, args, kwargs)
        elif kind.startswith("Separable"):
            outputs = self._separable(layer, *args)
        else:
            outputs = self._weighted(layer, *args, **kwargs)
        if isinstance(outputs, keras.KerasTensor):
            return self._insert(layer.name, outputs)
        return outputs

    def _copy(self, layer: Any, args: Any, kwargs: Any, **changes: Any) -> Any:
        """Calls the copy of a layer; a layer that is used twice has one copy."""
        if id(layer) in self._made:
            return self._made[id(layer)](*args, **kwargs)
        copied = type(layer).from_config({**layer.get_config(), **changes})
        self._made[id(layer)] = copied
        outputs = copied(*args, **kwargs)
        if getattr(layer, "weights", None):
            copied.set_weights(self._weights_of(layer))
        return outputs

    def _weights_of(self, layer: Any) -> list[Any]:
        values = layer.get_weights()
        if self._weights is None:
            return values
        for attribute, axes in kernels_of(layer):
            variable = getattr(layer, attribute)
            position = next(i for i, weight in enumerate(layer.weights) if weight is variable)
            values[position] = self._weights(values[position], axes)
        return values

    def _weighted(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if split_activation(layer) is None:
            return self._copy(layer, args, kwargs)
        name = f"{layer.name}_pre_activation"
        linear = self._copy(layer, args, kwargs, activation="linear", name=name)
        linear = self._insert(f"{layer.name}/pre_activation", linear)
        function = keras.layers.Activation(layer.activation, name=layer.name)
        return apply_activation(layer, linear, self._insert, function)

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
        middle = depthwise(inputs)
        depthwise.set_weights([values[id(layer.depthwise_kernel)]])
        outputs = pointwise(self._insert(f"{layer.name}/depthwise", middle))
        bias = [values[id(layer.bias)]] if layer.use_bias else []
        pointwise.set_weights([values[id(layer.pointwise_kernel)], *bias])
        if _activation_name(layer) == "linear":
            return outputs
        if split_activation(layer) is not None:
            outputs = self._insert(f"{layer.name}/pre_activation", outputs)
        function = keras.layers.Activation(layer.activation, name=layer.name)
        return apply_activation(layer, outputs, self._insert, function)


def tap_model(model: Any) -> Any:
    """Returns a copy of the model whose outputs are all its taps.

    Args:
        model: A built Sequential or Functional model; not changed.

    Returns:
        A keras.Model of independent layers with the weights of now. Its output is a dict: tap
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
