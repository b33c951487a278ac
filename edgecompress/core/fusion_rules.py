"""Which operators of an int8 file a layer becomes: one rule per kind of operator.

Rules and operator lists follow the LiteRT converter of TensorFlow and the `static_wi8_ai8` recipe
of litert-quantizer. A layer class names its rule in the table of `core.layer_kinds`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from edgecompress.core.composite_layers import ACTIVATIONS
from edgecompress.core.composites import (
    COMPOSITES,
    Composite,
    Constant,
    Declined,
    is_computed,
    is_number,
    told,
)
from edgecompress.core.keras_graph import masks_of
from edgecompress.core.layer_kinds import WEIGHTED, exact_kind_of, int8_kernels
from edgecompress.core.lstm_layers import lstm_parts
from edgecompress.core.registry import Registry

# What a step does to scales. Rounding kinds get a tap, the others keep their input's scale.
# WEIGHTED: convolution or matrix product: own range, absorbs BN and ReLU
AFFINE = "affine"  # BatchNormalization, Rescaling: folded where possible
RELU, RELU6 = "relu", "relu6"  # fused where possible
BINARY = "binary"  # add, subtract, multiply: own range, absorbs ReLU
FREE = "free"  # own range, absorbs nothing: hard swish, leaky ReLU, ...
FIXED = "fixed"  # range set by the operator: softmax, sigmoid, tanh
JOIN = "join"  # own range, which its inputs take over: concatenate, maximum
AVERAGE = "average"  # rounds, with its input's range: average pooling, bilinear resizing
# MEAN over a map: AVERAGE where the map is hardly below zero; else own range, absorbs nothing
MEAN = "mean"
MAXPOOL = "maxpool"  # keeps values and range, absorbs ReLU
VIEW = "view"  # keeps values and range; ReLU and BN are moved in front of it
MOVE = "move"  # keeps values and range: padding, cropping, global maximum
IDENTITY = "identity"  # does nothing in inference: dropout
RECURRENT = "recurrent"  # own range, of the states of all time steps; absorbs nothing
CURVE = "curve"  # a function of one number, which only a table computes (`core.value_tables`)
TABLE, INSIDE = "table", "inside a table"  # what becomes of a chain of them: own range, no tap
UNSUPPORTED = "unsupported"  # not simulated
OWN_RANGE = (WEIGHTED, AFFINE, RELU, RELU6, BINARY, FREE, MEAN, TABLE)
KEEPS_RANGE = (MAXPOOL, VIEW, MOVE, IDENTITY)


@dataclass(frozen=True)
class Step:
    """One operator a layer becomes.

    Attributes:
        kind: What it does to scales.
        suffix: Of its tap; "" for the layer's output.
        fixed: The range that the operator prescribes.
        reason: Why it is not simulated.
        reads: The values it reads, counted from the last one; None for all inputs of the layer in
            its first step, else the last value.
        above: Whether its values are hardly below zero, whatever its inputs are.
        kernel: Name of the inner kernel that it reads; "" if it reads none.
        lowered: How much further down than its values its range in the file reaches.
        table: Attribute of the layer whose values are looked up; "" if none are.
        elementwise: As in `core.value_tables.Function`, if its inputs have the shape of its output.
        tabled: As in `core.value_tables.Function`.
    """

    kind: str
    suffix: str = ""
    fixed: tuple[float, float] | None = None
    reason: str = ""
    reads: tuple[int, ...] | None = None
    above: bool = False
    kernel: str = ""
    lowered: float = 0.0
    table: str = ""
    elementwise: bool = False
    tabled: bool = False


_Lowering = Callable[[Any], tuple[Step, ...]]
# Operator -> rule: layer -> steps.
LOWERINGS: Registry[_Lowering] = Registry("operator of a layer class")

# Ranges that LiteRT's kernels prescribe: scale 1/256, zero point -128; tanh 1/128 and 0.
_UNIT = (0.0, 255 / 256)
_ACTIVATIONS: dict[str, tuple[Step, ...]] = {
    "linear": (),
    "relu": (Step(RELU, above=True),),
    "relu6": (Step(RELU6, above=True),),
    "softmax": (Step(FIXED, fixed=_UNIT, above=True),),
    "sigmoid": (Step(FIXED, fixed=_UNIT, above=True),),
    "tanh": (Step(FIXED, fixed=(-1.0, 127 / 128)),),
    "hard_silu": (Step(FREE, above=True),),
    "gelu": (Step(FREE, above=True),),
    # Tables of all codes in the file.
    "selu": (Step(FREE),),
    "softplus": (Step(FREE, above=True),),
    "mish": (Step(FREE),),
    "exponential": (Step(FREE, above=True),),
    "leaky_relu": (Step(FREE),),
    "elu": (Step(FREE),),
}
# What a part becomes by its function; others have a range of their own.
_PARTS: dict[str, Step] = {
    "add": Step(BINARY),
    "subtract": Step(BINARY),
    "multiply": Step(BINARY),
    "softmax": _ACTIVATIONS["softmax"][0],
    "sigmoid": _ACTIVATIONS["sigmoid"][0],
    "relu": _ACTIVATIONS["relu"][0],
    "relu6": _ACTIVATIONS["relu6"][0],
    "minimum": Step(JOIN),
    "maximum": Step(JOIN),
    "inverse_root": Step(FREE, above=True),
    "squared_difference": Step(FREE, above=True),
    "bilinear": Step(AVERAGE),
}
# Parts that may be inside a chain of functions of one number.
_ARITHMETIC = ("add", "subtract", "multiply", "divide", "minimum", "maximum")
# A masked score only has to be so low that its share rounds to zero: exp(-10) of the largest share
# is a hundredth of a step of the softmax's output, 1 / 256.
BELOW_SCORES = 10.0
_PARTS["masked_sum"] = Step(FREE, lowered=BELOW_SCORES)


def _always(*steps: Step) -> _Lowering:
    """Returns a rule for layers that become the same operators whatever their settings."""
    return lambda layer: steps


for _operator in (
    AFFINE, BINARY, FREE, JOIN, AVERAGE, MEAN, MAXPOOL, VIEW, MOVE, IDENTITY,
):  # fmt: skip
    LOWERINGS.register(_operator)(_always(Step(_operator)))
LOWERINGS.register("lookup")(_always(Step(FREE, table="embeddings")))
LOWERINGS.register("mean over axes")(_always(Step(FREE)))
for _operator in ("relu", "relu6", "hard_silu", "softmax", "sigmoid", "tanh"):
    LOWERINGS.register(_operator)(_always(*_ACTIVATIONS[_operator]))


def _unsupported(reason: str) -> tuple[Step, ...]:
    return (Step(UNSUPPORTED, reason=reason),)


def activation_name(layer: Any) -> str:
    """Returns the registered name of a layer's activation, or its own name for a custom one."""
    import keras

    function = layer.activation
    for name in (*_ACTIVATIONS, *ACTIVATIONS):
        if function is keras.activations.get(name):
            return name
    return str(getattr(function, "__name__", function))


