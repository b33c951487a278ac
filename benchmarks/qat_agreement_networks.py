"""The networks of `qat_agreement.py`, for Keras 3 and tf_keras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BATCH = 64
FURTHER_RATE = 1e-4  # the learning rate that the epochs after the float training start with


@dataclass(frozen=True)
class Input:
    """What a network reads: an image, or a sequence as a map of height 1.

    Attributes:
        shape: Of a sample.
        square: Whether kernels and strides are square; else they extend along time only.
        classes: Number of classes.
    """

    shape: tuple[int, ...]
    square: bool
    classes: int

    def size(self, length: int) -> Any:
        """Returns a kernel size or stride."""
        return length if self.square else (length, 1)


def _map(kl: Any, x: Any, inputs: Input) -> Any:
    return x if inputs.square else kl.Reshape((inputs.shape[0], 1, inputs.shape[1]))(x)


def _steps(kl: Any, x: Any, inputs: Input) -> Any:
    """Returns a short sequence: rows of the image, or four windows of a second."""
    if inputs.square:
        return kl.Reshape(inputs.shape[:2])(x)
    return kl.Conv1D(16, 8, strides=4, activation="relu")(x)


def _unit(kl: Any, x: Any, layer: Any) -> Any:
    return kl.ReLU()(kl.BatchNormalization(momentum=0.9)(layer(x)))


def cnn(kl: Any, x: Any, inputs: Input) -> Any:
    """Plain convolutions with pooling."""
    x = _map(kl, x, inputs)
    x = kl.Conv2D(16, inputs.size(3), activation="relu")(x)
    x = kl.MaxPooling2D(inputs.size(2))(x)
    x = kl.Conv2D(24, inputs.size(3), activation="relu")(x)
    x = kl.MaxPooling2D(inputs.size(2))(x)
    return kl.Dense(inputs.classes)(kl.Dense(48, activation="relu")(kl.Flatten()(x)))


def separable(kl: Any, x: Any, inputs: Input) -> Any:
    """Depthwise-separable convolutions."""
    same = {"padding": "same", "use_bias": False}
    x = _map(kl, x, inputs)
    x = _unit(kl, x, kl.Conv2D(16, inputs.size(3), strides=inputs.size(2), **same))
    for filters, strides in ((24, 1), (32, 2), (32, 1)):
        # Depthwise kernels need equal strides; a sequence is thinned by pooling.
        square = strides if inputs.square else 1
        x = _unit(kl, x, kl.DepthwiseConv2D(inputs.size(3), strides=square, **same))
        if strides != square:
            x = kl.MaxPooling2D(inputs.size(strides))(x)
        x = _unit(kl, x, kl.Conv2D(filters, 1, use_bias=False))
    return kl.Dense(inputs.classes)(kl.GlobalAveragePooling2D()(x))


def residual(kl: Any, x: Any, inputs: Input) -> Any:
    """Residual blocks, average pooling and softmax."""
    same = {"padding": "same", "use_bias": False}
    x = _map(kl, x, inputs)
    x = _unit(kl, x, kl.Conv2D(16, inputs.size(3), strides=inputs.size(2), **same))
    for _ in range(2):
        y = _unit(kl, x, kl.Conv2D(16, inputs.size(3), **same))
        y = kl.BatchNormalization(momentum=0.9)(kl.Conv2D(16, inputs.size(3), **same)(y))
        x = kl.ReLU()(kl.Add()([x, y]))
    x = kl.GlobalAveragePooling2D()(kl.AveragePooling2D(inputs.size(2))(x))
    return kl.Dense(inputs.classes, activation="softmax")(x)


def gated(kl: Any, x: Any, inputs: Input) -> Any:
    """Squeeze-and-excitation and hard-swish."""
    x = _map(kl, x, inputs)
    same = {"padding": "same", "use_bias": False}

    def unit(x: Any, layer: Any) -> Any:
        return kl.Activation("hard_swish")(kl.BatchNormalization(momentum=0.9)(layer(x)))

    x = unit(x, kl.Conv2D(16, inputs.size(3), strides=inputs.size(2), **same))
    for filters in (24, 32):
        x = unit(x, kl.DepthwiseConv2D(inputs.size(3), **same))
        gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
        gate = kl.Conv2D(8, 1, activation="relu")(gate)
        gate = kl.Conv2D(int(x.shape[-1]), 1, activation="sigmoid")(gate)
        x = unit(kl.Multiply()([x, gate]), kl.Conv2D(filters, 1, use_bias=False))
    return kl.Dense(inputs.classes)(kl.GlobalAveragePooling2D()(x))


def normalized(kl: Any, x: Any, inputs: Input) -> Any:
    """A multilayer perceptron with LayerNormalization."""
    x = kl.Flatten()(x)
    for _ in range(2):
        x = kl.LayerNormalization()(kl.Dense(48, activation="relu")(x))
    return kl.Dense(inputs.classes)(x)


def recurrent(kl: Any, x: Any, inputs: Input) -> Any:
    """An LSTM, which is one operator in files of int8 and int4."""
    return kl.Dense(inputs.classes)(kl.LSTM(20, unroll=True)(_steps(kl, x, inputs)))


def attention(kl: Any, x: Any, inputs: Input) -> Any:
    """One block of multi-head attention."""
    x = kl.Dense(24)(_steps(kl, x, inputs))
    x = kl.Add()([x, kl.MultiHeadAttention(2, 12)(x, x)])
    return kl.Dense(inputs.classes)(kl.GlobalAveragePooling1D()(x))


Network = Callable[[Any, Any, Input], Any]
NETWORKS: dict[str, Network] = {
    "CNN": cnn,
    "depthwise-separable": separable,
    "residual": residual,
    "SE, hard-swish": gated,
    "LayerNorm": normalized,
    "LSTM": recurrent,
    "attention": attention,
}


def build(library: Any, network: Network, inputs: Input) -> Any:
    """Returns a model of `library`, keras or tf_keras."""
    x = library.Input(inputs.shape)
    return library.Model(x, network(library.layers, x, inputs))


def keeps_probabilities(model: Any) -> bool:
    """Returns whether a model ends in softmax."""
    return getattr(model.layers[-1].activation, "__name__", "") == "softmax"
