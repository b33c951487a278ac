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
from edgecompress.callbacks.noisy_kernels import NoisyKernels
from edgecompress.callbacks.posterior import (
    MEAN,
    UncertainKernel,
    add_bias,
    channel_axis,
    hidden_variable,
)
from edgecompress.core.options import named, named_config
from edgecompress.criteria.magnitude import Magnitude
from edgecompress.surgery.zero_filters import zero_filters
from edgecompress.variational import GROUP_PRIORS
from edgecompress.variational.group_prior import GroupPrior, moments, weights_divergence
from edgecompress.variational.precision import allowed_bits


class BayesianGroupSparsity(NoisyKernels):
    """Removes filters and neurons whose scale the data leave uncertain.

    All weights of a filter share a scale z with a prior that favors zero: Louizos, Ullrich and
    Welling, Bayesian Compression for Deep Learning, 2017, https://arxiv.org/abs/1705.08665, section
    4 (`variational.group_prior`):

        w = z * (mean + deviation * noise)

    Both are drawn at the outputs, z once for each filter and example (equation 10). The loss grows
    by the divergence of scales and weights from the prior, times `strength * warm-up / examples`.
    Priors are the group normal-Jeffreys one (section 4.1: `z = N(m, s ** 2)` with a log-uniform
    prior; filters go where the noise of z exceeds z) and the group horseshoe (section 4.2: half-
    Cauchy scales of filters and of the layer with log-normal posteriors; filters go where the mode
    of z is small).

    The kernel always holds `E z * mean`, with zeros for such filters: validation, checkpoints and
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
        threshold: Filters that are weaker become zero: with normal-jeffreys those with a larger
            `log(s ** 2 / m ** 2)`, with group-horseshoe those with a larger negative logarithm of
            the mode of z. The paper chooses it by the gap in a histogram. Defaults to None: 0, as
            much noise as signal, or 4.
        initial_log_variance: Where log variances start. Defaults to -9.
        prior: `normal-jeffreys` or `group-horseshoe`, with options
            (`group-horseshoe:global_scale=1e-5`), or an object of a class of
            `variational.GROUP_PRIORS`. Defaults to normal-jeffreys.
        examples, warm_up_epochs, strength, rate, layers, seed, posterior_file: As in
            `VariationalDropout`. Layers are those whose filters can be removed.

    Raises:
        EdgeCompressError: As `VariationalDropout`; also if `prior` is unknown.

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
        threshold: float | None = None,
        warm_up_epochs: int = 0,
        strength: float = 1.0,
        rate: float = 1.0,
        initial_log_variance: float = -9.0,
        layers: LayerChoice = None,
        seed: int = 0,
        posterior_file: str | Path | None = None,
        prior: str | GroupPrior = "normal-jeffreys",
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        self.prior = named(GROUP_PRIORS, prior, "prior")
        super().__init__(
            examples, self.prior.threshold if threshold is None else threshold, warm_up_epochs,
            strength, rate, initial_log_variance, layers, seed, posterior_file,
        )  # fmt: skip
        self._targets: ChannelTargets
        self._by_kernel: dict[str, ChannelTarget] = {}
        self._together: tuple[list[np.ndarray], int] | None = None

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {**super().settings(), "prior": named_config(GROUP_PRIORS, self.prior)}

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
        super().start(kernel)
        filters = self._by_kernel[kernel.name].filters
        for name, value in self.prior.start(filters, self.initial_log_variance).items():
            kernel.parts[name] = hidden_variable(value, name)

    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.divergence`."""
        weights = weights_divergence(values[MEAN], values["log_variance"])
        return self.prior.divergence(values) + weights

    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.deployed`: means, or zeros in filters with noise above the threshold."""
        weak = self._along(kernel, self._weakness(kernel) > self.threshold)
        scales, _ = self.prior.moments(values)
        # Not a product with 0: 0.0 and -0.0 are different bytes in a file.
        return ops.where(weak, 0.0, values[MEAN] * self._along(kernel, scales))

    def outputs(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """As `Posterior.outputs`, scaled with noise."""
        sums = self.noisy_sums(kernel, values, run, inputs)
        rank = len(sums.shape)
        axis = channel_axis(kernel.layer, rank)
        batch = ops.shape(sums)[0]
        noise = self.noise((batch, sums.shape[axis]), sums.dtype)
        scales = self.prior.draw(values, noise)
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
        return {"zero_filters": found, "allowed_bits": self.allowed_bits()}

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

    def _weakness(self, kernel: UncertainKernel) -> Any:
        """Returns how weak a kernel's filters are: as the strongest of those that go together."""
        found = [self.prior.weakness(other.values()) for other in self._kernels]
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

    def allowed_bits(self) -> dict[str, int]:
        """Returns the bits that the variances of each kernel's filters other than zero allow."""
        bits = {}
        for kernel in self._kernels:
            values, target = kernel.values(), self._by_kernel[kernel.name]
            scales = [self._along(kernel, values) for values in self.prior.moments(values)]
            found = moments(values[MEAN], ops.exp(values["log_variance"]), *scales)
            kept = ~target.zeros()
            if kept.any():
                axis = target.kernels[0].where.axis
                mean, variance = (np.compress(kept, as_numpy(x), axis=axis) for x in found)
                bits[kernel.name] = allowed_bits(mean, variance)
        return bits
