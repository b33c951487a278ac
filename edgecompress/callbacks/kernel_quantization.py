"""What binary, ternary and pattern training share: low-bit kernels backed by latent weights.

The kernel's variable always holds the values that will be deployed, so that the loss, validation,
checkpoints and quantization-aware training see them. The float weights behind them, called latent,
are variables of an `UpdateHook`. One update of the optimizer is

    before   gradient <- straight-through estimate;  kernel <- latent
    update   the optimizer moves the kernel: learning rate, momentum, weight decay, constraints
    after    latent <- kernel;  kernel <- quantize(latent)

all inside the compiled step, so `steps_per_execution` and `jit_compile` make no difference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import (
    ChosenKernel,
    LayerChoice,
    choose_kernels,
    layer_choice,
)
from edgecompress.core.arguments import check_whole
from edgecompress.core.errors import ArgumentError, ModelFileError, UnreadableFileError
from edgecompress.core.files import write_atomic
from edgecompress.core.keras_graph import outer_layers
from edgecompress.core.layer_kinds import int8_kernels
from edgecompress.core.reading import read_arrays

# Two computations of the same quantized weights differ by less than this, relative to the largest.
_SAME = 1e-5
_LATENT = "_edgecompress_latent_weights"


class QuantizedKernel:
    """A kernel that holds quantized values, and the variable behind it.

    Attributes:
        name: Name or path of its layer.
        variable: The kernel.
        axes: Axes whose indices have separate values.
        latent: The hook's latent variable, in the kernel's shape and type.
    """

    def __init__(self, kernel: ChosenKernel, axes: tuple[int, ...], latent: keras.Variable) -> None:
        """Takes the parts."""
        self.name, self.variable, self.axes, self.latent = (
            kernel.name,
            kernel.variable,
            axes,
            latent,
        )

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.variable.shape))

    def numpy(self) -> np.ndarray:
        """Returns the kernel's current values in float32."""
        return as_numpy(self.variable)


def as_numpy(values: Any) -> np.ndarray:
    """Returns a tensor or variable in float32."""
    return np.asarray(ops.convert_to_numpy(ops.cast(values, "float32")))


def scale_axes(kernel: ChosenKernel) -> tuple[int, ...] | None:
    """Returns the axes of a kernel that have int8 scales; None for a class int8 does not know."""
    known = {found.attribute: found.outputs for found in int8_kernels(kernel.layer)}
    return known.get(kernel.attribute)


