"""Ternary weights: each kernel trains as a negative value, zeros and a positive value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.kernel_quantization import (
    LatentWeights,
    QuantizedKernel,
    as_numpy,
    per_channel_list,
)
from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.core.errors import ArgumentError
from edgecompress.core.registry import Registry
from edgecompress.precisions.ternary import (
    is_ternary,
    mean_beyond,
    ternarize,
    ttq_gradient,
    ttq_start,
    ttq_threshold,
    ttq_value_gradients,
    twn,
)

# Method -> its usual threshold factor.
METHODS: Registry[float] = Registry("method")
METHODS.register("twn")(0.7)
METHODS.register("ttq")(0.05)

# A trained value that became zero could not be read back from any weight.
_SMALLEST_VALUE = 1e-6


class Ternarize(LatentWeights):
    """Trains kernels whose weights are a negative value, zero or a positive value: two bits.

    The kernel always holds the ternary values, backed by float latent weights W. With
    `method="twn"` (Li, Zhang and Liu, Ternary Weight Networks, 2016,
    https://arxiv.org/abs/1605.04711, section 2) both follow from W, and the gradient passes to W
    unchanged:

        threshold_c = 0.7 mean |w_c|,   alpha_c = mean of |w_c| above it,   W_t = alpha_c {-1, 0, 1}

    With `method="ttq"` (Zhu et al., Trained Ternary Quantization, 2017,
    https://arxiv.org/abs/1612.01064, section 3) two values for each layer are trained:

        threshold = t max |W|,   W_t = W_p where w > threshold, -W_n where w < -threshold, else 0
        dL/dW_p = sum of g over the first,   dL/dW_n = -sum of g over the second,   g = dL/dW_t
        dL/dW = g W_p,  g  or  g W_n,  depending on the weight's region

    W_p and W_n are moved by an optimizer with the settings and the learning rate of the model's,
    without weight decay. They start at the mean |w| of their side. The paper first divides W by its
    largest weight; here W keeps its size, which does not change the assignment.

    In an int8 file the codes of a TWN kernel are -127, 0 and 127, even with a BatchNormalization
    folded in. W_p and W_n differ, so a TTQ kernel has three to five codes. Layers stay plain Keras
    layers; activations are not affected.

    **Keep the callback in every later `fit`**, or freeze the layers (`trainable=False`): otherwise
    the weights drift apart again. A later fit on the same model object resumes from the latent
    weights. A saved model holds only the ternary values; after `load_model` or BackupAndRestore
    the latent weights start from them, unless `latent_file` says where they are stored.

    History: `ternary_flips`, the share of weights that changed to another of the three values
    during the epoch, and `ternary_flips/<layer>`; `ternary_sparsity`, the share of zeros. The
    record's step `ternary_weights` holds the layers, their values and sparsity.

    Args:
        method: `"twn"` or `"ttq"`. Defaults to `"twn"`.
        threshold: Factor of the threshold, 0 or more, less than 1 for TTQ. Defaults to None: 0.7
            for TWN, 0.05 for TTQ.
        per_channel: Whether each output channel has its own threshold and value, TWN only.
            Defaults to None: True for TWN, which suits the scales of int8 files and is closer to
            the float weights than the paper's one for a layer; False for TTQ.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: all Dense,
            Conv1D, Conv2D, Conv2DTranspose and SeparableConv (pointwise part) layers but the first
            and the last with weights; depthwise layers only if named.
        begin_epoch: Epoch, as Keras counts them, in which it begins. Defaults to 0.
        first_and_last: Whether `layers=None` includes the layers next to the model's inputs and
            outputs. Defaults to False.
        latent_file: A .npz file to which the latent weights are written after every epoch, and from
            which they are read when training begins if they match the model's weights. Defaults to
            None.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            or another callback of the fit sets the same weights.
        UnknownNameError: `method` or a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed.
        ModelFileError: `latent_file` cannot be read.

    Example:
        >>> model.fit(x, y, epochs=10, callbacks=[Ternarize()])  # doctest: +SKIP
        >>> np.unique(model.get_layer("conv2").kernel[..., 0]).size  # doctest: +SKIP
        3
    """

    technique = "ternary_weights"
    done = "ternarized"
    prefix = "ternary"

    def __init__(
        self,
        method: str = "twn",
        threshold: float | None = None,
        per_channel: bool | None = None,
        layers: LayerChoice = None,
        begin_epoch: int = 0,
        first_and_last: bool = False,
        latent_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        usual = METHODS[method]
        trained = method == "ttq"
        if per_channel is None:
            per_channel = not trained
        super().__init__(layers, begin_epoch, per_channel, first_and_last, latent_file)
        threshold = usual if threshold is None else threshold
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold) or threshold < 0:
            raise ArgumentError("threshold", "be a number, 0 or more", threshold)
        if trained and threshold >= 1:
            raise ArgumentError("threshold", "be less than 1 for ttq: it is a share", threshold)
        if trained and per_channel:
            raise ArgumentError(
                "per_channel", "be False for ttq, which trains two values for a layer", per_channel
            )
        self.method = method
        self.threshold = float(threshold)
        self._values: dict[str, tuple[keras.Variable, keras.Variable]] = {}
        self._value_optimizer: keras.optimizers.Optimizer | None = None
        self._gradients: dict[str, tuple[Any, Any]] = {}

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {"method": self.method, "threshold": self.threshold, **super().settings()}

    def attach(self) -> None:
        """Chooses the kernels and hooks them; nothing is ternary before `begin_epoch`."""
        super().attach()

    def prepare(self, hook: UpdateHook) -> None:
        """Adds W_p and W_n, and their optimizer."""
        self._values, self._value_optimizer = {}, None
        if self.method != "ttq":
            return
        for kernel in self._kernels:
            positive, negative = (
                hook.add_variable((), "float32", f"ternary_{side}_{index}")
                for index, side in enumerate(("positive", "negative"))
            )
            self._values[kernel.name] = (positive, negative)
        self._value_optimizer = _clone_settings(hook.optimizer)
        self._value_optimizer.build([value for pair in self._values.values() for value in pair])
        hook.adopt(self._value_optimizer.variables)

    def is_quantized(self, values: np.ndarray, axes: tuple[int, ...]) -> bool:
        """Returns whether each channel holds zeros and one value on each side."""
        return is_ternary(values, axes)

    def quantize(self, kernel: QuantizedKernel) -> Any:
        """Returns the ternary values of the latent weights."""
        latent = ops.convert_to_tensor(kernel.latent)
        if self.method == "twn":
            return twn(latent, kernel.axes, self.threshold)
        positive, negative = self._pair(kernel, latent.dtype)
        return ternarize(latent, ttq_threshold(latent, self.threshold), positive, negative)

    def estimate(self, kernel: QuantizedKernel, upstream_grad: Any) -> Any:
        """Returns the gradient of the latent weights; part of the compiled step."""
        if self.method == "twn":
            return upstream_grad
        latent = ops.convert_to_tensor(kernel.latent)
        threshold = ttq_threshold(latent, self.threshold)
        self._gradients[kernel.name] = ttq_value_gradients(upstream_grad, latent, threshold)
        return ttq_gradient(
            upstream_grad, latent, threshold, *self._pair(kernel, upstream_grad.dtype)
        )

    def begin_update(self) -> None:
        """Moves W_p and W_n, too; part of the compiled step."""
        super().begin_update()
        optimizer, hook = self._value_optimizer, self._hook
        if optimizer is None or hook is None or not self._gradients:
            return
        optimizer.learning_rate.assign(hook.optimizer.learning_rate)
        named = list(self._gradients)
        gradients = [ops.cast(g, "float32") for name in named for g in self._gradients[name]]
        values = [value for name in named for value in self._values[name]]
        optimizer.apply(gradients, values)
        for value in values:
            value.assign(ops.maximum(ops.convert_to_tensor(value), _SMALLEST_VALUE))
        self._gradients = {}

    def start_values(self, kernel: QuantizedKernel, values: np.ndarray) -> None:
        """Reads W_p and W_n from a ternary kernel, or starts them from a float one."""
        if self.method != "ttq":
            return
        threshold = as_numpy(ttq_threshold(values, self.threshold))
        if self.is_quantized(values, kernel.axes):
            # One of the values may be below the threshold implied by the other.
            threshold = np.zeros((), "float32")
        for variable, start in zip(
            self._values[kernel.name], ttq_start(values, threshold), strict=True
        ):
            variable.assign(start)

    def epoch_values(self) -> dict[str, float]:
        """Returns the share of zeros."""
        zeros = sum(int(np.sum(kernel.numpy() == 0)) for kernel in self._kernels)
        return {"ternary_sparsity": zeros / sum(kernel.size for kernel in self._kernels)}

    def kernel_results(self) -> dict[str, Any]:
        """Returns the values on both sides, and the share of zeros, for each layer."""
        found: dict[str, Any] = {"scales": {}, "layer_sparsity": {}}
        for kernel in self._kernels:
            values = kernel.numpy()
            found["scales"][kernel.name] = {
                side: per_channel_list(mean_beyond(np.maximum(sign * values, 0), 0.0, kernel.axes))
                for side, sign in (("positive", 1.0), ("negative", -1.0))
            }
            found["layer_sparsity"][kernel.name] = float(np.mean(values == 0))
        return {**found, "sparsity": self.epoch_values()["ternary_sparsity"]}

    def _pair(self, kernel: QuantizedKernel, dtype: Any) -> list[Any]:
        return [ops.cast(ops.convert_to_tensor(v), dtype) for v in self._values[kernel.name]]


def _clone_settings(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns an optimizer with the same settings for other variables, without weight decay."""
    config = optimizer.get_config()
    changes = {
        "name": "ternary_values",
        "weight_decay": 0.0 if config.get("weight_decay") else None,
        "use_ema": False,
        "loss_scale_factor": None,
        # Follows the model's optimizer step by step.
        "learning_rate": 0.001,
    }
    config.update({key: value for key, value in changes.items() if key in config})
    return type(optimizer).from_config(config)
