"""Soft weight sharing: a mixture of Gaussians, learnt with the weights, draws them to its means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from edgecompress.core.arguments import check_whole
from edgecompress.core.errors import ArgumentError
from edgecompress.precisions.integer_operators import with_kernel
from edgecompress.variational import gaussian_mixture

# Components may become this narrow: exp(-20) is far below the square of any weight that counts.
_NARROWEST, _WIDEST = -20.0, 5.0


class SoftWeightSharing(Posterior):
    """Draws the weights of each layer to k values and zero, which training chooses.

    The weights have a mixture of Gaussians as prior, whose means, variances and shares are trained
    together with them: Ullrich, Meeds and Welling, Soft Weight-Sharing for Neural Network
    Compression, 2017, https://arxiv.org/abs/1702.04008. The loss grows by

        strength * warm-up / examples * -log p(weights, precisions)

    (equation 5; `variational.gaussian_mixture`). One component sits at zero with a fixed share.
    Each weight is deployed as the mean of the component that is most responsible for it (section
    3.2), so weights at zero are pruned and the others clustered. The paper shares one mixture among
    all layers; here each layer has its own, because files store a codebook for each kernel.

    The kernel always holds the shared values: validation, checkpoints and `fit`'s result are the
    clustered network. The training step computes with the weights between them, without noise.
    Afterwards `WeightClustering` with as many clusters trains the values on; files of coded weights
    store codebook and codes.

    What `VariationalDropout` says of resuming and of its arguments holds here, too. History:
    `divergence` (the complexity, in nats, up to a constant), `posterior_sparsity`, and `clusters`,
    the largest number of values beside zero. The record's step `soft_weight_sharing` holds
    `codebooks`, `unique_values` and sparsities.

    Args:
        clusters: k, 1 or more: components beside zero. Defaults to 15, 4 bits with zero. The paper
            has 16.
        zero_share: Share of the component at zero, 0 < s < 1: the sparsity that the prior expects.
            Defaults to 0.9; the paper has 0.99 and more.
        strength: Factor of the complexity, tau. Defaults to 0.005, the paper's.
        rate: Learning rate of the mixture divided by the optimizer's. Defaults to 1.
        examples, warm_up_epochs, layers, posterior_file: As in `VariationalDropout`.

    Raises:
        EdgeCompressError: As `VariationalDropout`.

    Example:
        >>> sharing = SoftWeightSharing(examples=len(x))  # doctest: +SKIP
        >>> model.fit(x, y, epochs=20, callbacks=[sharing])  # doctest: +SKIP
    """

    technique = "soft_weight_sharing"
    done = "clustered"

    def __init__(
        self,
        examples: int,
        clusters: int = 15,
        zero_share: float = 0.9,
        strength: float = 0.005,
        warm_up_epochs: int = 0,
        rate: float = 1.0,
        layers: LayerChoice = None,
        posterior_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(examples, strength, warm_up_epochs, rate, layers, posterior_file)
        self.clusters = check_whole("clusters", clusters, 1)
        number = isinstance(zero_share, (int, float)) and not isinstance(zero_share, bool)
        if not number or not 0 < zero_share < 1:
            raise ArgumentError("zero_share", "lie between 0 and 1", zero_share)
        self.zero_share = float(zero_share)
        self._widths: dict[str, float] = {}

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            **super().settings(),
            "clusters": self.clusters,
            "zero_share": self.zero_share,
        }

    def start(self, kernel: UncertainKernel) -> None:
        """Starts with means evenly spaced over the weights, as in the paper."""
        for name, value in self._mixture(kernel).items():
            kernel.parts[name] = hidden_variable(value, name)

    def restart(self, kernel: UncertainKernel) -> None:
        """Spaces the means over restored weights."""
        for name, value in self._mixture(kernel).items():
            kernel.parts[name].assign(value)

    def allowed(self, name: str) -> Callable[[Any], Any]:
        """Returns what keeps variances within what float32 computes with."""
        if name != "log_variances":
            return super().allowed(name)
        return lambda values: ops.clip(values, _NARROWEST, _WIDEST)

    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.divergence`: the complexity."""
        mixture = self._values_of(values)
        return gaussian_mixture.complexity(*mixture, self.zero_share, self._widths[kernel.name])

    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.deployed`: the mean of each weight's component."""
        found = gaussian_mixture.assigned(*self._values_of(values), self.zero_share)
        return ops.reshape(found, kernel.variable.shape)

    def outputs(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """Returns a layer's outputs before its activation for the weights, without noise."""
        sums = with_kernel(kernel.layer, kernel.attribute, run)
        return add_bias(kernel.layer, sums(values[MEAN], inputs))

    def epoch_values(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the largest number of values beside zero, too."""
        values, details = super().epoch_values()
        largest = max(np.count_nonzero(np.unique(kernel.numpy())) for kernel in self._kernels)
        return {**values, "clusters": float(largest)}, details

    def kernel_results(self) -> dict[str, Any]:
        """Returns the shared values and the sparsities."""
        unique = {kernel.name: np.unique(kernel.numpy()) for kernel in self._kernels}
        return {
            "codebooks": {name: values[values != 0].tolist() for name, values in unique.items()},
            "unique_values": {name: len(values) for name, values in unique.items()},
            **self.sparsities(),
        }

    def _mixture(self, kernel: UncertainKernel) -> dict[str, np.ndarray]:
        weights = as_numpy(kernel.variable)
        low, high = float(weights.min()), float(weights.max())
        spacing = (high - low) / self.clusters
        # A quarter of the distance between two means: components meet halfway.
        self._widths[kernel.name] = width = max(spacing / 4, 1e-4)
        means = np.linspace(low + spacing / 2, high - spacing / 2, self.clusters)
        return {
            "means": means.astype("f4"),
            "log_variances": np.full(self.clusters + 1, 2 * np.log(width), "f4"),
            "logits": np.zeros(self.clusters, "f4"),
        }

    def _values_of(self, values: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
        weights = ops.reshape(values[MEAN], (-1,))
        return weights, values["means"], values["log_variances"], values["logits"]