def _activation_steps(name: str) -> tuple[Step, ...]:
    if name in ACTIVATIONS:
        recorder = _Recorder([])
        recorder.count = 1
        ACTIVATIONS[name](recorder, _Value(0))
        return (*recorder.steps[:-1], replace(recorder.steps[-1], above=True))
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    return _unsupported(f"int8 has no operator for its activation {name}")


@LOWERINGS.register("activation")
def _lower_activation(layer: Any) -> tuple[Step, ...]:
    return _activation_steps(activation_name(layer)) or (Step(IDENTITY),)


@LOWERINGS.register("rectifier")
def _lower_relu(layer: Any) -> tuple[Step, ...]:
    if layer.negative_slope or layer.threshold:
        return _unsupported("int8 supports only ReLU with a maximum, or leaky ReLU")
    return _ACTIVATIONS["relu" if layer.max_value is None else "relu6"]


@LOWERINGS.register("upsampling")
def _lower_upsampling(layer: Any) -> tuple[Step, ...]:
    if layer.interpolation not in ("nearest", "bilinear"):
        return _unsupported(f"int8 has no operator for {layer.interpolation} upsampling")
    return (Step(AVERAGE if layer.interpolation == "bilinear" else MOVE),)


@LOWERINGS.register("rescaling")
def _lower_rescaling(layer: Any) -> tuple[Step, ...]:
    if not all(isinstance(value, (int, float)) for value in (layer.scale, layer.offset)):
        return _unsupported("its scale is not one number")
    return (Step(AFFINE),)


@dataclass(frozen=True)
class _Value:
    """What a part reads or writes while operators are recorded: its number."""

    number: int


