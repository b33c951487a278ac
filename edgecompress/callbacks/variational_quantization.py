"""Variational network quantization: weights gather at three levels in training, and take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.kernel_quantization import as_numpy
from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.callbacks.noisy_kernels import NoisyKernels
from edgecompress.callbacks.posterior import (
    MEAN,
    UncertainKernel,
    hidden_variable,
)
from edgecompress.core.arguments import check_positive
from edgecompress.precisions.ternary import mean_beyond, twn_threshold
from edgecompress.variational import log_uniform, spikes

# A level cannot vanish: nothing would gather at it.
_SMALLEST_LOG_LEVEL = -10.0


class VariationalQuantization(NoisyKernels):
    """Trains kernels towards -c, 0 and c, with a c of each layer: two bits per weight.

    Each weight is `N(mean, variance)` with a prior that has a spike at each level: Achterhold,
    Koehler, Schmeink and Genewein, Variational Network Quantization, 2018,
    https://openreview.net/forum?id=ry-TW-WAb; see `variational.spikes` for the divergence. Noise is
    drawn at the outputs, as by `VariationalDropout`. The levels are trained by the divergence.
    Weights with `log alpha > threshold` become zero, all others the nearest level, so nothing has
    to be trained after it.

    The kernel always holds the levels: validation, checkpoints and `fit`'s result are the ternary
    network. The paper trains the two levels of a layer on their own; here both are c, so that the
    codes of an int8 file are -127, 0 and 127, which files of coded weights store in 2 bits.

    What `VariationalDropout` says of resuming and of its arguments holds here, too. History:
    `divergence`, `posterior_sparsity`, and `quantization_distance`, the root of `sum (mean - w) **
    2 / sum mean ** 2` over all weights w that would be deployed. The record's step
    `variational_quantization` holds the levels and sparsities, and `allowed_bits`.

    Args:
        threshold: Weights with a larger `log alpha` become zero. Defaults to 2, the paper's.
        initial_level: Where the level of each layer starts, greater than 0. Defaults to None: the
            mean |w| of the weights above 0.7 times the mean |w| of all, as in Ternary Weight
            Networks. The paper's is 0.2.
        examples, warm_up_epochs, strength, rate, initial_log_variance, layers, seed,
            posterior_file: As in `VariationalDropout`. Layers are all, the first and the last
            included.

    Raises:
        EdgeCompressError: As `VariationalDropout`.

    Example:
        >>> ternary = VariationalQuantization(examples=len(x), rate=10)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=40, callbacks=[ternary])  # doctest: +SKIP
    """

    technique = "variational_quantization"
    done = "quantized"

    def __init__(
        self,
        examples: int,
        threshold: float = 2.0,
        warm_up_epochs: int = 0,
        strength: float = 1.0,
        rate: float = 1.0,
        initial_log_variance: float = -10.0,
        initial_level: float | None = None,
        layers: LayerChoice = None,
        seed: int = 0,
        posterior_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(
            examples, threshold, warm_up_epochs, strength, rate, initial_log_variance, layers, seed,
            posterior_file,
        )  # fmt: skip
        self.initial_level = (
            None if initial_level is None else check_positive("initial_level", initial_level)
        )

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {**super().settings(), "initial_level": self.initial_level}

    def start(self, kernel: UncertainKernel) -> None:
        """Starts with the same small variance for all weights, and the level of the kernel."""
        super().start(kernel)
        kernel.parts["log_level"] = hidden_variable(self._log_level(kernel), "log_level")

    def restart(self, kernel: UncertainKernel) -> None:
        """Sets the level for restored weights."""
        kernel.parts["log_level"].assign(self._log_level(kernel))

    def allowed(self, name: str) -> Callable[[Any], Any]:
        """Returns what keeps the level from vanishing."""
        if name != "log_level":
            return super().allowed(name)
        return lambda values: ops.maximum(values, _SMALLEST_LOG_LEVEL)

    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.divergence`."""
        level = ops.exp(values["log_level"])
        return ops.sum(spikes.divergence(values[MEAN], values["log_variance"], level))

    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.deployed`: levels, or zeros where noise is above the threshold."""
        noisy = log_uniform.log_alpha(values[MEAN], values["log_variance"]) > self.threshold
        levels = spikes.nearest(values[MEAN], ops.exp(values["log_level"]))
        return ops.where(noisy, 0.0, levels)

    def epoch_values(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns how far the means are from what would be deployed, too."""
        values, details = super().epoch_values()
        off = base = 0.0
        for kernel in self._kernels:
            mean = as_numpy(kernel.mean)
            off += float(np.sum((mean - kernel.numpy()) ** 2))
            base += float(np.sum(mean**2))
        return {**values, "quantization_distance": math.sqrt(off / base) if base else 0.0}, details

    def kernel_results(self) -> dict[str, Any]:
        """Returns levels and sparsities, and the bits that variances allow."""
        levels = {k.name: float(np.abs(k.numpy()).max()) for k in self._kernels}
        return {"levels": levels, **self.sparsities(), "allowed_bits": self.allowed_bits()}

    def _log_level(self, kernel: UncertainKernel) -> np.ndarray:
        if self.initial_level is not None:
            return np.asarray(math.log(self.initial_level), "f4")
        magnitudes = np.abs(kernel.numpy())
        level = float(np.max(as_numpy(mean_beyond(magnitudes, twn_threshold(magnitudes, ()), ()))))
        return np.asarray(max(math.log(max(level, 1e-30)), _SMALLEST_LOG_LEVEL), "f4")
