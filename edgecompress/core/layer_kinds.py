"""What is known about each layer class: its kernels, its channels, what it becomes in int8.

One table, class name -> `LayerKind`. Pruning, clustering, quantization, surgery, int8 simulation
and inspection all look it up here, so that a class is described once; how a family is cut, counted
or lowered is up to those modules. Nothing here imports Keras.

An external package adds its own class by registering a kind under the class's name:

    LAYER_KINDS.register("GatedDense")(
        LayerKind(
            "dense", Channels.MIXED, (KernelAxes("kernel", (-1,), -2),), module="my_package.layers"
        )
    )
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgecompress.core.keras_graph import APPLICATION_LAYERS
from edgecompress.core.registry import Registry


class Channels(enum.Enum):
    """What a layer does to the channels, the last axis, of its inputs."""

    MIXED = "mixed"  # each output channel is computed from all input channels
    KEPT = "kept"  # each output channel is computed from the same channel of each input
    MOVED = "moved"  # output channels are copies of input channels, at other positions
    UNKNOWN = "unknown"


class Use(enum.Enum):
    """Whether callbacks that change weights (pruning, clustering, quantization) work on a layer."""

    NEVER = "never"
    ON_REQUEST = "on request"  # only if it is named
    BY_DEFAULT = "by default"


@dataclass(frozen=True)
class KernelAxes:
    """A weight of a layer that is a filter, a matrix or a table, and what its axes count.

    Attributes:
        attribute: The layer's attribute that holds it.
        outputs: Axes that count output channels, negative; each index along them has its own int8
            scale. Empty if it depends on the layer's settings.
        inputs: The axis that counts input channels, negative; None if there is none.
        legacy: The attribute's name in tf-keras if it differs, else "".
    """

    attribute: str
    outputs: tuple[int, ...] = ()
    inputs: int | None = None
    legacy: str = ""

    def of(self, layer: Any) -> Any:
        """Returns the variable of a Keras 3 or tf-keras layer."""
        found = getattr(layer, self.legacy, None) if self.legacy else None
        return getattr(layer, self.attribute) if found is None else found


@dataclass(frozen=True)
class LayerKind:
    """One class of layers.

    Attributes:
        family: What it computes, e.g. `convolution`: the key of the rules of surgery
            (`surgery.rules.RULES`) and of the formulas of multiply-accumulates
            (`inspection.keras_models.MACS`). A family without a rule there keeps all channels, or
            is counted as zero.
        channels: What it does to channels, unless its settings say otherwise: an activation layer
            keeps channels separate, but not with softmax as its activation.
        kernels: Its filters and matrices, the one that callbacks work on last.
        vectors: Its other weights, one number for each channel.
        inner: Weights of layers inside it, as `layer.attribute`; only surgery changes them.
        operator: What it becomes in an int8 file: a key of `core.fusion_rules.LOWERINGS`; "" for
            classes that int8 simulation does not know.
        use: Whether callbacks change its kernel.
        sign_patterns: Whether its k x k filters may become fixed sign patterns.
        one_bit: Whether only the signs of its weights count.
        module: Where the class is imported from; kinds of `keras` hold for tf-keras, too.
    """

    family: str
    channels: Channels = Channels.UNKNOWN
    kernels: tuple[KernelAxes, ...] = ()
    vectors: tuple[str, ...] = ()
    operator: str = ""
    use: Use = Use.NEVER
    sign_patterns: bool = False
    one_bit: bool = False
    module: str = "keras.layers"
    inner: tuple[str, ...] = ()

    @property
    def kernel(self) -> KernelAxes | None:
        """The weight that callbacks work on; None for layers without one."""
        return self.kernels[-1] if self.kernels else None

    @property
    def filter_axis(self) -> int | None:
        """The axis of `kernel` that counts filters; None if there are no separate filters."""
        if self.channels is not Channels.MIXED or self.kernel is None:
            return None
        return self.kernel.outputs[0] if len(self.kernel.outputs) == 1 else None

    @property
    def int8_kernels(self) -> tuple[KernelAxes, ...]:
        """The kernels with per-channel scales in an int8 file."""
        return self.kernels if self.operator == WEIGHTED else ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Attributes of all its weights."""
        return (*(kernel.attribute for kernel in self.kernels), *self.vectors, *self.inner)


# The operators of layers with kernels; other names exist only in `core.fusion_rules`.
WEIGHTED = "weighted"

# Keyed by class name: works for Keras 3 and tf-keras layers without importing either.
LAYER_KINDS: Registry[LayerKind] = Registry("layer class")


