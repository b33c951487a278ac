"""Training in which kernels are distributions; they end as plain weights.

What variational dropout, Bayesian groups, variational quantization and soft weight sharing have in
common. The kernel's variable always holds the weights that would be deployed, so that validation,
checkpoints and quantization-aware training see them. Behind it are the mean of each weight and
further parameters: variances, scales of groups, levels of a prior. A training step computes with
those, and the divergence from the prior joins its loss as the kernel's regularizer. One update is

    before   kernel <- mean
    update   the optimizer moves the kernel: learning rate, momentum, weight decay, constraints
    after    an optimizer of the same kind moves the parameters (`learnt_bounds`);
             mean <- kernel;  kernel <- what would be deployed

all inside the compiled step.
"""

from __future__ import annotations

import functools
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.hooks import UpdateHook, Wrapping, own_training
from edgecompress.callbacks.kernel_quantization import as_numpy, read_latent
from edgecompress.callbacks.layer_choice import (
    ChosenKernel,
    LayerChoice,
    choose_kernels,
    layer_choice,
)
from edgecompress.callbacks.learnt_bounds import LearntBounds
from edgecompress.core.arguments import check_positive, check_whole
from edgecompress.core.errors import ArgumentError, UnsupportedModelError
from edgecompress.core.files import write_atomic
from edgecompress.core.layer_kinds import LayerKind, exact_kind_of
from edgecompress.core.record import record_of

# Two computations of the same weights differ by less than this, relative to the largest.
_SAME = 1e-5
_POSTERIOR = "_edgecompress_posterior"
MEAN = "mean"


class UncertainKernel:
    """A kernel that is a distribution in training.

    Attributes:
        name: Name or path of its layer.
        layer: The layer.
        variable: The kernel, which holds what would be deployed.
        attribute: Its name in the layer.
        mean: The mean of each weight.
        parts: The other parameters, by name.
    """

    def __init__(self, kernel: ChosenKernel) -> None:
        """Starts with the kernel's weights as means."""
        self.name, self.layer, self.variable = kernel.name, kernel.layer, kernel.variable
        self.attribute = kernel.attribute
        self.mean = hidden_variable(as_numpy(kernel.variable), MEAN)
        self.parts: dict[str, keras.Variable] = {}

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.variable.shape))

    def numpy(self) -> np.ndarray:
        """Returns the weights that would be deployed."""
        return as_numpy(self.variable)

    def values(self) -> dict[str, Any]:
        """Returns mean and parts as tensors."""
        found = {MEAN: self.mean, **self.parts}
        return {name: ops.convert_to_tensor(variable) for name, variable in found.items()}

    def assign(self, values: Mapping[str, Any]) -> None:
        """Sets mean and parts."""
        for name, variable in {MEAN: self.mean, **self.parts}.items():
            variable.assign(values[name])


def hidden_variable(value: np.ndarray, name: str) -> keras.Variable:
    """Returns a variable that is no weight of the model."""
    return keras.Variable(value, dtype="float32", trainable=False, autocast=False, name=name)


