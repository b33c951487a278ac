"""SEP-Net: pattern residual blocks and modules, functions that add plain Keras layers to a model.

Li, Wang, Lv and Yang, SEP-Nets: Small and Effective Pattern Networks, 2017
(https://arxiv.org/abs/1706.03912). `PatternBinarization` then fixes the k x k filters to one bit.

These are not Keras layers: called on a tensor of the functional API, they add Conv2D,
BatchNormalization, Add and ReLU layers with readable names. The resulting model contains no custom
objects, so it is saved, trained under int8 arithmetic, pruned, finalized and converted like any
other.

BatchNormalization follows every convolution, before the sum rather than after it: there it folds
into the convolution of an int8 file, and absorbs the scale of a pattern. The paper's networks group
the convolutions of the pattern residual blocks; `Conv2D(groups=...)` becomes one CONV_2D operator
with a filter of fewer input channels, which LiteRT, TensorFlow Lite Micro and tflite-runtime all
run in int8, so no splitting is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers as kl

from edgecompress.core.errors import ArgumentError


@dataclass(frozen=True)
class PatternResidualBlock:
    """Adds a k x k and a 1x1 convolution of the same input (section 3 of the paper).

    `y = relu(norm(k x k (x)) + norm(1 x 1 (x)))`: the k x k filters detect spatial patterns and can
    be binary, the 1x1 filters transform channels and compensate for it. Layers, in a block named
    `prb`: `prb_pattern`, `prb_pattern_norm`, `prb_pointwise`, `prb_pointwise_norm`, `prb_add`,
    `prb_relu`.

    Args:
        filters: Output channels, a multiple of `groups`.
        kernel_size: k, 2 or more. Defaults to 3.
        strides: Of both convolutions. Defaults to 1.
        groups: Groups of both convolutions. Defaults to 1.
        name: Prefix of the layers' names. Defaults to `"prb"`.

    Raises:
        ArgumentError: an argument breaks its rule; when called, also if the input is not a (batch,
            height, width, channels) tensor of the functional API, or its channels are not a
            multiple of `groups`.

    Example:
        >>> x = keras.Input((8, 8, 16))
        >>> PatternResidualBlock(32, groups=4, name="b1")(x).shape
        (None, 8, 8, 32)
    """

    filters: int
    kernel_size: int = 3
    strides: int = 1
    groups: int = 1
    name: str = "prb"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        _whole("filters", self.filters)
        _whole("kernel_size", self.kernel_size, 2)
        _whole("strides", self.strides)
        _whole("groups", self.groups)
        _name(self.name)
        _multiple("filters", self.filters, self.groups)

    def __call__(self, inputs: Any) -> Any:
        """Returns the block's output.

        Args:
            inputs: (batch, height, width, channels).

        Returns:
            (batch, ceil(height / strides), ceil(width / strides), filters).
        """
        channels = _channels(inputs)
        if channels % self.groups:
            raise ArgumentError(
                "inputs", f"have a multiple of groups={self.groups} channels", channels
            )
        branches = [
            _convolution(inputs, self.filters, size, self.strides, self.groups, f"{self.name}_{n}")
            for n, size in (("pattern", self.kernel_size), ("pointwise", 1))
        ]
        return kl.ReLU(name=f"{self.name}_relu")(kl.Add(name=f"{self.name}_add")(branches))


@dataclass(frozen=True)
class SEPNetModule:
    """Reduces the channels, detects patterns in two blocks, restores the channels, adds the input.

    `y = relu(x + norm(1 x 1 (prb2(prb1(relu(norm(1 x 1 (x))))))))`: a 1x1 convolution reduces the
    dimension, two consecutive pattern residual blocks use grouped convolutions and different output
    channels, a 1x1 convolution recovers the dimension, and the skip connection adds the input
    (section 3 of the paper, and its table: half and a quarter of the channels, 4 groups). Layers,
    in a module named `sep`: `sep_reduce`, `sep_reduce_norm`, `sep_reduce_relu`, the blocks
    `sep_prb1` and `sep_prb2`, `sep_recover`, `sep_recover_norm`, `sep_add`, `sep_relu`.

    Args:
        filters: Channels of input and output; 2 or more.
        groups: Groups of the blocks' convolutions. Defaults to 4.
        widths: Output channels of the two blocks, multiples of `groups`. Defaults to None: a half
            and a quarter of `filters`.
        kernel_size: k of the blocks, 2 or more. Defaults to 3.
        name: Prefix of the layers' names. Defaults to `"sep"`.

    Raises:
        ArgumentError: an argument breaks its rule; when called, also if the input is not a (batch,
            height, width, filters) tensor of the functional API.

    Example:
        >>> x = keras.Input((8, 8, 64))
        >>> SEPNetModule(filters=64, groups=4, name="m1")(x).shape
        (None, 8, 8, 64)
    """

    filters: int
    groups: int = 4
    widths: tuple[int, int] | None = None
    kernel_size: int = 3
    name: str = "sep"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        _whole("filters", self.filters, 2)
        _whole("groups", self.groups)
        _whole("kernel_size", self.kernel_size, 2)
        _name(self.name)
        if self.widths is None:
            if self.filters % (4 * self.groups):
                raise ArgumentError(
                    "filters",
                    f"be a multiple of 4 * groups = {4 * self.groups}, as the blocks have a half "
                    "and a quarter of them",
                    self.filters,
                    "Change it or groups, or give widths.",
                )
            return
        if not isinstance(self.widths, tuple) or len(self.widths) != 2:
            raise ArgumentError("widths", "be a pair of channel counts", self.widths)
        for width in self.widths:
            _whole("widths", width)
            _multiple("widths", width, self.groups)

    def __call__(self, inputs: Any) -> Any:
        """Returns the module's output.

        Args:
            inputs: (batch, height, width, filters).

        Returns:
            The same shape.
        """
        channels = _channels(inputs)
        if channels != self.filters:
            raise ArgumentError(
                "inputs",
                f"have filters={self.filters} channels, as the skip connection adds them",
                channels,
            )
        first, second = self.widths or (self.filters // 2, self.filters // 4)
        x = _convolution(inputs, first, 1, 1, 1, f"{self.name}_reduce")
        x = kl.ReLU(name=f"{self.name}_reduce_relu")(x)
        for number, width in enumerate((first, second), 1):
            block = PatternResidualBlock(
                width, self.kernel_size, groups=self.groups, name=f"{self.name}_prb{number}"
            )
            x = block(x)
        x = _convolution(x, self.filters, 1, 1, 1, f"{self.name}_recover")
        return kl.ReLU(name=f"{self.name}_relu")(kl.Add(name=f"{self.name}_add")([inputs, x]))


def sepnet(
    input_shape: Sequence[int],
    classes: int,
    filters: Sequence[int] = (64, 128, 256),
    modules: Sequence[int] = (1, 1, 2),
    groups: int = 4,
    stem_kernel_size: int = 5,
    stem_strides: int = 2,
    classifier_activation: str | None = "softmax",
    name: str = "sepnet",
) -> keras.Model:
    """Returns a SEP-Net: stages of a strided convolution and SEP-Net modules, then a classifier.

    Stage i begins with a convolution to `filters[i]` channels, named `conv1`, `conv2`, ...: the
    first with `stem_kernel_size` and `stem_strides`, the others 3x3 with strides 2 and, from the
    third on, in groups, as in the paper's table. BatchNormalization, ReLU and `modules[i]` modules
    follow, named `module1`, `module2`, ... throughout. Global average pooling and a Dense layer end
    the network. The paper's own networks for ImageNet have 1.3 and 1.7 million parameters.

    Args:
        input_shape: (height, width, channels).
        classes: Outputs of the classifier.
        filters: Channels of each stage, multiples of 4 * groups. Defaults to (64, 128, 256).
        modules: Number of modules of each stage, 0 or more. Defaults to (1, 1, 2).
        groups: Groups of the modules' blocks. Defaults to 4.
        stem_kernel_size: Kernel of the first convolution. Defaults to 5.
        stem_strides: Strides of the first convolution; 1 suits images of about 32 x 32. Defaults
            to 2.
        classifier_activation: Of the last layer; None for logits. Defaults to `"softmax"`.
        name: The model's name. Defaults to `"sepnet"`.

    Returns:
        A Functional model of plain Keras layers, not compiled.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> model = sepnet((28, 28, 1), 10, filters=(16, 32), modules=(1, 1), stem_strides=1)
        >>> model.output_shape, model.count_params()
        ((None, 10), 8266)
    """
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise ArgumentError("input_shape", "be (height, width, channels)", shape)
    for size in shape:
        _whole("input_shape", size)
    if not filters or len(filters) != len(modules):
        raise ArgumentError(
            "modules",
            f"hold one number for each stage of filters={tuple(filters)}",
            tuple(modules),
        )
    for argument, value in (("classes", classes), ("stem_kernel_size", stem_kernel_size)):
        _whole(argument, value)
    _whole("stem_strides", stem_strides)
    for number in modules:
        _whole("modules", number, 0)
    x = inputs = keras.Input(shape, name="image")
    made = 0
    for stage, (width, number) in enumerate(zip(filters, modules, strict=True), 1):
        _whole("filters", width)
        kernel, strides = (3, 2) if stage > 1 else (stem_kernel_size, stem_strides)
        x = _convolution(x, width, kernel, strides, groups if stage > 2 else 1, f"conv{stage}")
        x = kl.ReLU(name=f"conv{stage}_relu")(x)
        for _ in range(number):
            made += 1
            x = SEPNetModule(width, groups, name=f"module{made}")(x)
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    outputs = kl.Dense(classes, activation=classifier_activation, name="classifier")(x)
    return keras.Model(inputs, outputs, name=name)


def _convolution(
    inputs: Any, filters: int, kernel_size: int, strides: int, groups: int, name: str
) -> Any:
    """Returns a convolution with its BatchNormalization, which makes a bias superfluous."""
    convolution = kl.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        data_format="channels_last",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )
    return kl.BatchNormalization(name=f"{name}_norm")(convolution(inputs))


def _whole(argument: str, value: Any, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(argument, f"be a whole number, {least} or more", value)


def _multiple(argument: str, value: int, groups: int) -> None:
    if value % groups:
        raise ArgumentError(argument, f"be a multiple of groups={groups}", value)


def _name(name: Any) -> None:
    # Keras rejects a slash in names, but only when the first layer is created.
    if not isinstance(name, str) or not name or "/" in name:
        raise ArgumentError("name", "be a text without '/'", name)


def _channels(inputs: Any) -> int:
    shape = getattr(inputs, "shape", None)
    if not isinstance(inputs, keras.KerasTensor) or shape is None or len(shape) != 4:
        raise ArgumentError(
            "inputs",
            "be a (batch, height, width, channels) tensor of the functional API",
            inputs,
            "Start with keras.Input((height, width, channels)).",
        )
    if shape[-1] is None:
        raise ArgumentError("inputs", "have a known number of channels", tuple(shape))
    return int(shape[-1])