def kind_of(layer: Any) -> LayerKind | None:
    """Returns the kind of a layer's class, or of its nearest base class with one.

    Args:
        layer: A layer of Keras 3 or tf-keras, or an operation of `keras.ops` in a model's graph.

    Example:
        >>> kind_of(keras.layers.Conv2D(8, 3)).kernel  # doctest: +SKIP
        KernelAxes(attribute='kernel', outputs=(-1,), inputs=-2, legacy='')
    """
    for base in type(layer).__mro__:
        found = _kind(base)
        if found is not None:
            return found
    return None


def exact_kind_of(layer: Any) -> LayerKind | None:
    """Returns the kind of a layer's class itself; None for subclasses, which may do anything."""
    return _kind(type(layer))


def int8_kernels(layer: Any) -> tuple[KernelAxes, ...]:
    """Returns the kernels that an int8 file holds by channel; none for unknown classes."""
    kind = exact_kind_of(layer)
    return () if kind is None else kind.int8_kernels


def _kind(owner: type) -> LayerKind | None:
    kind = LAYER_KINDS.get(owner.__name__)
    if kind is None:
        return None
    root, known = owner.__module__.split(".")[0], kind.module.split(".")[0]
    return kind if root == known or (root, known) == ("tf_keras", "keras") else None


def layer_classes(
    use: Use, suits: Callable[[LayerKind], bool] = lambda kind: True
) -> dict[type, str]:
    """Returns the classes whose kernels callbacks change: class -> attribute of the kernel.

    Args:
        use: `BY_DEFAULT`, or `ON_REQUEST` for classes whose layers have to be named.
        suits: Returns whether a technique can work on a kind. Defaults to all kinds.
    """
    return {
        getattr(importlib.import_module(kind.module), name): kind.kernel.attribute
        for name, kind in LAYER_KINDS.items()
        if kind.use is use and kind.kernel is not None and suits(kind)
    }


def _add(names: str, kind: LayerKind) -> None:
    for name in names.split():
        LAYER_KINDS.register(name)(kind)


def _parts(layer: str, attributes: str) -> tuple[str, ...]:
    return tuple(f"{layer}.{attribute}" for attribute in attributes.split())


_MIXED, _KEPT, _MOVED = Channels.MIXED, Channels.KEPT, Channels.MOVED
_BIAS = ("bias",)
_LAST = (KernelAxes("kernel", (-1,), -2),)
_BEFORE_LAST = (KernelAxes("kernel", (-2,), -1),)
# Kernels (..., inputs, multiplier): input channel i produces the outputs from i * multiplier on.
_DEPTHWISE = (KernelAxes("kernel", (-2, -1), -2, legacy="depthwise_kernel"),)
_SEPARABLE = (
    KernelAxes("depthwise_kernel", (-2, -1), -2),
    KernelAxes("pointwise_kernel", (-1,), -2),
)

