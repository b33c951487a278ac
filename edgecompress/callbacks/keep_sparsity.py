"""Keeping zeros: training that goes on after pruning, without further pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.fused import fused
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.callbacks.layer_choice import (
    ChosenKernel,
    LayerChoice,
    choose_kernels,
    layer_choice,
)
from edgecompress.callbacks.masked import mask_weights
from edgecompress.core.errors import ArgumentError
from edgecompress.surgery.channels import read_weights
from edgecompress.surgery.groups import zero_filters_of
from edgecompress.surgery.rules import producers_of
from edgecompress.surgery.zero_filters import FrozenZeros, frozen_zeros


@dataclass(frozen=True)
class _Kept:
    """A variable with zeros, and where it may differ from zero.

    Attributes:
        layer: Its layer; empty where it is not a kernel but belongs to filters of zeros.
        kernel: It.
        mask: True where it may; broadcasts to it.
    """

    layer: str
    kernel: keras.Variable
    mask: keras.Variable

    def apply(self) -> None:
        mask_weights(self.kernel, ops.convert_to_tensor(self.mask))


class KeepSparsity(CompressionCallback):
    """Keeps every weight at zero that is zero when training begins.

    For any `fit` after pruning: fine-tuning, distillation, a lottery ticket. Optimizers move zeros
    as they move all weights, so without it (or the pruning callback itself) they grow back. It
    works inside the compiled train step, as `Pruning` does. Where whole filters, units or heads are
    zero, as `ChannelPruning` and `GroupLasso` leave them, the zeros of their biases and
    normalization stay, too, so that `finalize` can still remove them.

    Args:
        layers: As in `Pruning`. Defaults to None: every layer with zeros.

    Raises:
        ArgumentError: at the start of `fit`, no layer has a weight of zero, and none was named.
        UnknownNameError: a name is not a layer of the model.
        UnsupportedModelError: at the start of `fit`, the model is subclassed.

    Example:
        >>> model.fit(x, y, epochs=5, callbacks=[KeepSparsity()])  # doctest: +SKIP
    """

    technique = "keep_sparsity"

    def __init__(self, layers: LayerChoice = None) -> None:
        """Keeps the choice; the model is looked at when training begins."""
        super().__init__()
        self.layers = layer_choice(layers)
        self._kept: list[_Kept] = []
        self._chosen: list[Any] = []
        self._apply: Callable[[], Any] = bool
        self._started = False

    def settings(self) -> Mapping[str, Any]:
        """Returns the names of the layers."""
        return {"layers": [kept.layer for kept in self._kept if kept.layer]}

    def attach(self) -> None:
        """Hooks the masks into the optimizer."""
        choice = _Every() if self.layers is None else self.layers
        kernels = [
            kernel
            for kernel in choose_kernels(self.model, choice, "kept sparse", self.note)
            if self.layers is not None or _zeros(kernel.variable)
        ]
        self._chosen = [kernel.layer for kernel in kernels]
        beside = self._beside(kernels)
        if not kernels and not beside:
            rule = "be given for a model without weights of zero"
            raise ArgumentError("layers", rule, self.layers, "Prune the model first.")
        for kernel in kernels:
            if not _zeros(kernel.variable):
                self.note(f"{kernel.name} has no weights of zero to keep.")
        assigns = [kernel.variable for kernel in kernels] + [found.variable for found in beside]
        hook = self.hook(UpdateHook(self._keep, assigns=assigns))
        self._kept = [
            _Kept(
                kernel.name,
                kernel.variable,
                hook.add_variable(kernel.variable.shape, "bool", f"{kernel.layer.name}_kept_mask"),
            )
            for kernel in kernels
        ]
        self._kept += [
            _Kept("", x.variable, hook.add_variable(x.mask.shape, "bool", f"{x.name}_kept_mask"))
            for x in beside
        ]
        largest = [kernel.variable for kernel in kernels] or assigns
        self._apply = fused(self._mask_all, self.model, largest)
        self._started = False

    def start_epoch(self, epoch: int) -> None:
        """Reads the zeros, once every callback has restored its state."""
        if not self._started:
            beside: dict[int, np.ndarray] = {}
            for found in self._beside([]):
                beside[id(found.variable)] = found.mask * beside.get(id(found.variable), 1.0)
            for kept in self._kept:
                free = ops.not_equal(ops.convert_to_tensor(kept.kernel), 0.0)
                if not kept.layer:
                    free = beside.get(id(kept.kernel), np.ones(kept.mask.shape)) > 0
                kept.mask.assign(free)
            self._started = True

    def settle(self) -> None:
        """Masks the weights once more: with weight averaging, `fit` has just replaced them."""
        self._mask_all()

    def results(self) -> Mapping[str, Any]:
        """Returns the sparsity of each layer."""
        return {
            "layer_sparsity": {
                kept.layer: _zeros(kept.kernel) / int(np.prod(kept.kernel.shape))
                for kept in self._kept
                if kept.layer
            }
        }

    def detach(self) -> None:
        """Releases the model; see `HookedCallback.detach`."""
        super().detach()
        self._kept, self._chosen = [], []
        self._apply = bool

    def _beside(self, kernels: Sequence[ChosenKernel]) -> list[FrozenZeros]:
        """Returns what else belongs to filters of zeros: what these kernels do not hold."""
        chosen = None if self.layers is None else {id(x) for x in self._chosen}
        weights = read_weights(self.model)
        paths = [
            path
            for path, producer in producers_of(self.model).items()
            if (chosen is None or id(producer.layer) in chosen)
            and zero_filters_of(producer.filters, weights[producer.owner]).any()
        ]
        own = {id(kernel.variable) for kernel in kernels}
        return [
            found
            for found in (frozen_zeros(self.model, paths) if paths else [])
            if found.variable.trainable and id(found.variable) not in own
        ]

    def _keep(self) -> None:
        self._apply()

    def _mask_all(self) -> bool:
        for kept in self._kept:
            kept.apply()
        return True


class _Every:
    """Chooses every layer, those that are left out by default, too; None in messages."""

    def __call__(self, layer: Any) -> bool:
        return True

    def __repr__(self) -> str:
        return "None"


def _zeros(kernel: keras.Variable) -> int:
    values = ops.convert_to_numpy(kernel)
    return int(values.size - np.count_nonzero(values))