class _Recorder:
    """Lists the operators of a layer; its values are numbers, those of the inputs come first."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.numbers = {id(tensor): number for number, tensor in enumerate(inputs)}
        self.count = len(inputs)
        self.steps: list[Step] = []

    def _number(self, value: Any) -> int:
        return value.number if isinstance(value, _Value) else self.numbers[id(value)]

    def _add(self, step: Step, values: Sequence[Any]) -> _Value:
        known = self.count + len(self.steps)
        numbers = [self._number(v) for v in values if isinstance(v, _Value) or is_computed(v)]
        self.steps.append(replace(step, reads=tuple(n - known for n in numbers)))
        return _Value(known)

    def operate(self, suffix: str, function: str, *values: Any, **arguments: Any) -> Any:
        step = replace(_PARTS.get(function, Step(FREE)), suffix=suffix)
        numbers = all(is_number(v.values) for v in values if isinstance(v, Constant))
        return self._add(replace(step, elementwise=function in _ARITHMETIC and numbers), values)

    def looked_up(self, layer: Any, *values: Any, forces: bool = True) -> Any:
        if not all(isinstance(v, _Value) or is_computed(v) or is_number(v) for v in values):
            raise Declined("it reads a constant of several numbers")
        return self._add(Step(CURVE, elementwise=True, tabled=forces), values)

    def move(self, function: str, *values: Any, **arguments: Any) -> Any:
        return self._add(Step(MOVE), values)

    def weighted(self, suffix: str, kernel: str, layer: Any, values: Any) -> Any:
        return self._add(Step(WEIGHTED, suffix, kernel=kernel), [values])

    def activate(self, layer: Any, values: Any) -> Any:
        name = activation_name(layer)
        if name in ACTIVATIONS:
            return ACTIVATIONS[name](self, values)
        for step in _activation_steps(name):
            if step.kind == UNSUPPORTED:
                raise Declined(step.reason)
            values = self._add(step, [values])
        return values

    def masked(self, scores: Any, mask: Any) -> Any:
        writer = self._number(scores) - self.count
        if writer < 0:
            raise Declined("its scores are an input")
        self.steps[writer] = replace(self.steps[writer], lowered=BELOW_SCORES)
        return self._add(Step(MOVE), [scores])

    def statistics(self, layer: Any, values: Any) -> tuple[Any, Any]:
        return layer.moving_mean, layer.moving_variance

    def inner(self, layer: Any, values: Any) -> Any:
        return self._add(Step(IDENTITY), [values])


def recorded(run: Composite, layer: Any, args: Any, kwargs: Any) -> tuple[Step, ...]:
    """Returns the operators of a layer that is several of them.

    Args:
        run: What computes it.
        layer: The layer or operation.
        args: Positional arguments of its call in the graph.
        kwargs: The others.
    """
    import keras

    # The same tensor may be given twice, and each has a position of its own.
    given: list[Any] = []

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        given.append(keras.KerasTensor(leaf.shape, leaf.dtype))
        return given[-1]

    args, kwargs = keras.tree.map_structure(fresh, (tuple(args), told(kwargs)))
    recorder = _Recorder(given)
    try:
        inspect.signature(run).bind(layer, recorder, *args, **kwargs)
        output = run(layer, recorder, *args, **kwargs)
    except TypeError:
        return _unsupported("it is called with other arguments than int8 simulation knows")
    except Declined as reason:
        return _unsupported(str(reason))
    if not recorder.steps or output.number != recorder.count + len(recorder.steps) - 1:
        return (*recorder.steps, Step(IDENTITY))
    return tuple(recorder.steps)


@LOWERINGS.register(WEIGHTED)
def _lower_weighted(layer: Any) -> tuple[Step, ...]:
    if getattr(layer, "data_format", None) == "channels_first":
        return _unsupported("its data format is channels_first")
    activation = _activation_steps(activation_name(layer))
    separable = len(int8_kernels(layer)) == 2
    first = (Step(WEIGHTED, "depthwise"),) if separable else ()
    return (*first, Step(WEIGHTED, "pre_activation" if activation else ""), *activation)


# Of recurrent layers whose time steps become operators.
UNROLLED = "only the file rounds the weights and states of its time steps"


def _over_map(axes: Any, rank: int) -> bool:
    """Returns whether a mean is over height and width, or time: the file has a pooling for it."""
    listed = [axes] if isinstance(axes, int) else list(axes or ())
    return rank > 0 and (rank, sorted(axis % rank for axis in listed)) in ((4, [1, 2]), (3, [1]))


def lower(
    layer: Any,
    inputs: int,
    plain: bool,
    rank: int = 0,
    sequences: bool = False,
    args: Any = (),
    kwargs: Any = MappingProxyType({}),
) -> tuple[Step, ...]:
    """Returns the operators that a layer or operation becomes.

    Args:
        layer: The layer or operation.
        inputs: How many tensors it reads.
        plain: Whether it is called with tensors only.
        rank: Number of dimensions of the first tensor; 0 if unknown.
        sequences: Whether that holds a fixed number of time steps and has no mask.
        args: Positional arguments of its call. Defaults to none: not known.
        kwargs: The others.
    """
    kind = exact_kind_of(layer)
    if kind is not None and kind.family in ("recurrent", "bidirectional"):
        if plain and inputs == 1 and sequences and lstm_parts(layer):
            return (Step(RECURRENT),)
        return _unsupported(UNROLLED)
    if kind is None or not kind.operator:
        return _unsupported("int8 quantization does not support this class")
    if masks_of(layer, (args, kwargs)):
        return _unsupported("it reads the mask of its input")
    if (run := composite(layer, args, kwargs)) is not None:
        return recorded(run, layer, args, kwargs)
    if not plain or kind.operator not in LOWERINGS:
        return _unsupported("it is called with additional arguments or constants")
    if type(layer).__name__ == "SeparableConv1D" and layer.padding == "causal":
        return _unsupported("causal padding inside a separable convolution")
    steps = LOWERINGS[kind.operator](layer)
    if kind.operator == "mean over axes" and _over_map(layer.axis, rank):
        steps = (Step(MEAN),)
    if kind.operator == BINARY and inputs != 2:
        return _unsupported(f"it combines {inputs} tensors; chain layers that combine two")
    return steps


# Operations of keras.ops that combine two tensors, or one and a constant.
_PAIRS = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply"}


def composite(layer: Any, args: Any, kwargs: Any) -> Composite | None:
    """Returns what computes a call of a layer operator by operator; None for a single operator.

    Args:
        layer: The layer or operation.
        args: Positional arguments of the call.
        kwargs: The others.
    """
    kind = exact_kind_of(layer)
    if kind is None:
        return None
    if kind.operator == BINARY:
        several = isinstance(args[0], (list, tuple)) if args else False
        if several:
            return COMPOSITES["sum of all"] if len(args[0]) > 2 else None
        return COMPOSITES[_PAIRS[type(layer).__name__]] if len(args) == 2 else None
    if kind.operator == JOIN and len(args) == 2 and not all(map(is_computed, args)):
        return COMPOSITES["limit"]
    if kind.operator in (AFFINE, "rescaling"):
        return None  # Folded, unless the graph does not allow it.
    if kind.operator == "rectifier" and layer.negative_slope:
        several = layer.max_value is not None or layer.threshold
        return None if several else COMPOSITES["leaky_relu"]
    if kind.operator == "rectifier" and not layer.threshold:
        limited = layer.max_value not in (None, 6)
        return COMPOSITES["rectifier with maximum"] if limited else None
    return COMPOSITES.get(kind.operator)


def composite_of_use(layer: Any, args: Any, kwargs: Any) -> Composite:
    """Returns what computes a call that `core.fusion.FusedGraph.composites` names."""
    kind = exact_kind_of(layer)
    folds = kind is not None and kind.operator in (AFFINE, "rescaling")
    found = COMPOSITES[AFFINE] if folds else composite(layer, args, kwargs)
    if found is None:
        raise TypeError(f"{layer.name!r} is a single operator.")
    return found


def weighted_operator(layer: Any, use: str = "") -> str:
    """Returns the name of the operator that holds a layer's last kernel.

    Args:
        layer: The layer.
        use: Name of a use of it. Defaults to its first.
    """
    name = use or layer.name
    return f"{name}/pre_activation" if activation_name(layer) != "linear" else name


def only_moves(layer: Any) -> bool:
    """Returns whether a layer leaves values as they are, in however many outputs."""
    kind = exact_kind_of(layer)
    return kind is not None and kind.operator == MOVE


def split_activation(layer: Any) -> str | None:
    """Returns the name of a weighted layer's activation if it is a separate operator.

    None for linear, ReLU and ReLU6, which fuse, and for layers without weights.
    """
    if not int8_kernels(layer):
        return None
    name = activation_name(layer)
    return None if name in ("linear", "relu", "relu6") else name
