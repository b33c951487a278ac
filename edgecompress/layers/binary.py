"""Binary layers: weights and activations of one bit, for networks that run as XNOR and popcount.

Both layers follow larq's QuantConv2D and QuantDense with `input_quantizer="ste_sign"`,
`kernel_quantizer="ste_sign"` and `kernel_constraint="weight_clip"`: the kernel keeps float values
for training, and the layer computes with their signs. `edgecompress.converters.xnor` makes a file
of them that Larq Compute Engine runs; see docs/xnor.md.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.sign import SIGNS

_PACKAGE = "edgecompress"
PADDINGS = ("same_one", "same", "valid")
# Set while a model is traced for export: kernels are then constants, not computed from variables.
_FROZEN: contextvars.ContextVar[bool] = contextvars.ContextVar("frozen_kernels", default=False)


@contextlib.contextmanager
def frozen_kernels() -> Iterator[None]:
    """Makes binary layers called inside the block use their current kernels as constants.

    A converter that traces a model inside it sees plain constants of -1 and +1 (times the scale);
    otherwise the file would hold the float values and compute their signs at every inference.
    TensorFlow backend only.
    """
    token = _FROZEN.set(True)
    try:
        yield
    finally:
        _FROZEN.reset(token)


def same_padding(size: int | None, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Returns what padding "same" adds before and after one axis, as TensorFlow defines it.

    With `e = (kernel - 1) * dilation + 1` the sum is `max((ceil(size / stride) - 1) * stride + e -
    size, 0)`, the smaller half before.

    Args:
        size: Length of the axis; may be None with a stride of 1.
        kernel: Length of the kernel along it.
        stride: Its stride.
        dilation: Its dilation.

    Example:
        >>> same_padding(28, 3, 2, 1), same_padding(None, 3, 1, 1)
        ((0, 1), (1, 1))
    """
    extent = (kernel - 1) * dilation + 1
    if size is None:
        total = extent - 1
    else:
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


@keras.saving.register_keras_serializable(package=_PACKAGE)
class WeightClip(keras.constraints.Constraint):
    """Keeps every weight within -clip_value and +clip_value.

    The gradient of sign is zero beyond 1, so a weight that grew past it would never return.

    Args:
        clip_value: The limit. Defaults to 1.

    Example:
        >>> np.asarray(WeightClip()(np.array([-3.0, 0.5]))).tolist()
        [-1.0, 0.5]
    """

    def __init__(self, clip_value: float = 1.0) -> None:
        if not clip_value > 0:
            raise ArgumentError("clip_value", "be greater than 0", clip_value)
        self.clip_value = float(clip_value)

    def __call__(self, w: Any) -> Any:
        """Returns the clipped weights."""
        return ops.clip(w, -self.clip_value, self.clip_value)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"clip_value": self.clip_value}


def _constraint(constraint: Any) -> Any:
    return WeightClip() if constraint == "weight_clip" else keras.constraints.get(constraint)


