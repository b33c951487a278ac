"""Bayesian group sparsity: filters whose common scale drowns in noise become zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.channel_targets import ChannelTarget, ChannelTargets, find_targets
from edgecompress.callbacks.kernel_quantization import as_numpy
from edgecompress.callbacks.layer_choice import ChosenKernel, LayerChoice
from edgecompress.callbacks.posterior import (
    MEAN,
    Posterior,
    UncertainKernel,
    add_bias,
    channel_axis,
    check_number,
    hidden_variable,
)
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.zero_filters import zero_filters
from edgecompress.variational import normal_jeffreys
from edgecompress.variational.log_uniform import log_alpha
from edgecompress.variational.precision import allowed_bits

_SCALE = ("scale_mean", "scale_log_variance")


class BayesianGroupSparsity(Posterior):
    """Removes filters and neurons whose scale the data leave uncertain.

    All weights of a filter share a scale z with a log-uniform prior (the group normal-Jeffreys
    prior of Louizos, Ullrich and Welling, Bayesian Compression for Deep Learning, 2017,
    https://arxiv.org/abs/1705.08665, section 4.1; see `variational.normal_jeffreys`):

        w = z * (mean + deviation * noise),   z = N(m, s ** 2)

    Both are drawn at the outputs, z once for each filter and example (equation 10). The loss grows
    by the divergence of scales (equation 8) and weights (equation 9) from the prior, times
    `strength * warm-up / examples`. Filters with `log(s ** 2 / m ** 2) > threshold` become zero.

    The kernel always holds `m * mean`, with zeros for such filters: validation, checkpoints and
    `fit`'s result have no noise. At the end of training the constant output of a filter that
    became zero is folded into the biases of the layers that read it, and `edgecompress.finalize`
    removes it.
    Only filters that can be removed are worked on, as by `GroupLasso`; the others are named in the
    notes. A filter whose channels are added to others' goes only if all of those go.

    What `VariationalDropout` says of resuming and of its arguments holds here, too. History:
    `divergence`, `posterior_sparsity` and `zero_filter_share`. The record's step
    `bayesian_group_sparsity` holds `zero_filters` and `allowed_bits`, the bits that the variances
    of the weights that stay would allow in each layer.

    Args:
        examples: Number of training examples.
        threshold: Filters whose scale has a larger `log alpha` become zero. The paper chooses it by
            the gap in a histogram of them. Defaults to 0: as much noise as signal.
        warm_up_epochs: Number of epochs over which the divergence's factor grows to all of it.
            Defaults to 0.
        strength: Factor of the divergence; 1 is Bayes' rule. Defaults to 1.
        rate: Learning rate of scales and log variances divided by the optimizer's. Defaults to 1.
        initial_log_variance: Where log variances start. Defaults to -9.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: all Dense,
            Conv1D, Conv2D and transposed convolutions whose filters can be removed.
        seed: Of the noise. Defaults to 0.
        posterior_file: As in `VariationalDropout`. Defaults to None.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            another callback of the fit sets the same weights, Keras runs on JAX, or several devices
            train copies of the model.
        UnknownNameError: a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed or has its own
            `train_step` or `compute_loss`.
        ModelFileError: `posterior_file` cannot be read.

    Example:
        >>> groups = BayesianGroupSparsity(examples=len(x), rate=10)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=40, callbacks=[groups])  # doctest: +SKIP
        >>> small = edgecompress.finalize(model)  # doctest: +SKIP
    """

    technique = "bayesian_group_sparsity"
    done = "sparsified"

    def __init__(
        self,
        examples: int,
        threshold: float = 0.0,
        warm_up_epochs: int = 0,
        strength: float = 1.0,
        rate: float = 1.0,
        initial_log_variance: float = -9.0,
        layers: LayerChoice = None,
        seed: int = 0,
        posterior_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(examples, strength, warm_up_epochs, rate, layers, seed, posterior_file)
        self.threshold = check_number("threshold", threshold)
        self.initial_log_variance = check_number("initial_log_variance", initial_log_variance)
        self._targets: ChannelTargets
        self._by_kernel: dict[str, ChannelTarget] = {}
        self._together: tuple[list[np.ndarray], int] | None = None

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            **super().settings(),
            "threshold": self.threshold,
            "initial_log_variance": self.initial_log_variance,
        }

    def refine(self, kernels: list[ChosenKernel]) -> list[ChosenKernel]:
        """Returns those whose filters can be removed."""
        self._targets = find_targets(
            self.model, self.layers, Magnitude(), "Bayesian group sparsity", self.note
        )
        found = {
            id(target.kernels[0].variable): target
            for target in self._targets.layers
            if len(target.kernels) == 1
        }
        self._by_kernel = {
            k.name: found[id(k.variable)] for k in kernels if id(k.variable) in found
        }
        chosen = [kernel for kernel in kernels if kernel.name in self._by_kernel]
        self._together = self._joined([self._by_kernel[kernel.name].path for kernel in chosen])
        return chosen

    def start(self, kernel: UncertainKernel) -> None:
        """Starts with the weights in units of scales of 1."""
        filters = self._by_kernel[kernel.name].filters
        for name, value, shape in (
            ("log_variance", self.initial_log_variance, kernel.variable.shape),
            ("scale_mean", 1.0, (filters,)),
            ("scale_log_variance", self.initial_log_variance, (filters,)),
        ):
            kernel.parts[name] = hidden_variable(np.full(shape, value, "f4"), name)

    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.divergence`."""
        scales, weights = normal_jeffreys.divergence(
            values[MEAN],
            values["log_variance"],
            values["scale_mean"],
            values["scale_log_variance"],
        )
        return scales + weights

    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.deployed`: means, or zeros in filters with noise above the threshold."""
        weak = self._along(kernel, self._alphas(kernel) > self.threshold)
        # Not a product with 0: 0.0 and -0.0 are different bytes in a file.
        return ops.where(weak, 0.0, values[MEAN] * self._along(kernel, values["scale_mean"]))

    def outputs(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """Returns a layer's outputs before its activation, scaled with noise; part of the step."""
        sums = self.noisy_sums(kernel, values, run, inputs)
        rank = len(sums.shape)
        axis = channel_axis(kernel.layer, rank)
        batch = ops.shape(sums)[0]
        noise = self.noise((batch, sums.shape[axis]), sums.dtype)
        scales = values["scale_mean"] + noise * ops.exp(0.5 * values["scale_log_variance"])
        shape = [batch, *[1] * (rank - 1)]
        shape[axis] = sums.shape[axis]
        return add_bias(kernel.layer, sums * ops.reshape(scales, shape))

    def epoch_values(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the share of filters that are zero, too."""
        values, details = super().epoch_values()
        zeros = [target.zeros() for target in self._by_kernel.values()]
        share = sum(int(x.sum()) for x in zeros) / sum(x.size for x in zeros)
        return {**values, "zero_filter_share": share}, details

    def kernel_results(self) -> dict[str, Any]:
        """Returns the filters that are zero, of how many, and the bits that variances allow."""
        zeros = {name: target.zeros() for name, target in self._by_kernel.items()}
        found = {name: [int(zero.sum()), zero.size] for name, zero in zeros.items()}
        return {"zero_filters": found, "allowed_bits": self._allowed_bits(zeros)}

    def finish(self) -> None:
        """Folds the constants of zero filters into the layers that read them."""
        weak = {target.path: target.zeros() for target in self._by_kernel.values()}
        for text in zero_filters(self.model, weak).notes:
            self.note(f"Bayesian group sparsity: {text}")

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._by_kernel = {}

    def _joined(self, paths: list[str]) -> tuple[list[np.ndarray], int] | None:
        """Returns a number for each filter, the same for those that go together, and how many.

        None if each goes alone.
        """
        labels: dict[str, np.ndarray] = {}
        count = 0
        for roots in self._targets.roots():
            known = [path for path in paths if path in roots]
            if not known:
                continue
            _, numbers = np.unique(np.concatenate([roots[p] for p in known]), return_inverse=True)
            ends = np.cumsum([len(roots[path]) for path in known])
            parts = np.split(numbers.astype("int32") + count, ends[:-1])
            labels.update(zip(known, parts, strict=True))
            count += int(numbers.max()) + 1
        found = [labels[path] for path in paths]
        return None if count == sum(map(len, found)) else (found, count)

    def _alphas(self, kernel: UncertainKernel) -> Any:
        """Returns `log alpha` of a kernel's filters: the smallest of those that go together."""
        found = [
            log_alpha(*(ops.convert_to_tensor(other.parts[name]) for name in _SCALE))
            for other in self._kernels
        ]
        if self._together is None:
            return found[self._kernels.index(kernel)]
        labels, count = self._together
        least = -ops.segment_max(-ops.concatenate(found), np.concatenate(labels), count)
        return ops.take(least, labels[self._kernels.index(kernel)])

    def _along(self, kernel: UncertainKernel, values: Any) -> Any:
        """Returns numbers of filters such that they broadcast against the kernel."""
        target = self._by_kernel[kernel.name]
        shape = [1] * len(kernel.variable.shape)
        shape[target.kernels[0].where.axis] = -1
        return ops.reshape(values, shape)

    def _allowed_bits(self, zeros: Mapping[str, np.ndarray]) -> dict[str, int]:
        bits = {}
        for kernel in self._kernels:
            values = kernel.values()
            scales = [self._along(kernel, values[name]) for name in _SCALE]
            found = normal_jeffreys.moments(values[MEAN], values["log_variance"], *scales)
            axis = self._by_kernel[kernel.name].kernels[0].where.axis
            kept = ~zeros[kernel.name]
            if kept.any():
                mean, variance = (np.compress(kept, as_numpy(x), axis=axis) for x in found)
                bits[kernel.name] = allowed_bits(mean, variance)
        return bits
