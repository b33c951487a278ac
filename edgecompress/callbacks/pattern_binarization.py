"""Pattern binarization: k x k filters become fixed sign patterns; the rest keeps training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.kernel_quantization import (
    KernelQuantization,
    QuantizedKernel,
    as_numpy,
    per_channel_list,
    scale_axes,
)
from edgecompress.callbacks.layer_choice import ChosenKernel, LayerChoice, choose_kernels
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.binary import SCALES, binarize, binary_scale, is_binary


class PatternBinarization(KernelQuantization):
    """Fixes the k x k filters (k > 1) of convolutions to their sign patterns, as SEP-Nets do.

    At the start of `begin_epoch` every k x k kernel becomes `alpha_c sign(W)`, with sign(0) = 1,
    and stays that way: one bit per weight. The 1x1 convolutions, biases, BatchNormalization and all
    other layers keep training and compensate for the loss; QuantizationAwareTraining and the int8
    file round those to 8 bits. Li, Wang, Lv and Yang, SEP-Nets: Small and Effective Pattern
    Networks, 2017 (https://arxiv.org/abs/1706.03912), section 3.

    The paper's patterns are -1 and 1 (`scale="one"`), which a BatchNormalization after the
    convolution absorbs; without one, outputs grow by a factor of 1 / alpha, and the network breaks.
    The default, `scale="mean"`, keeps the size of each filter, `alpha_c = mean |w_c|`. The int8
    file is equally small either way: the scale is merged into the channel's own.

    A kernel that already is a sign pattern stays one from the first epoch on, so a second `fit`,
    one after `load_model`, and BackupAndRestore resume with the patterns they find. Without the
    callback a later `fit` trains the patterns away; freezing the layers (`trainable=False`) keeps
    them, too.

    History: `pattern_active` (0 or 1) and `pattern_error`, the root of
    `sum (w - alpha sign(w))**2 / sum w**2` over all fixed weights at the time they were fixed.
    The record's step `pattern_binarization` holds the layers and scales.

    Args:
        begin_epoch: Epoch, as Keras numbers them, in which the patterns are fixed. Defaults to 0,
            for a trained model.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: every Conv2D
            with a kernel larger than 1x1; DepthwiseConv2D only if named.
        scale: `"mean"` or `"one"`. Defaults to `"mean"`.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            or another callback of the fit sets the same weights.
        UnknownNameError: `scale` or a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed.

    Example:
        >>> model.fit(x, y, epochs=30, callbacks=[PatternBinarization(begin_epoch=20)])
        ...  # doctest: +SKIP
    """

    technique = "pattern_binarization"
    done = "turned into patterns"

    def __init__(
        self, begin_epoch: int = 0, layers: LayerChoice = None, scale: str = "mean"
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(layers, begin_epoch)
        _ = SCALES[scale]  # Refuses unknown names.
        self.scale = scale
        self._errors: dict[str, tuple[float, float]] = {}

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            "begin_epoch": self.begin_epoch,
            "layers": [kernel.name for kernel in self._kernels],
            "scale": self.scale,
        }

    def choose(self) -> list[tuple[ChosenKernel, tuple[int, ...]]]:
        """Returns the k x k kernels; refuses 1x1 ones that are named."""
        kernels = choose_kernels(
            self.model, self.layers, self.done, self.note, lambda kind: kind.sign_patterns
        )
        chosen, pointwise = [], []
        for kernel in kernels:
            axes = scale_axes(kernel)
            if math.prod(kernel.layer.kernel_size) == 1:
                pointwise.append(kernel.name)
            elif axes is None:
                name = type(kernel.layer).__name__
                self.note(
                    f"{kernel.name} is not {self.done}: int8 does not support its class {name}."
                )
            else:
                chosen.append((kernel, axes))
        if pointwise and isinstance(self.layers, list):
            raise ArgumentError("layers", "name layers with k x k filters, k > 1", pointwise[0])
        if pointwise:
            self.note(f"Not {self.done}, as their filters are 1x1: {', '.join(pointwise)}.")
        if not chosen:
            raise ArgumentError(
                "layers",
                f"leave at least one layer to be {self.done}",
                self.layers,
                " ".join(self.notes),
            )
        return chosen

    def is_quantized(self, values: np.ndarray, axes: tuple[int, ...]) -> bool:
        """Returns whether the weights of each filter have one magnitude."""
        return is_binary(values, axes)

    def is_current(self, kernel: QuantizedKernel) -> bool:
        """Returns whether a kernel holds its pattern."""
        return bool(np.array_equal(kernel.numpy(), as_numpy(kernel.latent)))

    def start(self, kernel: QuantizedKernel) -> None:
        """Fixes a kernel to its pattern; an existing pattern is left as it is."""
        values = kernel.numpy()
        if self.is_quantized(values, kernel.axes):
            pattern = values
        else:
            pattern = as_numpy(binarize(values, kernel.axes, self.scale))
            # By the closest scale, whichever is used: the error of the shape, not of the size.
            closest = as_numpy(binarize(values, kernel.axes))
            self._errors[kernel.name] = (
                float(np.sum(np.float64(values - closest) ** 2)),
                float(np.sum(np.float64(values) ** 2)),
            )
        # The hook's variable holds the pattern.
        kernel.latent.assign(pattern)
        kernel.variable.assign(pattern)

    def estimate(self, kernel: QuantizedKernel, upstream_grad: Any) -> Any:
        """Returns no gradient, so that neither momentum nor clipping by norm sees it."""
        return ops.zeros_like(upstream_grad)

    def quantize_after(self, kernel: QuantizedKernel) -> None:
        """Puts the pattern back, whatever weight decay or momentum made of it."""
        kernel.variable.assign(ops.convert_to_tensor(kernel.latent))

    def attach(self) -> None:
        """Chooses the kernels; they train until `begin_epoch`."""
        self._errors = {}
        super().attach()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs whether the patterns are fixed, and their error."""
        values = {"pattern_active": float(self._active), "pattern_error": self._error()}
        self.log(epoch, logs, values)

    def kernel_results(self) -> dict[str, Any]:
        """Returns the scale of each filter, and the error."""
        scales = {
            kernel.name: per_channel_list(binary_scale(kernel.numpy(), kernel.axes))
            for kernel in self._kernels
        }
        return {"scales": scales, "pattern_error": self._error()}

    def _error(self) -> float:
        total = sum(square for _, square in self._errors.values())
        return math.sqrt(sum(e for e, _ in self._errors.values()) / total) if total else 0.0