class Posterior(CompressionCallback, ABC):
    """Base of the callbacks whose kernels have parameters beside their weights in training.

    A subclass sets `technique` and `done` and defines the abstract methods.

    Args:
        examples: Number of training examples, by which the divergence is divided.
        strength: Factor of the divergence.
        warm_up_epochs: Number of epochs over which that factor grows from 0.
        rate: Learning rate of the parameters divided by that of the weights.
        layers: Names of layers, or a predicate `layer -> bool`, or None.
        posterior_file: Where the posterior is stored between processes, or None.
    """

    done = ""  # The verb for notes: "sparsified".

    def __init__(
        self,
        examples: int,
        strength: float,
        warm_up_epochs: int,
        rate: float,
        layers: LayerChoice,
        posterior_file: str | Path | None,
    ) -> None:
        """Checks the arguments."""
        super().__init__()
        self.examples = check_whole("examples", examples, 1)
        self.warm_up_epochs = check_whole("warm_up_epochs", warm_up_epochs, 0)
        self.strength = check_positive("strength", strength)
        self.rate = check_positive("rate", rate)
        self.layers = layer_choice(layers)
        if posterior_file is not None and not isinstance(posterior_file, (str, Path)):
            raise ArgumentError("posterior_file", "be a path, or None", posterior_file)
        self.posterior_file = None if posterior_file is None else Path(posterior_file)
        self._kernels: list[UncertainKernel] = []
        # In a step that is being traced: kernel -> mean and parts, with gradients.
        self._traced: dict[str, dict[str, Any]] = {}
        self._training = self._started = False
        self._found: dict[str, Mapping[str, Any]] = {}

    # What a subclass defines.

    @abstractmethod
    def start(self, kernel: UncertainKernel) -> None:
        """Creates `kernel.parts` with the values that they start from."""

    @abstractmethod
    def divergence(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """Returns the divergence of a kernel's posterior from its prior, in nats; a tensor."""

    @abstractmethod
    def deployed(self, kernel: UncertainKernel, values: Mapping[str, Any]) -> Any:
        """Returns the weights that would be deployed, a tensor of the kernel's shape."""

    @abstractmethod
    def outputs(
        self,
        kernel: UncertainKernel,
        values: Mapping[str, Any],
        run: Callable[[Any], Any],
        inputs: Any,
    ) -> Any:
        """Returns a layer's outputs before its activation; part of the step.

        Args:
            kernel: The layer's kernel.
            values: Its mean and parts.
            run: Computes the layer.
            inputs: Its inputs.
        """

    @abstractmethod
    def kernel_results(self) -> dict[str, Any]:
        """Returns what goes into the record."""

    def allowed(self, name: str) -> Callable[[Any], Any]:
        """Returns what gives the nearest allowed values of a part after an update."""
        return lambda values: values

    def refine(self, kernels: list[ChosenKernel]) -> list[ChosenKernel]:
        """Returns those of the chosen kernels that it can work on; notes the others."""
        return kernels

    def finish(self) -> None:
        """Called at the end of training, when the kernels hold what is deployed."""

    # What all share.

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            "examples": self.examples,
            "strength": self.strength,
            "warm_up_epochs": self.warm_up_epochs,
            "rate": self.rate,
            "layers": [kernel.name for kernel in self._kernels],
        }

    def attach(self) -> None:
        """Chooses the kernels and hooks them in.

        Raises:
            UnsupportedModelError: the model's own `train_step` or `compute_loss` may leave the
                divergence out.
        """
        own = own_training(self.model)
        if own is not None:
            raise UnsupportedModelError(
                f"Model {self.model.name!r} has its own {own}, which may leave the divergence of "
                f"{type(self).__name__} out of its loss. Train it with Keras's own."
            )
        self._kernels = [UncertainKernel(kernel) for kernel in self._choose()]
        self._started, self._traced, self._found = False, {}, {}
        self._weight = hidden_variable(np.zeros(()), "divergence_weight")
        what = f"{type(self).__name__}'s parameters"
        device = ("model", f"be trained on one device by {type(self).__name__}", "Use one device.")
        self._bounds = LearntBounds(self.model, what, device, self.rate)
        for kernel in self._kernels:
            self.start(kernel)
            for name, variable in kernel.parts.items():
                self._bounds.add(_path(kernel, name), variable, self.allowed(name))
        update = self._bounds.hook()
        if update is None:
            raise RuntimeError(f"{type(self).__name__} has no parameters.")
        self._update = update.after or (lambda: None)
        variables = [kernel.variable for kernel in self._kernels]
        self.hook(UpdateHook(self._deploy, self._release, variables, exclusive=True))
        self._bounds.prepare()
        self.hook(Wrapping(self.model, "call", self._model_call))
        for kernel in self._kernels:
            call = functools.partial(self._layer_call, kernel)
            self.hook(Wrapping(kernel.layer, "call", call, innermost=True))
            loss = functools.partial(self._regularizer, kernel)
            self.hook(Wrapping(kernel.variable, "regularizer", loss))
        self._known = [getattr(self.model, _POSTERIOR, {}).get(self.technique, {})]
        if self.posterior_file is not None:
            if not self.posterior_file.parent.is_dir():
                raise ArgumentError(
                    "posterior_file", "lie in a folder that exists", str(self.posterior_file)
                )
            if self.posterior_file.exists():
                self._known.append(_nested(read_latent(self.posterior_file)))

    def start_epoch(self, epoch: int) -> None:
        """Resumes or starts the posterior, once every callback has restored its state."""
        if not self._started:
            for kernel in self._kernels:
                self._resume(kernel)
            self._started = True
        done = 1.0 if not self.warm_up_epochs else min(1.0, (epoch + 1) / self.warm_up_epochs)
        self._weight.assign(self.strength * done / self.examples)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the divergence and what would be deployed, and stores the posterior."""
        values, details = self.epoch_values()
        nats = sum(float(self.divergence(k, k.values())) for k in self._kernels)
        self.log(epoch, logs, {"divergence": nats, **values}, details)
        self._found[self._fingerprint()] = self.kernel_results()
        self._keep()

    def epoch_values(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns values for the history, and more for the history alone: the share of zeros."""
        zeros = {k.name: float(np.mean(k.numpy() == 0)) for k in self._kernels}
        total = sum(zeros[k.name] * k.size for k in self._kernels)
        return (
            {"posterior_sparsity": total / sum(k.size for k in self._kernels)},
            {f"posterior_sparsity/{name}": share for name, share in zeros.items()},
        )

    def settle(self) -> None:
        """Deploys weights that were replaced at the end: averaged ones, for instance."""
        if self._fingerprint() not in self._found:
            for kernel in self._kernels:
                if self._is_current(kernel):
                    continue
                kernel.mean.assign(kernel.numpy())
                self._assign(kernel)
                self.note(
                    f"{kernel.name} was {self.done} again at the end of training: its weights were "
                    "replaced, by averaged ones for instance, and its uncertainty is that of the "
                    "last step."
                )
            self._found[self._fingerprint()] = self.kernel_results()
            self._keep()
        self._results = self._found[self._fingerprint()]
        self.finish()

    def results(self) -> Mapping[str, Any]:
        """Returns what goes into the record: of the epoch whose weights `fit` leaves."""
        return self._results

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._kernels, self._traced, self._found, self._known = [], {}, {}, []

    def sparsities(self) -> dict[str, Any]:
        """Returns the share of zeros, of all kernels and of each."""
        values, details = self.epoch_values()
        return {
            "sparsity": values["posterior_sparsity"],
            "layer_sparsity": {name.partition("/")[2]: x for name, x in details.items()},
        }

    def _choose(self) -> list[ChosenKernel]:
        chosen = []
        for kernel in choose_kernels(self.model, self.layers, self.done, self.note, _suits):
            kind = type(kernel.layer).__name__
            reason = None
            if exact_kind_of(kernel.layer) is None:
                reason = f"its class {kind} may compute anything"
            elif kernel.layer.compute_dtype != "float32":
                reason = f"it computes in {kernel.layer.compute_dtype}"
            elif not np.isfinite(as_numpy(kernel.variable)).all():
                raise ArgumentError(
                    "layers", "name layers with finite weights", kernel.name, "Did training fail?"
                )
            if reason is None:
                chosen.append(kernel)
            else:
                self.note(f"{kernel.name} is not {self.done}: {reason}.")
        chosen = self.refine(chosen) if chosen else []
        if not chosen:
            rule = f"leave at least one layer to be {self.done}"
            raise ArgumentError("layers", rule, self.layers, " ".join(self.notes))
        return chosen

    def _resume(self, kernel: UncertainKernel) -> None:
        weights, begun = kernel.numpy(), kernel.values()
        for known in self._known:
            values = known.get(kernel.name, {})
            if set(values) == set(begun) and all(
                values[name].shape == tuple(begun[name].shape) for name in begun
            ):
                kernel.assign(values)
                if self._is_current(kernel):
                    return
        if self._begun():
            self.note(
                f"{kernel.name} starts anew from its weights: the posterior of its earlier "
                f"training is not known (see posterior_file)."
            )
        kernel.assign({**begun, MEAN: weights})
        # Another callback may have restored other weights since `start`.
        self.restart(kernel)
        self._assign(kernel)

    def _begun(self) -> bool:
        """Returns whether an earlier fit has worked on the model."""
        return any(step.get("technique") == self.technique for step in record_of(self.model).steps)

    def restart(self, kernel: UncertainKernel) -> None:
        """Sets `kernel.parts` for the weights that training begins from, if they depend on them."""

    def _is_current(self, kernel: UncertainKernel) -> bool:
        weights, found = kernel.numpy(), as_numpy(self.deployed(kernel, kernel.values()))
        return bool(np.abs(found - weights).max() <= _SAME * np.abs(weights).max())

    def _assign(self, kernel: UncertainKernel) -> None:
        kernel.variable.assign(self.deployed(kernel, kernel.values()))

    def _model_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def model_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self._training = bool(args[0] if args else kwargs.get("training"))
            self._traced = (
                {kernel.name: self._with_gradients(kernel) for kernel in self._kernels}
                if self._training
                else {}
            )
            try:
                return call(inputs, *args, **kwargs)
            finally:
                self._training = False

        return model_call

    def _with_gradients(self, kernel: UncertainKernel) -> dict[str, Any]:
        """Returns mean and parts such that gradients reach them.

        The gradient of the mean is the kernel's; those of the parts are left for their update.
        """
        hidden = {name: ops.stop_gradient(value) for name, value in kernel.values().items()}
        names = list(hidden)

        def forward(_: Any) -> Any:
            def backward(*gradients: Any, upstream: Any = None) -> Any:
                found = gradients if upstream is None else upstream
                for name, gradient in zip(names[1:], found[1:], strict=True):
                    self._bounds.found(_path(kernel, name), gradient)
                return found[0]

            return tuple(hidden.values()), backward

        values = ops.custom_gradient(forward)(ops.convert_to_tensor(kernel.variable))
        return dict(zip(names, values, strict=True))

    def _layer_call(self, kernel: UncertainKernel, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def uncertain_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._training:
                return call(inputs, *args, **kwargs)

            def run(values: Any) -> Any:
                return call(values, *args, **kwargs)

            outputs = self.outputs(kernel, self._traced[kernel.name], run, inputs)
            return kernel.layer.activation(outputs) if _activated(kernel.layer) else outputs

        return uncertain_call

    def _regularizer(
        self, kernel: UncertainKernel, inner: Callable[[Any], Any] | None
    ) -> Callable[[Any], Any]:
        def regularizer(value: Any) -> Any:
            values = self._traced.get(kernel.name)
            if values is None:
                return ops.zeros(()) if inner is None else inner(value)
            nats = self.divergence(kernel, values) * ops.convert_to_tensor(self._weight)
            return nats if inner is None else nats + inner(values[MEAN])

        return regularizer

    def _release(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Lets the optimizer move the means; part of the compiled step."""
        self._traced = {}
        for kernel in self._kernels:
            kernel.variable.assign(ops.convert_to_tensor(kernel.mean))
        return gradients

    def _deploy(self) -> None:
        """Moves the parameters and takes over the means; part of the compiled step."""
        self._update()
        for kernel in self._kernels:
            kernel.mean.assign(ops.convert_to_tensor(kernel.variable))
            self._assign(kernel)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for kernel in self._kernels:
            digest.update(kernel.numpy().tobytes())
        return digest.hexdigest()

    def _keep(self) -> None:
        known = {
            kernel.name: {name: as_numpy(value) for name, value in kernel.values().items()}
            for kernel in self._kernels
        }
        others = getattr(self.model, _POSTERIOR, {})
        # Past Keras's attribute tracking: the model must not own anything of this.
        object.__setattr__(self.model, _POSTERIOR, {**others, self.technique: known})
        if self.posterior_file is not None:
            buffer = io.BytesIO()
            arrays = {f"{k}:{name}": x for k, values in known.items() for name, x in values.items()}
            np.savez(buffer, **arrays)
            write_atomic(self.posterior_file, buffer.getvalue())


def channel_axis(layer: Any, rank: int) -> int:
    """Returns the axis that counts the channels of a layer's outputs."""
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return 1 if first and rank > 2 else rank - 1


def add_bias(layer: Any, sums: Any) -> Any:
    """Returns sums of products with a layer's bias, if it has one."""
    bias = getattr(layer, "bias", None)
    if bias is None:
        return sums
    rank = len(sums.shape)
    shape = [1] * rank
    shape[channel_axis(layer, rank)] = -1
    return sums + ops.reshape(ops.convert_to_tensor(bias), shape)


def _suits(kind: LayerKind) -> bool:
    """Returns whether the sums of products of a kind are linear in one kernel."""
    return len(kind.kernels) == 1 and bool(kind.int8_kernels) and not kind.one_bit


def _activated(layer: Any) -> bool:
    return getattr(layer, "activation", None) is not None


def _path(kernel: UncertainKernel, part: str) -> str:
    return f"{kernel.name}:{part}"


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        name, _, part = path.rpartition(":")
        found.setdefault(name, {})[part] = value
    return found