class KernelQuantization(CompressionCallback):
    """Base of the callbacks that restrict kernels to a few values; a subclass says which.

    A subclass sets `technique` and `done` and defines the methods that raise NotImplementedError.

    Args:
        layers: Names of layers, or a predicate `layer -> bool`, or None.
        begin_epoch: Epoch in which it begins.
    """

    done = ""  # The verb for notes: "binarized".

    def __init__(self, layers: LayerChoice, begin_epoch: int) -> None:
        """Checks the arguments."""
        super().__init__()
        self.layers = layer_choice(layers)
        self.begin_epoch = check_whole("begin_epoch", begin_epoch)
        self._kernels: list[QuantizedKernel] = []
        self._hook: UpdateHook | None = None
        self._active = False

    def choose(self) -> list[tuple[ChosenKernel, tuple[int, ...]]]:
        """Returns the kernels to quantize and the axes that have separate values."""
        raise NotImplementedError

    def is_quantized(self, values: np.ndarray, axes: tuple[int, ...]) -> bool:
        """Returns whether a kernel already holds such values."""
        raise NotImplementedError

    def start(self, kernel: QuantizedKernel) -> None:
        """Quantizes a kernel for the first time, or resumes from what it finds."""
        raise NotImplementedError

    def estimate(self, kernel: QuantizedKernel, upstream_grad: Any) -> Any:
        """Returns the gradient that the optimizer applies; part of the compiled step."""
        raise NotImplementedError

    def quantize_after(self, kernel: QuantizedKernel) -> None:
        """Quantizes a kernel after an update; part of the compiled step."""
        raise NotImplementedError

    def is_current(self, kernel: QuantizedKernel) -> bool:
        """Returns whether a kernel holds what the last update left."""
        raise NotImplementedError

    def kernel_results(self) -> dict[str, Any]:
        """Returns what goes into the record."""
        raise NotImplementedError

    def attach(self) -> None:
        """Selects and hooks the kernels; nothing is quantized before `begin_epoch`."""
        self._active = False
        chosen = self.choose()
        variables = [kernel.variable for kernel, _ in chosen]
        hook = self.hook(UpdateHook(self._quantize, self._estimate, variables, exclusive=True))
        self._kernels = [
            QuantizedKernel(
                kernel,
                axes,
                hook.add_variable(
                    kernel.variable.shape, kernel.variable.dtype, f"{kernel.layer.name}_latent"
                ),
            )
            for kernel, axes in chosen
        ]
        self._hook = hook
        self.prepare(hook)

    def prepare(self, hook: UpdateHook) -> None:
        """Adds further variables to the hook."""

    def start_epoch(self, epoch: int) -> None:
        """Begins at the chosen epoch, or at once if an earlier fit has quantized the kernels."""
        if self._active or not (epoch >= self.begin_epoch or self._quantized_already()):
            return
        for kernel in self._kernels:
            if not np.isfinite(kernel.numpy()).all():
                raise ArgumentError(
                    "layers", "name layers with finite weights", kernel.name, "Did training fail?"
                )
            self.start(kernel)
        self._active = True
        self.session.trace(always=True)

    def settle(self) -> None:
        """Quantizes weights that were replaced at the end: restored or averaged ones."""
        if not self._active:
            self.note(
                f"{type(self).__name__} was never active: begin_epoch is {self.begin_epoch}, "
                f"training ended after epoch {self.params.get('epochs', 0) - 1}."
            )
            return
        for kernel in self._kernels:
            if self.is_current(kernel) or self.is_quantized(kernel.numpy(), kernel.axes):
                continue
            self.note(
                f"{kernel.name} was {self.done} again at the end of training: its weights were "
                "replaced by restored or averaged ones."
            )
            self.start(kernel)

    def results(self) -> Mapping[str, Any]:
        """Returns what goes into the record, even if it never began."""
        return self.kernel_results() if self._active else {"layers_quantized": 0}

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._kernels = []

    def _quantized_already(self) -> bool:
        return all(self.is_quantized(kernel.numpy(), kernel.axes) for kernel in self._kernels)

    def _estimate(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        if not self._active:
            return gradients
        own = {id(kernel.variable): kernel for kernel in self._kernels}
        estimated = [
            gradient
            if gradient is None or id(variable) not in own
            else self.estimate(own[id(variable)], ops.convert_to_tensor(gradient))
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        self.begin_update()
        return estimated

    def begin_update(self) -> None:
        """Called in the compiled step once all gradients are estimated, before the update."""

    def _quantize(self) -> None:
        if self._active:
            for kernel in self._kernels:
                self.quantize_after(kernel)


class LatentWeights(KernelQuantization):
    """Base of the callbacks that train latent weights behind quantized ones.

    A subclass defines `quantize`, `estimate` and `is_quantized`.

    Args:
        layers: Names of layers, or a predicate `layer -> bool`, or None.
        begin_epoch: Epoch in which it begins.
        per_channel: Whether each output channel has its own values.
        first_and_last: Whether the outermost layers are included if `layers` is None.
        latent_file: Where latent weights are stored between processes, or None.
    """

    prefix = ""  # Prefix of the history's keys: "binary".

    def __init__(
        self,
        layers: LayerChoice,
        begin_epoch: int,
        per_channel: bool,
        first_and_last: bool,
        latent_file: str | Path | None,
    ) -> None:
        """Checks the arguments."""
        super().__init__(layers, begin_epoch)
        for name, value in (("per_channel", per_channel), ("first_and_last", first_and_last)):
            if not isinstance(value, bool):
                raise ArgumentError(name, "be True or False", value)
        if latent_file is not None and not isinstance(latent_file, (str, Path)):
            raise ArgumentError("latent_file", "be a path, or None", latent_file)
        self.per_channel = per_channel
        self.first_and_last = first_and_last
        self.latent_file = None if latent_file is None else Path(latent_file)
        self._known: list[Mapping[str, np.ndarray]] = []
        self._epoch_signs: dict[str, np.ndarray] = {}

    def quantize(self, kernel: QuantizedKernel) -> Any:
        """Returns the quantized values of `kernel.latent`."""
        raise NotImplementedError

    def clip(self, latent: Any) -> Any:
        """Returns latent weights within their limits."""
        return latent

    def start_values(self, kernel: QuantizedKernel, values: np.ndarray) -> None:
        """Sets what quantizing needs besides the latent weights."""

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values, with the names of the chosen layers."""
        return {
            "per_channel": self.per_channel,
            "first_and_last": self.first_and_last,
            "layers": [kernel.name for kernel in self._kernels],
            "begin_epoch": self.begin_epoch,
        }

    def choose(self) -> list[tuple[ChosenKernel, tuple[int, ...]]]:
        """Returns the kernels that int8 files know, without the outermost ones."""
        kernels = choose_kernels(
            self.model, self.layers, self.done, self.note, lambda kind: bool(kind.int8_kernels)
        )
        chosen = []
        outer = self._outer() if self.layers is None and not self.first_and_last else {}
        for kernel in kernels:
            axes = scale_axes(kernel)
            if id(kernel.layer) in outer:
                self.note(
                    f"{kernel.name} is not {self.done}: it is {outer[id(kernel.layer)]} layer with "
                    "weights, where it costs most accuracy; it gets 8 bits in an int8 file. "
                    "first_and_last=True includes it."
                )
            elif axes is None:
                name = type(kernel.layer).__name__
                self.note(
                    f"{kernel.name} is not {self.done}: int8 does not support its class {name}."
                )
            else:
                chosen.append((kernel, axes if self.per_channel else ()))
        if not chosen:
            raise ArgumentError(
                "layers",
                f"leave at least one layer to be {self.done}",
                self.layers,
                " ".join(self.notes),
            )
        return chosen

    def _outer(self) -> dict[int, str]:
        first, last = outer_layers(self.model, lambda layer: bool(int8_kernels(layer)))
        return {id(layer): "the last" for layer in last} | {
            id(layer): "the first" for layer in first
        }

    def attach(self) -> None:
        """Reads the latent weights of an earlier process, too."""
        super().attach()
        self._known = [getattr(self.model, _LATENT, {})]
        if self.latent_file is not None:
            if not self.latent_file.parent.is_dir():
                raise ArgumentError(
                    "latent_file", "lie in a folder that exists", str(self.latent_file)
                )
            if self.latent_file.exists():
                self._known.append(read_latent(self.latent_file))

    def start(self, kernel: QuantizedKernel) -> None:
        """Resumes from the latent weights of an earlier fit if they belong to the kernel."""
        values = kernel.numpy()
        self.start_values(kernel, values)
        for known in self._known:
            latent = known.get(kernel.name)
            if latent is not None and latent.shape == values.shape:
                kernel.latent.assign(latent)
                if self.is_current(kernel):
                    return
        if self.is_quantized(values, kernel.axes) and not self._active:
            self.note(
                f"{kernel.name} starts from its {self.prefix} values: the latent weights of an "
                "earlier training are not known (see latent_file)."
            )
        clipped = self.clip(ops.convert_to_tensor(values))
        share = float(np.mean(as_numpy(clipped) != values))
        if share:
            self.note(
                f"{kernel.name}: {share:.1%} of the latent weights were clipped when it began."
            )
        kernel.latent.assign(clipped)
        kernel.variable.assign(ops.cast(self.quantize(kernel), kernel.variable.dtype))

    def is_current(self, kernel: QuantizedKernel) -> bool:
        """Returns whether the latent weights belong to what the kernel holds."""
        values, quantized = kernel.numpy(), as_numpy(self.quantize(kernel))
        return bool(np.abs(quantized - values).max() <= _SAME * np.abs(values).max())

    def begin_update(self) -> None:
        """Lets the optimizer move the latent weights; part of the compiled step."""
        for kernel in self._kernels:
            kernel.variable.assign(ops.convert_to_tensor(kernel.latent))

    def quantize_after(self, kernel: QuantizedKernel) -> None:
        """Takes the moved weights as latent ones and quantizes them; part of the compiled step."""
        kernel.latent.assign(self.clip(ops.convert_to_tensor(kernel.variable)))
        kernel.variable.assign(ops.cast(self.quantize(kernel), kernel.variable.dtype))

    def start_epoch(self, epoch: int) -> None:
        """Begins at the chosen epoch; remembers the signs to count changes."""
        super().start_epoch(epoch)
        if self._active:
            self._epoch_signs = {k.name: np.sign(k.numpy()).astype("int8") for k in self._kernels}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs how many weights changed, and stores the latent weights."""
        flips = {
            k.name: int(np.sum(np.sign(k.numpy()) != self._epoch_signs[k.name]))
            if self._active
            else 0
            for k in self._kernels
        }
        sizes = {k.name: k.size for k in self._kernels}
        total = sum(flips.values()) / sum(sizes.values())
        name = f"{self.prefix}_flips"
        details = {f"{name}/{layer}": count / sizes[layer] for layer, count in flips.items()}
        self.log(epoch, logs, {name: total, **self.epoch_values()}, details)
        if self._active:
            self._keep()

    def epoch_values(self) -> dict[str, float]:
        """Returns more values for the history."""
        return {}

    def settle(self) -> None:
        """Quantizes weights that were replaced; the latent ones are kept for a later fit."""
        self._known, self._epoch_signs = [], {}
        super().settle()
        if self._active:
            self._keep()

    def _keep(self) -> None:
        latent = {kernel.name: as_numpy(kernel.latent) for kernel in self._kernels}
        # Past Keras's attribute tracking: the model must not own anything of this.
        object.__setattr__(self.model, _LATENT, {**getattr(self.model, _LATENT, {}), **latent})
        if self.latent_file is not None:
            buffer = io.BytesIO()
            np.savez(buffer, **latent)
            write_atomic(self.latent_file, buffer.getvalue())


def read_latent(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays that an earlier process has stored.

    Raises:
        ModelFileError: the file cannot be read, or is of another kind.
    """
    try:
        arrays = read_arrays(path)
    except UnreadableFileError as error:
        raise ModelFileError(f"{error} Delete it to start from the model's own weights.") from error
    if not isinstance(arrays, dict):
        raise ModelFileError(
            f"{path} is not an .npz file. Delete it to start from the model's own weights."
        )
    return arrays


def per_channel_list(values: Any) -> Sequence[float]:
    """Returns values of a kernel's channels as a flat list for the record."""
    return [float(value) for value in np.ravel(as_numpy(values))]
