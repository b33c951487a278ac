"""Training with noise: each weight is a normal distribution with a variance of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.kernel_quantization import as_numpy
from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.callbacks.posterior import (
    MEAN,
    Posterior,
    UncertainKernel,
    add_bias,
    hidden_variable,
)
from edgecompress.core.arguments import check_number, check_whole
from edgecompress.precisions.integer_operators import with_kernel
from edgecompress.variational.precision import allowed_bits

# Added to the variance of an output: its square root has no slope at 0.
_LEAST_VARIANCE = 1e-8


class NoisyKernels(Posterior):
    """Base of the callbacks whose weights are `N(mean, exp(log_variance))` in training.

    Args:
        examples: As in `Posterior`.
        threshold: What has more noise becomes zero.
        warm_up_epochs: As in `Posterior`.
        strength: Likewise.
        rate: Likewise.
        initial_log_variance: Where log variances start.
        layers: As in `Posterior`.
        seed: Of the noise.
        posterior_file: As in `Posterior`.
    """

    def __init__(
        self,
        examples: int,
        threshold: float,
        warm_up_epochs: int,
        strength: float,
        rate: float,
        initial_log_variance: float,
        layers: LayerChoice,
        seed: int,
        posterior_file: str | Path | None,
    ) -> None:
        """Checks the arguments."""
        super().__init__(examples, strength, warm_up_epochs, rate, layers, posterior_file)
        self.threshold = check_number("threshold", threshold)
        self.initial_log_variance = check_number("initial_log_variance", initial_log_variance)
        self.seed = check_whole("seed", seed, 0)

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            **super().settings(),
            "threshold": self.threshold,
            "initial_log_variance": self.initial_log_variance,
            "seed": self.seed,
        }

    def attach(self) -> None:
        """As `Posterior.attach`."""
        self._random = keras.random.SeedGenerator(self.seed)
        super().attach()

    def start(self, kernel: UncertainKernel) -> None:
        """Starts with the same small variance for all weights."""
        start = np.full(kernel.variable.shape, self.initial_log_variance, "f4")
        kernel.parts["log_variance"] = hidden_variable(start, "log_variance")

    def outputs(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """As `Posterior.outputs`, with noise."""
        return add_bias(kernel.layer, self.noisy_sums(kernel, values, run, inputs))

    def noisy_sums(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """Returns a layer's sums of products, with noise and without bias; see `outputs`.

        The local reparametrization of Kingma et al. (2015), equation (6): the sums of products are
        normal, with the layer applied to squared inputs and variances as their variance.
        """
        sums = with_kernel(kernel.layer, kernel.attribute, run)
        mean = sums(values[MEAN], inputs)
        variance = sums(ops.exp(values["log_variance"]), ops.square(inputs))
        deviation = ops.sqrt(ops.maximum(variance, 0.0) + _LEAST_VARIANCE)
        return mean + self.noise(ops.shape(mean), mean.dtype) * deviation

    def noise(self, shape: Any, dtype: Any) -> Any:
        """Returns standard normal numbers."""
        return keras.random.normal(shape, dtype=dtype, seed=self._random)

    def allowed_bits(self) -> dict[str, int]:
        """Returns the bits that the variances of each kernel's weights other than zero allow."""
        found = {}
        for kernel in self._kernels:
            weights = kernel.numpy()
            kept = weights != 0
            if kept.any():
                variances = np.exp(as_numpy(kernel.parts["log_variance"]))
                found[kernel.name] = allowed_bits(weights[kept], variances[kept])
        return found
