"""Binary weights: each kernel trains as signs times a scale for each output channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.kernel_quantization import (
    LatentWeights,
    QuantizedKernel,
    per_channel_list,
)
from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.binary import (
    SCALES,
    binarize,
    binary_gradient,
    binary_scale,
    is_binary,
)


class Binarize(LatentWeights):
    """Trains kernels whose weights are `alpha_c * {-1, 1}`, one bit and a scale for each channel.

    The kernel always holds the binary values, backed by float latent weights W that a step updates
    with

        W_b = alpha_c sign(W),   alpha_c = mean |w_c|,   sign(0) = 1
        dL/dw_i = alpha_c g_i 1(|w_i| <= clip) + sign(w_i) / n * sum_j g_j sign(w_j)

    where g = dL/dW_b: the binary-weight networks of Rastegari et al., XNOR-Net, 2016
    (https://arxiv.org/abs/1603.05279), section 3.1, equation 6. With `scale="one"`, alpha is 1 and
    the second term vanishes, which is BinaryConnect (Courbariaux et al., 2015,
    https://arxiv.org/abs/1511.00363); such layers need a BatchNormalization after them. W is
    clipped to [-clip, clip]. Activations are not affected.

    In an int8 file the codes of such a kernel are -127 and 127, even with a BatchNormalization
    folded in: one bit each in a compressed file. Layers stay plain Keras layers.

    **Keep the callback in every later `fit`**, or freeze the layers (`trainable=False`): otherwise
    the weights drift apart again. A later fit on the same model object resumes from the latent
    weights. A saved model holds only the binary values; after `load_model` or BackupAndRestore the
    latent weights start from them, unless `latent_file` says where they are stored.

    History: `binary_flips`, the share of weights whose sign changed during the epoch,
    and `binary_flips/<layer>`. The record's step `binary_weights` holds the layers and scales.

    Args:
        scale: `"mean"` or `"one"`. Defaults to `"mean"`.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: all Dense,
            Conv1D, Conv2D, Conv2DTranspose and SeparableConv (pointwise part) layers but the first
            and the last with weights; depthwise layers only if named.
        begin_epoch: Epoch, as Keras counts them, in which it begins. Defaults to 0.
        per_channel: Whether each output channel has its own alpha. Defaults to True.
        first_and_last: Whether `layers=None` includes the layers next to the model's inputs and
            outputs. Binary networks in the literature keep them at higher precision. Defaults to
            False.
        clip: Clipping limit of the latent weights and the gradient. Defaults to 1.
        latent_file: A .npz file to which the latent weights are written after every epoch, and from
            which they are read when training begins if they match the model's weights. Defaults to
            None.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            or another callback of the fit sets the same weights.
        UnknownNameError: `scale` or a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed.
        ModelFileError: `latent_file` cannot be read.

    Example:
        >>> model.fit(x, y, epochs=10, callbacks=[Binarize()])  # doctest: +SKIP
        >>> np.unique(np.abs(model.get_layer("conv2").kernel[..., 0])).size  # doctest: +SKIP
        1
    """

    technique = "binary_weights"
    done = "binarized"
    prefix = "binary"

    def __init__(
        self,
        scale: str = "mean",
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        per_channel: bool = True,
        first_and_last: bool = False,
        clip: float = 1.0,
        latent_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(layers, begin_epoch, per_channel, first_and_last, latent_file)
        _ = SCALES[scale]  # Refuses unknown names.
        number = isinstance(clip, (int, float)) and not isinstance(clip, bool)
        if not number or not math.isfinite(clip) or not clip > 0:
            raise ArgumentError("clip", "be a number greater than 0", clip)
        self.scale = scale
        self.clip_value = float(clip)

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {"scale": self.scale, **super().settings(), "clip": self.clip_value}

    def is_quantized(self, values: np.ndarray, axes: tuple[int, ...]) -> bool:
        """Returns whether the weights of each channel have one magnitude."""
        return is_binary(values, axes)

    def quantize(self, kernel: QuantizedKernel) -> Any:
        """Returns the binary values of the latent weights."""
        return binarize(ops.convert_to_tensor(kernel.latent), kernel.axes, self.scale)

    def clip(self, latent: Any) -> Any:
        """Returns latent weights within -clip and clip."""
        return ops.clip(latent, -self.clip_value, self.clip_value)

    def estimate(self, kernel: QuantizedKernel, upstream_grad: Any) -> Any:
        """Returns the gradient of the latent weights; part of the compiled step."""
        latent = ops.convert_to_tensor(kernel.latent)
        return binary_gradient(upstream_grad, latent, kernel.axes, self.scale, self.clip_value)

    def kernel_results(self) -> dict[str, Any]:
        """Returns the scales: alpha of each channel."""
        return {
            "scales": {
                kernel.name: per_channel_list(binary_scale(kernel.numpy(), kernel.axes))
                for kernel in self._kernels
            }
        }
