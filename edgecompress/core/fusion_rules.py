"""Which operators of an int8 file a layer becomes: one rule per kind of operator.

Rules and operator lists follow the LiteRT converter of TensorFlow and the `static_wi8_ai8` recipe
of litert-quantizer. A layer class names its rule in the table of `core.layer_kinds`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgecompress.core.composites import COMPOSITES, Composite
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
UNSUPPORTED = "unsupported"  # not simulated
OWN_RANGE = (WEIGHTED, AFFINE, RELU, RELU6, BINARY, FREE, MEAN)
KEEPS_RANGE = (MAXPOOL, VIEW, MOVE, IDENTITY)


@dataclass(frozen=True)
class Step:
    """One operator a layer becomes; reads the values at `reads`, counted from the last one.

    `above` says that its values are hardly below zero, whatever its inputs are.
    """

    kind: str
    suffix: str = ""
    fixed: tuple[float, float] | None = None
    reason: str = ""
    reads: tuple[int, ...] = (-1,)
    above: bool = False


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
    "silu": (Step(FIXED, "sigmoid", _UNIT), Step(BINARY, reads=(-2, -1), above=True)),
}


def _always(*steps: Step) -> _Lowering:
    """Returns a rule for layers that become the same operators whatever their settings."""
    return lambda layer: steps


for _operator in (
    AFFINE, BINARY, FREE, JOIN, AVERAGE, MEAN, MAXPOOL, VIEW, MOVE, IDENTITY,
):  # fmt: skip
    LOWERINGS.register(_operator)(_always(Step(_operator)))
LOWERINGS.register("mean over axes")(_always(Step(FREE)))
for _operator in ("relu", "relu6", "hard_silu", "softmax", "sigmoid", "tanh"):
    LOWERINGS.register(_operator)(_always(*_ACTIVATIONS[_operator]))


def _unsupported(reason: str) -> tuple[Step, ...]:
    return (Step(UNSUPPORTED, reason=reason),)


def activation_name(layer: Any) -> str:
    """Returns the registered name of a layer's activation, or its own name for a custom one."""
    import keras

    function = layer.activation
    for name in _ACTIVATIONS:
        if function is keras.activations.get(name):
            return name
    return str(getattr(function, "__name__", function))


def _activation_steps(name: str) -> tuple[Step, ...]:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    return _unsupported(f"int8 has no operator for its activation {name}")


@LOWERINGS.register("activation")
def _lower_activation(layer: Any) -> tuple[Step, ...]:
    return _activation_steps(activation_name(layer)) or (Step(IDENTITY),)


@LOWERINGS.register("rectifier")
def _lower_relu(layer: Any) -> tuple[Step, ...]:
    if layer.negative_slope and layer.max_value is None and not layer.threshold:
        return (Step(FREE),)
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        return _unsupported("int8 supports only ReLU, ReLU6 and leaky ReLU")
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


@LOWERINGS.register("layer_normalization")
def _lower_layer_normalization(layer: Any) -> tuple[Step, ...]:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    spec = getattr(layer, "input_spec", None)
    last = axes == [-1] or (spec is not None and axes == [getattr(spec, "ndim", 0) - 1])
    if not (layer.center and layer.scale and last) or getattr(layer, "rms_scaling", False):
        return _unsupported("int8 simulation knows it over the last axis, with gamma and beta")
    # As `core.composites.layer_normalization` computes it.
    return (
        Step(FREE, "mean"),
        Step(FREE, "squared_difference", reads=(-2, -1)),
        Step(FREE, "variance"),
        Step(FREE, "epsilon"),
        Step(FREE, "inverse_root"),
        Step(FREE, "factor"),
        Step(FREE, "mean_product", reads=(-6, -1)),
        Step(FREE, "offset"),
        Step(FREE, "product", reads=(-9, -3)),
        Step(BINARY, reads=(-1, -2)),
    )


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
    layer: Any, inputs: int, plain: bool, rank: int = 0, sequences: bool = False
) -> tuple[Step, ...]:
    """Returns the operators that a layer or operation becomes.

    Args:
        layer: The layer or operation.
        inputs: How many tensors it reads.
        plain: Whether it is called with tensors only.
        rank: Number of dimensions of the first tensor; 0 if unknown.
        sequences: Whether that holds a fixed number of time steps and has no mask.
    """
    kind = exact_kind_of(layer)
    if kind is not None and kind.family in ("recurrent", "bidirectional"):
        if plain and inputs == 1 and sequences and lstm_parts(layer):
            return (Step(RECURRENT),)
        return _unsupported(UNROLLED)
    if kind is None or not kind.operator:
        return _unsupported("int8 quantization does not support this class")
    if not plain:
        return _unsupported("it is called with additional arguments or constants")
    if type(layer).__name__ == "SeparableConv1D" and layer.padding == "causal":
        return _unsupported("causal padding inside a separable convolution")
    steps = LOWERINGS[kind.operator](layer)
    if kind.operator == "mean over axes" and _over_map(layer.axis, rank):
        steps = (Step(MEAN),)
    if steps[0].kind == BINARY and inputs != 2:
        return _unsupported(f"it combines {inputs} tensors; chain layers that combine two")
    return steps


def composite(layer: Any) -> Composite | None:
    """Returns what computes a layer operator by operator; None for a layer of one operator."""
    kind = exact_kind_of(layer)
    if kind is None or kind.operator not in COMPOSITES:
        return None
    steps = LOWERINGS[kind.operator](layer)
    return None if steps[0].kind == UNSUPPORTED else COMPOSITES[kind.operator]


def weighted_operator(layer: Any) -> str:
    """Returns the name of the operator that holds a layer's last kernel."""
    return f"{layer.name}/pre_activation" if activation_name(layer) != "linear" else layer.name


def split_activation(layer: Any) -> str | None:
    """Returns the name of a weighted layer's activation if it is a separate operator.

    None for linear, ReLU and ReLU6, which fuse, and for layers without weights.
    """
    if not int8_kernels(layer):
        return None
    name = activation_name(layer)
    return None if name in ("linear", "relu", "relu6") else name
