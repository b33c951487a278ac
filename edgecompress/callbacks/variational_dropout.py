"""Sparse variational dropout: training learns what noise each weight bears, and noise prunes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras import ops

from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.callbacks.noisy_kernels import NoisyKernels
from edgecompress.callbacks.posterior import MEAN, UncertainKernel
from edgecompress.variational import log_uniform


class VariationalDropout(NoisyKernels):
    """Prunes weights whose noise drowns them, and learns the noise in `fit`.

    Each weight is `w = N(mean, variance)` with a variance of its own, in the additive
    parametrization of Molchanov, Ashukha and Vetrov, Variational Dropout Sparsifies Deep Neural
    Networks, 2017, https://arxiv.org/abs/1701.05369, equation (15). The loss grows by

        strength * warm-up / examples * sum over weights of KL(q(w) || log-uniform prior)

    with their approximation (equation 14), and the noise is drawn at the outputs (local
    reparametrization: Kingma, Salimans and Welling, 2015, https://arxiv.org/abs/1506.02557). The
    divergence falls as `alpha = variance / mean ** 2` grows, so each weight gets as much noise as
    the data allow; those with `log alpha > threshold` become zero.

    The kernel always holds the means, with zeros where `log alpha` is above the threshold:
    validation, checkpoints and `fit`'s result are the pruned network, without noise. Only the
    training step computes with noise. A trained network with `warm_up_epochs` is where it begins
    best. Afterwards `KeepSparsity` keeps the zeros, `finalize` and export read them as those of any
    pruning. Each `fit` warms up anew.

    A later fit on the same model object resumes from the posterior. A saved model holds only the
    weights; after `load_model` or BackupAndRestore the variances start anew, unless
    `posterior_file` says where they are stored.

    History: `divergence`, in nats, and `posterior_sparsity`, in all and as
    `posterior_sparsity/<layer>`. The record's step `variational_dropout` holds the sparsities and
    `allowed_bits`, the bits that the variances of the kept weights would allow in each layer
    (`variational.precision`). `fit`'s loss contains the divergence, `val_loss` does not.

    Args:
        examples: Number of training examples. The loss is a mean over them, the divergence is for
            all of them.
        threshold: Weights with a larger `log alpha` become zero. Defaults to 3, the paper's.
        warm_up_epochs: Number of epochs over which the divergence's factor grows from
            `1 / warm_up_epochs` of it to all of it. Defaults to 0: all from the first epoch on.
        strength: Factor of the divergence; 1 is Bayes' rule. Defaults to 1.
        rate: Learning rate of the log variances divided by the optimizer's. They have far to go:
            with Adam, 10 needs a tenth of the epochs. Defaults to 1.
        initial_log_variance: Where log variances start. Defaults to -10.
        layers: Names of the layers, or a predicate `layer -> bool`. Defaults to None: all Dense,
            Conv1D, Conv2D and transposed convolutions; depthwise layers only if named.
        seed: Of the noise. Defaults to 0.
        posterior_file: A .npz file to which the posterior is written after every epoch, and from
            which it is read when training begins if it matches the model's weights. Defaults to
            None.

    Raises:
        ArgumentError: an argument breaks its rule; when training begins also if no layer is left,
            another callback of the fit sets the same weights, Keras runs on JAX, or several devices
            train copies of the model.
        UnknownNameError: a layer is unknown.
        UnsupportedModelError: when training begins, the model is subclassed or has its own
            `train_step` or `compute_loss`.
        ModelFileError: `posterior_file` cannot be read.

    Example:
        >>> dropout = VariationalDropout(examples=len(x), warm_up_epochs=10)  # doctest: +SKIP
        >>> model.fit(x, y, epochs=40, callbacks=[dropout])  # doctest: +SKIP
    """

    technique = "variational_dropout"
    done = "sparsified"

    def __init__(
        self,
        examples: int,
        threshold: float = 3.0,
        warm_up_epochs: int = 0,
        strength: float = 1.0,
        rate: float = 1.0,
        initial_log_variance: float = -10.0,
        layers: LayerChoice = None,
        seed: int = 0,
        posterior_file: str | Path | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        super().__init__(
            examples, threshold, warm_up_epochs, strength, rate, initial_log_variance, layers, seed,
            posterior_file,
        )  # fmt: skip

    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.divergence`."""
        return ops.sum(log_uniform.divergence(self._log_alpha(values)))

    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """As `Posterior.deployed`: means, or zeros where noise is above the threshold."""
        return ops.where(self._log_alpha(values) > self.threshold, 0.0, values[MEAN])

    def kernel_results(self) -> dict[str, Any]:
        """Returns the sparsities, and the bits that the variances allow."""
        return {**self.sparsities(), "allowed_bits": self.allowed_bits()}

    def _log_alpha(self, values: Mapping[str, Any]) -> Any:
        return log_uniform.log_alpha(values[MEAN], values["log_variance"])