# Pruned by default: what tensorflow-model-optimization prunes. Depthwise kernels hold few weights,
# each of which matters: only on request.
for _names, _kind_of_names in (
    ("Dense", LayerKind("dense", _MIXED, _LAST, _BIAS, WEIGHTED, Use.BY_DEFAULT)),
    (
        "EinsumDense",
        LayerKind("einsum", _MIXED, (KernelAxes("kernel"),), _BIAS, "einsum", Use.BY_DEFAULT),
    ),
    ("Conv1D", LayerKind("convolution", _MIXED, _LAST, _BIAS, WEIGHTED, Use.BY_DEFAULT)),
    (
        "Conv2D",
        LayerKind("convolution", _MIXED, _LAST, _BIAS, WEIGHTED, Use.BY_DEFAULT, True),
    ),
    ("Conv3D", LayerKind("convolution", _MIXED, _LAST, _BIAS, use=Use.BY_DEFAULT)),
    (
        "Conv1DTranspose Conv2DTranspose",
        LayerKind("transposed", _MIXED, _BEFORE_LAST, _BIAS, WEIGHTED, Use.BY_DEFAULT),
    ),
    (
        "Conv3DTranspose",
        LayerKind("transposed", _MIXED, _BEFORE_LAST, _BIAS, use=Use.BY_DEFAULT),
    ),
    (
        "SeparableConv1D SeparableConv2D",
        LayerKind("separable", _MIXED, _SEPARABLE, _BIAS, WEIGHTED, Use.BY_DEFAULT),
    ),
    (
        "DepthwiseConv1D",
        LayerKind("depthwise", _KEPT, _DEPTHWISE, _BIAS, WEIGHTED, Use.ON_REQUEST),
    ),
    (
        "DepthwiseConv2D",
        LayerKind("depthwise", _KEPT, _DEPTHWISE, _BIAS, WEIGHTED, Use.ON_REQUEST, True),
    ),
    (
        "Embedding",
        LayerKind(
            "lookup",
            kernels=(KernelAxes("embeddings", (-1,)),),
            operator="lookup",
            use=Use.BY_DEFAULT,
        ),  # fmt: skip
    ),
    (
        "BinaryConv2D BinaryDense",
        LayerKind(
            "binary", _MIXED, _LAST, _BIAS, one_bit=True, module="edgecompress.layers.binary"
        ),
    ),
    (
        "LSTM GRU SimpleRNN",
        LayerKind("recurrent", _MIXED, inner=_parts("cell", "kernel recurrent_kernel bias")),
    ),
    (
        "Bidirectional",
        LayerKind(
            "bidirectional",
            _MIXED,
            inner=tuple(
                name
                for part in ("forward_layer.cell", "backward_layer.cell")
                for name in _parts(part, "kernel recurrent_kernel bias")
            ),
        ),
    ),
    (
        "BatchNormalization",
        LayerKind(
            "normalization",
            _KEPT,
            vectors=("gamma", "beta", "moving_mean", "moving_variance"),
            operator="affine",
        ),
    ),
    (
        "LayerNormalization",
        LayerKind(
            "layer_normalization",
            _MIXED,
            vectors=("gamma", "beta"),
            operator="layer_normalization",
        ),
    ),
    (
        "GroupNormalization",
        LayerKind(
            "group_normalization",
            _MIXED,
            vectors=("gamma", "beta"),
            operator="group_normalization",
        ),
    ),
    (
        "UnitNormalization",
        LayerKind("unit_normalization", _MIXED, operator="unit_normalization"),
    ),
    (
        "RMSNormalization",
        LayerKind("rms_normalization", _MIXED, vectors=("scale",), operator="rms_normalization"),
    ),
    ("Normalization", LayerKind("statistics", operator="normalization")),
    ("PReLU", LayerKind("slope", _KEPT, vectors=("alpha",), operator="prelu")),
    ("Activation", LayerKind("activation", _KEPT, operator="activation")),
    ("ReLU", LayerKind("activation", _KEPT, operator="rectifier")),
    ("LeakyReLU", LayerKind("activation", _KEPT, operator="leaky_relu")),
    ("ELU", LayerKind("activation", _KEPT, operator="free")),
    ("Softmax", LayerKind("softmax", _MIXED, operator="softmax")),
    ("Rescaling", LayerKind("rescaling", _KEPT, operator="rescaling")),
    ("MaxPooling1D MaxPooling2D", LayerKind("pooling", _KEPT, operator="maxpool")),
    ("AveragePooling1D AveragePooling2D", LayerKind("pooling", _KEPT, operator="average")),
    (
        "GlobalAveragePooling1D GlobalAveragePooling2D",
        LayerKind("pooling", _KEPT, operator="mean"),
    ),
    (
        "GlobalMaxPooling1D GlobalMaxPooling2D Cropping1D Cropping2D",
        LayerKind("pooling", _KEPT, operator="move"),
    ),
    ("UpSampling2D", LayerKind("pooling", _KEPT, operator="upsampling")),
    ("UpSampling1D UpSampling3D", LayerKind("pooling", _KEPT, operator="move")),
    ("Resizing", LayerKind("pooling", _KEPT, operator="resizing")),
    ("RepeatVector", LayerKind("repeat", _KEPT, operator="move")),
    (
        "MaxPooling3D AveragePooling3D GlobalMaxPooling3D Cropping3D",
        LayerKind("pooling", _KEPT),
    ),
    ("GlobalAveragePooling3D", LayerKind("pooling", _KEPT, operator="free")),
    ("ZeroPadding1D ZeroPadding2D", LayerKind("padding", _KEPT, operator="move")),
    ("ZeroPadding3D", LayerKind("padding", _KEPT)),
    (
        "Dropout SpatialDropout1D SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout "
        "ActivityRegularization Identity",
        LayerKind("identity", _KEPT, operator="identity"),
    ),
    ("SpatialDropout3D", LayerKind("identity", _KEPT)),
    ("Add Subtract Multiply", LayerKind("merge", _KEPT, operator="binary")),
    ("Maximum Minimum", LayerKind("merge", _KEPT, operator="join")),
    ("Average", LayerKind("merge", _KEPT, operator="sum of all")),
    ("Concatenate", LayerKind("concatenate", _MOVED, operator="join")),
    ("Flatten", LayerKind("flatten", _MOVED, operator="view")),
    ("Reshape", LayerKind("reshape", _MOVED, operator="view")),
    ("Permute", LayerKind("permute", operator="view")),
    ("Dot", LayerKind("product", _MIXED, operator="dot")),
    ("Attention", LayerKind("product", _MIXED, operator="attention")),
    (
        "MultiHeadAttention",
        LayerKind(
            "product",
            _MIXED,
            operator="heads",
            inner=tuple(
                name
                for part in ("query_dense", "key_dense", "value_dense", "output_dense")
                for name in _parts(part, "kernel bias")
            ),
        ),
    ),
    # Layers that networks of `keras.applications` define for themselves.
    (
        "LayerScale",
        LayerKind("scale", _KEPT, vectors=("gamma",), module=APPLICATION_LAYERS["LayerScale"]),
    ),
    (
        "CustomScaleLayer",
        LayerKind("scaled sum", _KEPT, module=APPLICATION_LAYERS["CustomScaleLayer"]),
    ),
    ("GroupedQueryAttention", LayerKind("product", _MIXED, operator="grouped heads")),
    ("AdditiveAttention", LayerKind("product", _MIXED)),
    # Operations that `keras.ops` and activations leave in a graph.
    ("Matmul", LayerKind("product", _MIXED, operator="matmul", module="keras.ops")),
    ("Einsum", LayerKind("product", _MIXED, operator="einsum of tensors", module="keras.ops")),
    ("Tensordot", LayerKind("product", _MIXED, module="keras.ops")),
    ("TrueDivide Divide", LayerKind("quotient", operator="divide", module="keras.ops")),
    ("GetItem", LayerKind("slice", operator="slice", module="keras.ops")),
    ("Sum", LayerKind("mean", operator="sum over axes", module="keras.ops")),
    (
        "Abs Absolute Ceil Cos Exp Expm1 Floor Greater GreaterEqual HardTanh Less LessEqual Log "
        "Log10 Log1p LogSigmoid Sign Sin Softplus Softsign Sqrt Where",
        LayerKind("activation", _KEPT, operator="curve", module="keras.ops"),
    ),
    ("Negative", LayerKind("activation", _KEPT, operator="inside a curve", module="keras.ops")),
    ("Power", LayerKind("activation", _KEPT, operator="power", module="keras.ops")),
    ("Square", LayerKind("activation", _KEPT, operator="square", module="keras.ops")),
    ("Reciprocal", LayerKind("activation", _KEPT, operator="reciprocal", module="keras.ops")),
    ("Clip", LayerKind("activation", _KEPT, operator="clip", module="keras.ops")),
    ("Flip Repeat Roll Split Tile", LayerKind("move", operator="move", module="keras.ops")),
    ("Stack", LayerKind("move", operator="join", module="keras.ops")),
    ("Max Min", LayerKind("mean", operator="move", module="keras.ops")),
    ("Normalize", LayerKind("statistics", operator="unit_normalization", module="keras.ops")),
    ("Squeeze ExpandDims", LayerKind("axes", operator="view", module="keras.ops")),
    ("Gelu", LayerKind("activation", _KEPT, operator="free", module="keras.ops")),
    ("LeakyRelu", LayerKind("activation", _KEPT, operator="leaky_relu", module="keras.ops")),
    ("Silu", LayerKind("activation", _KEPT, operator="silu", module="keras.ops")),
    (
        "HardSigmoid",
        LayerKind("activation", _KEPT, operator="hard_sigmoid", module="keras.ops"),
    ),
    ("Mean", LayerKind("mean", operator="mean over axes", module="keras.ops")),
    ("Transpose", LayerKind("permute", operator="view", module="keras.ops")),
    ("HardSilu", LayerKind("activation", _KEPT, operator="hard_silu", module="keras.ops")),
    ("Relu", LayerKind("activation", _KEPT, operator="relu", module="keras.ops")),
    ("Relu6", LayerKind("activation", _KEPT, operator="relu6", module="keras.ops")),
    ("Sigmoid", LayerKind("activation", _KEPT, operator="sigmoid", module="keras.ops")),
    ("Tanh", LayerKind("activation", _KEPT, operator="tanh", module="keras.ops")),
):
    _add(_names, _kind_of_names)