class _BinaryLayer(keras.layers.Layer):
    """What both layers share: the arguments, the kernel and what comes after the product."""

    def __init__(
        self,
        outputs: int,
        activation: Any,
        use_bias: bool,
        input_quantizer: str | None,
        kernel_quantizer: str,
        scale: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        kernel_constraint: Any,
        bias_constraint: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._outputs = outputs
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self._input_sign = None if input_quantizer is None else SIGNS[input_quantizer]
        self._kernel_sign = SIGNS[kernel_quantizer]
        self.input_quantizer, self.kernel_quantizer = input_quantizer, kernel_quantizer
        self.scale = bool(scale)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = _constraint(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.bias: Any = None
        if self.kernel_constraint is None:
            warnings.warn(
                f"{type(self).__name__} {self.name!r} has no kernel_constraint: weights beyond 1 "
                'no longer get a gradient (they starve); use kernel_constraint="weight_clip".',
                stacklevel=3,
            )

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        # Not cast to half precision, in which small negative weights would become zero, i.e. +1.
        self.kernel = self.add_weight(
            name="kernel",
            shape=kernel_shape,
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self._outputs,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def kernel_bits(self) -> np.ndarray:
        """Returns the kernel as bits, uint8 in the kernel's shape: 1 for +1, 0 for -1."""
        self._check_built()
        return (ops.convert_to_numpy(self.kernel) >= 0).astype(np.uint8)

    def kernel_scale(self) -> np.ndarray:
        """Returns the factor of each output's signs: mean|W|, or 1 without `scale`."""
        self._check_built()
        if not self.scale:
            return np.ones(self._outputs, np.float32)
        return ops.convert_to_numpy(_magnitude(self.kernel))

    def _check_built(self) -> None:
        if not self.built:
            raise ArgumentError(
                "layer", "be built (called once, or part of a model with an input shape)", self.name
            )

    def _weights_now(self) -> Any:
        """Returns the kernel that the layer computes with: signs times scale."""
        if _FROZEN.get():
            import tensorflow as tf

            with tf.init_scope():
                values = (2.0 * self.kernel_bits() - 1.0) * self.kernel_scale()
            return ops.convert_to_tensor(values.astype(np.float32), dtype=self.compute_dtype)
        weights = self._kernel_sign(self.kernel)
        if self.scale:
            # Bi-Real Net's magnitude-aware sign: the scale enters the gradient of the signs, but
            # has no gradient itself.
            weights = weights * ops.stop_gradient(_magnitude(self.kernel))
        return ops.cast(weights, self.compute_dtype)

    def _finish(self, outputs: Any) -> Any:
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "input_quantizer": self.input_quantizer,
            "kernel_quantizer": self.kernel_quantizer,
            "scale": self.scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


def _magnitude(kernel: Any) -> Any:
    """Returns mean|W| of each output, the last axis."""
    return ops.mean(ops.abs(kernel), axis=tuple(range(len(kernel.shape) - 1)))


def _pair(argument: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ArgumentError(argument, "be a positive integer or a pair of them", value)
    return pair


@keras.saving.register_keras_serializable(package=_PACKAGE)
class BinaryConv2D(_BinaryLayer):
    """Convolution of +1/-1 inputs with +1/-1 weights.

    `y = activation(scale * sum sign(x) * sign(w) + bias)`, zero counting as +1. Training updates
    the kernel's float values; the quantizers define the gradient of the signs. In a suitable
    engine, every multiplication is an XNOR of bits and every sum a popcount: see
    `edgecompress.converters.xnor`. Put BatchNormalization after the layer, and a shortcut around
    both (Bi-Real Net): that is what keeps binary networks accurate.

    Args:
        filters: Number of output channels.
        kernel_size: Height and width of the kernel, an integer or a pair.
        strides: Of the convolution, an integer or a pair. Defaults to 1.
        padding: `"same_one"` pads the signs with +1, which stays binary and so runs fastest;
            `"same"` pads with 0, for which engines correct the border afterwards; `"valid"` does
            not pad. Defaults to `"same_one"`.
        dilation_rate: Distance between kernel elements, an integer or a pair. Defaults to 1.
        activation: After scale and bias. Defaults to None.
        use_bias: Whether to add a bias; BatchNormalization after the layer has one already.
            Defaults to False.
        input_quantizer: `"ste_sign"`, `"approx_sign"` or `"swish_sign"`
            (`edgecompress.precisions.sign`), or None: the input is used unchanged, so that only the
            weights are binary and no engine can use XNOR unless the input is already +1/-1.
            Defaults to `"ste_sign"`.
        kernel_quantizer: As `input_quantizer`, but not None. Defaults to `"ste_sign"`.
        scale: Multiply each filter with its mean|W| (XNOR-Net; larq's `magnitude_aware_sign`).
            Defaults to False: BatchNormalization scales, too.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
            bias_constraint: As in `keras.layers.Conv2D`.
        kernel_constraint: `"weight_clip"` keeps the float values within -1 and +1. None produces a
            warning: weights starve. Defaults to `"weight_clip"`.

    Input shape: (batch, height, width, channels). Output shape: (batch, height', width', filters).

    Raises:
        ArgumentError: an argument breaks its rule, or the input has no known height and width
            although padding `"same_one"` needs them (strides above 1).
        UnknownNameError: a quantizer is unknown.

    Example:
        >>> layer = BinaryConv2D(8, 3)
        >>> layer(np.zeros((1, 5, 5, 4), "float32")).shape
        TensorShape([1, 5, 5, 8])
        >>> layer.kernel_bits().shape, bool(layer.kernel_bits().max() <= 1)
        ((3, 3, 4, 8), True)

    Papers: Hubara et al., Binarized Neural Networks, 2016 (https://arxiv.org/abs/1602.02830);
    Rastegari et al., XNOR-Net, 2016 (https://arxiv.org/abs/1603.05279), for the scale;
    Liu et al., Bi-Real Net, 2018 (https://arxiv.org/abs/1808.00278), for its gradient.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "same_one",
        dilation_rate: int | Sequence[int] = 1,
        activation: Any = None,
        use_bias: bool = False,
        input_quantizer: str | None = "ste_sign",
        kernel_quantizer: str = "ste_sign",
        scale: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = "weight_clip",
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters, activation, use_bias, input_quantizer, kernel_quantizer, scale,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
        if not (isinstance(filters, int) and filters > 0):
            raise ArgumentError("filters", "be a positive integer", filters)
        if padding not in PADDINGS:
            raise ArgumentError("padding", f"be one of {', '.join(PADDINGS)}", padding)
        self.filters = filters
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.strides = _pair("strides", strides)
        self.padding = padding
        self.dilation_rate = _pair("dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ArgumentError(
                "dilation_rate", "be 1 where strides are above 1", self.dilation_rate
            )
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the kernel (height, width, channels, filters) and the bias."""
        channels = input_shape[-1]
        if channels is None:
            raise ArgumentError("input", "have a known number of channels", tuple(input_shape))
        unknown = any(size is None and stride > 1 for size, _, stride, _ in self._axes(input_shape))
        if self.padding == "same_one" and unknown:
            raise ArgumentError(
                "input",
                'have a known height and width for padding "same_one" with strides above 1',
                tuple(input_shape),
            )
        self._add_weights((*self.kernel_size, channels, self.filters))
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})

    def call(self, inputs: Any) -> Any:
        """Returns the binary convolution."""
        if self._input_sign is not None:
            inputs = self._input_sign(inputs)
        if self.padding == "same_one":
            inputs = ops.pad(inputs, self._ones(inputs.shape), constant_values=1)
        outputs = ops.conv(
            inputs,
            self._weights_now(),
            strides=self.strides,
            padding="same" if self.padding == "same" else "valid",
            dilation_rate=self.dilation_rate,
            data_format="channels_last",
        )
        return self._finish(outputs)

    def _ones(self, shape: Sequence[int | None]) -> list[tuple[int, int]]:
        return [(0, 0), *(same_padding(*axis) for axis in self._axes(shape)), (0, 0)]

    def _axes(self, shape: Sequence[int | None]) -> list[tuple[int | None, int, int, int]]:
        """Returns size, kernel, stride and dilation of height and width."""
        return list(
            zip(shape[1:3], self.kernel_size, self.strides, self.dilation_rate, strict=True)
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns (batch, height', width', filters)."""
        sizes = []
        for size, kernel, stride, dilation in self._axes(input_shape):
            extent = (kernel - 1) * dilation + 1 if self.padding == "valid" else 1
            sizes.append(None if size is None else (size - extent) // stride + 1)
        return (input_shape[0], *sizes, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
        }


@keras.saving.register_keras_serializable(package=_PACKAGE)
class BinaryDense(_BinaryLayer):
    """Matrix product of +1/-1 inputs with +1/-1 weights.

    `y = activation(scale * sum sign(x) * sign(w) + bias)`, as BinaryConv2D and with its arguments.
    It is computed as a 1x1 convolution, which engines support in binary form, unlike a matrix
    product.

    Args:
        units: Number of outputs.
        activation, use_bias, input_quantizer, kernel_quantizer, scale, kernel_initializer,
            bias_initializer, kernel_regularizer, bias_regularizer, kernel_constraint,
            bias_constraint: As in BinaryConv2D.

    Input shape: (batch, ..., features). Output shape: (batch, ..., units).

    Raises:
        ArgumentError: an argument breaks its rule.
        UnknownNameError: a quantizer is unknown.

    Example:
        >>> layer = BinaryDense(3)
        >>> y = np.asarray(layer(np.ones((2, 5), "float32")))
        >>> y.shape, set(np.unique(y)) <= {-5, -3, -1, 1, 3, 5}
        ((2, 3), True)
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = False,
        input_quantizer: str | None = "ste_sign",
        kernel_quantizer: str = "ste_sign",
        scale: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = "weight_clip",
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units, activation, use_bias, input_quantizer, kernel_quantizer, scale,
            kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
            kernel_constraint, bias_constraint, **kwargs,
        )  # fmt: skip
        if not (isinstance(units, int) and units > 0):
            raise ArgumentError("units", "be a positive integer", units)
        self.units = units
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the kernel (features, units) and the bias."""
        features = input_shape[-1]
        if features is None:
            raise ArgumentError("input", "have a known number of features", tuple(input_shape))
        self._add_weights((features, self.units))
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: features})

    def call(self, inputs: Any) -> Any:
        """Returns the binary matrix product."""
        features = self.kernel.shape[0]
        # The sign comes after the reshape: Larq Compute Engine's converter does not see through it.
        pixels = ops.reshape(inputs, (-1, 1, 1, features))
        if self._input_sign is not None:
            pixels = self._input_sign(pixels)
        kernel = ops.reshape(self._weights_now(), (1, 1, features, self.units))
        outputs = ops.conv(pixels, kernel, padding="valid", data_format="channels_last")
        return self._finish(ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units)))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns (batch, ..., units)."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "units": self.units}
