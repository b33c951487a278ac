"""Writes kernels as products of smaller ones: the rewrite `low-rank`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import LayerCall, layer_calls, named_layers
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.options import Choice, Flag, Text, option, share, whole
from edgecompress.surgery.factors import FACTORIZATIONS
from edgecompress.surgery.factors.base import (
    Factorization,
    Part,
    composed,
    multiply_accumulates,
)
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten

BEST = "best"
# What `best` tries: those with a closed form.
_CLOSED = ("channels", "spatial", "tucker")
_ENERGY = 0.9
_ALL = ".*"
_FAMILIES = ("dense", "convolution")
# The end of the names of the layers that take another's place: they are not factorized again.
_PART = "_factor"
# From this share of zeros on, a kernel counts as pruned.
_PRUNED = 0.05


@REWRITES.register("low-rank")
@dataclass(frozen=True)
class LowRank(Rewrite):
    """Replaces Dense layers and convolutions by two or three smaller layers.

    The kernel is approximated by a product of smaller kernels. That changes the outputs, so train
    the model further. A layer that would take as many multiply-accumulates as before is left as it
    is, and the notes say so. One of `energy`, `macs` and `rank` says how far to go.

    Args:
        method: How convolutions are factorized. `best` chooses for each layer: the fewest
            multiply-accumulates at an `energy`, or the smallest error at `macs` or a `rank`. Dense
            layers and 1x1 convolutions are matrices and always factorized by `channels`.
        energy: Share of the sum of a kernel's squares that stays, 0.9 if nothing else is given.
        macs: Share of each layer's multiply-accumulates that stays.
        rank: Rank of every layer, or less where a kernel has less.
        layers: Regular expression: the layers whose whole name it matches.
        slower: Whether layers that become more expensive are factorized, too.

    Raises:
        ArgumentError: more than one of `energy`, `macs` and `rank`; `layers` is no regular
            expression or matches no layer.
    """

    exact: ClassVar[bool] = False

    method: str = option(
        BEST, "How convolutions are factorized.", Choice(names=lambda: (BEST, *FACTORIZATIONS))
    )
    energy: float | None = option(None, "Share of each kernel's squares that stays.", share())
    macs: float | None = option(None, "Share of each layer's MACs that stays.", share())
    rank: int | None = option(None, "Rank of every layer.", whole(1))
    layers: str = option(_ALL, "Regular expression: names of the layers to factorize.", Text())
    slower: bool = option(False, "Also factorize layers that become more expensive.", Flag())

    def __post_init__(self) -> None:
        """Refuses options that contradict each other."""
        given = [name for name in ("energy", "macs", "rank") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(given[1], f"be left out beside {given[0]}", getattr(self, given[1]))
        if self.macs == 0:
            raise ArgumentError("macs", "be greater than 0", self.macs)
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ArgumentError("layers", "be a regular expression", self.layers) from error

    def apply(self, model: Any) -> Rewritten:
        """Returns the model with smaller layers; see `Rewrite.apply`."""
        from edgecompress.core.model_copy import copy_model

        calls: dict[int, list[LayerCall]] = {}
        for call in layer_calls(model):
            calls.setdefault(id(call.layer), []).append(call)
        chosen = {
            path: layer
            for path, layer in named_layers(model)
            if _has_kernel(layer) and re.fullmatch(self.layers, path)
        }
        if not chosen and self.layers != _ALL:
            raise ArgumentError(
                "layers", "match the name of a Dense layer or convolution", self.layers
            )
        replaced, details, notes = {}, {}, []
        for path, layer in chosen.items():
            uses = calls.get(id(layer), [])
            found = _why_not(layer, uses) or self._factors(layer, uses[0])
            if isinstance(found, str):
                notes.append(f"low-rank leaves {path}: {found}.")
                continue
            replaced[path] = _replacement(layer, found, uses[0])
            details[path] = found.details()
            notes += [f"low-rank: {path}: {text}." for text in _given_up(layer)]
        if not replaced:
            return Rewritten(model, notes=tuple(notes))
        result = copy_model(model, replaced=replaced)
        return Rewritten(result, details={"factorized": details}, notes=tuple(notes))

    def _factors(self, layer: Any, call: LayerCall) -> Factors | str:
        """Returns the factors of a layer, or why it is left as it is."""
        import keras

        kernel = keras.ops.convert_to_numpy(layer.kernel)
        shape = kernel.shape
        before = _macs((Part(shape, tuple(range(len(shape) - 2))),), call)
        limit = math.inf if self.macs is None else self.macs * before
        found, least = [], math.inf
        for method in self._methods(shape):
            if method.depthwise and not _depthwise_exists(layer):
                return "there is no depthwise convolution with its padding or strides"
            ranks = self._ranks(method, kernel, before, call)
            after = _macs(method.parts(shape, ranks), call)
            least = min(least, after)
            if after <= limit and (after < before or self.slower):
                found.append(factors_of(method, kernel, ranks, (before, after)))
        if not found:
            return f"a {self._asked} takes {least / before:.2f} times its multiply-accumulates"
        if self.macs is None and self.rank is None:
            return min(found, key=lambda one: (one.macs[1], one.error))
        return min(found, key=lambda one: (one.error, one.macs[1]))

    @property
    def _asked(self) -> str:
        if self.rank is not None:
            return f"factorization of rank {self.rank}"
        if self.macs is not None:
            return f"factorization within {self.macs:g} of its cost"
        return f"factorization that keeps {self._energy:g} of its squares"

    @property
    def _energy(self) -> float:
        return _ENERGY if self.energy is None else self.energy

    def _methods(self, shape: Sequence[int]) -> list[Factorization]:
        """Returns the factorizations that are tried."""
        names = _CLOSED if self.method == BEST else (self.method,)
        fitting = [FACTORIZATIONS[name]() for name in names]
        # A matrix has one factorization alone.
        return [one for one in fitting if one.fits(shape)] or [FACTORIZATIONS["channels"]()]

    def _ranks(
        self, method: Factorization, kernel: np.ndarray, before: int, call: LayerCall
    ) -> tuple[int, ...]:
        if self.rank is not None:
            return method.at(kernel.shape, self.rank)
        if self.macs is None:
            return method.ranks(kernel)(self._energy)
        limit = self.macs * before
        found = method.largest(
            kernel, lambda ranks: _macs(method.parts(kernel.shape, ranks), call) <= limit
        )
        return method.at(kernel.shape, 1) if found is None else found


@dataclass(frozen=True, eq=False)
class Factors:
    """A kernel's factors.

    Attributes:
        method: How it was factorized.
        ranks: The ranks.
        parts: What the factors are.
        kernels: Their values.
        macs: Multiply-accumulates before and after.
        error: Squares of the differences from the kernel, as a share of its squares.
    """

    method: Factorization
    ranks: tuple[int, ...]
    parts: tuple[Part, ...]
    kernels: tuple[np.ndarray, ...]
    macs: tuple[int, int]
    error: float

    def details(self) -> dict[str, Any]:
        """Returns what the record says of the layer."""
        name = next(k for k, v in FACTORIZATIONS.items() if isinstance(self.method, v))
        return {
            "method": name,
            "ranks": list(self.ranks),
            "macs": list(self.macs),
            "energy": 1 - self.error,
        }


def factors_of(
    method: Factorization, kernel: np.ndarray, ranks: tuple[int, ...], macs: tuple[int, int]
) -> Factors:
    """Returns a kernel's factors and how far their product is from it."""
    parts, kernels = method.parts(kernel.shape, ranks), method.kernels(kernel, ranks)
    lost = np.square(kernel - composed(parts, kernels, kernel.shape)).sum()
    whole = np.square(kernel, dtype=np.float64).sum()
    return Factors(method, ranks, parts, kernels, macs, float(lost / whole) if whole else 0.0)


def _has_kernel(layer: Any) -> bool:
    kind = exact_kind_of(layer)
    return kind is not None and kind.family in _FAMILIES and not layer.name.endswith(_PART)


def _why_not(layer: Any, uses: Sequence[LayerCall]) -> str | None:
    """Returns why a layer is left as it is; None if it can be factorized."""
    if not uses:
        return "its model is subclassed and shows no shapes"
    if len({use.inputs for use in uses}) > 1:
        return "it is shared by inputs of different shapes"
    if getattr(layer, "groups", 1) > 1:
        return "it is a grouped convolution"
    if len(layer.kernel.shape) > _MOST_AXES:
        return "convolutions over three axes are not factorized"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "it is channels_first"
    if None in uses[0].inputs[0][1:]:
        return "the size of its input is unknown"
    return None


def _depthwise_exists(layer: Any) -> bool:
    return layer.padding != "causal" and len(set(layer.strides)) == 1


# 2 spatial axes, inputs and outputs.
_MOST_AXES = 4


def _macs(parts: Sequence[Part], call: LayerCall) -> int:
    """Returns the multiply-accumulates of one sample."""
    space = len(parts[0].shape) - 2
    inputs, outputs = call.inputs[0][1:-1], call.outputs[0][1:-1]
    if space:
        return multiply_accumulates(parts, inputs, outputs)  # type: ignore[arg-type]
    return math.prod(inputs) * multiply_accumulates(parts, (), ())  # type: ignore[arg-type]


def _given_up(layer: Any) -> list[str]:
    """Returns what the factors do not keep of a layer."""
    import keras

    found = []
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    zeros = 1 - np.count_nonzero(kernel) / kernel.size
    if zeros >= _PRUNED:
        found.append(f"{zeros:.0%} of its kernel is zero, that of its factors is not")
    if layer.kernel_constraint is not None:
        found.append("its kernel_constraint is left out")
    return found


def _replacement(layer: Any, factors: Factors, call: LayerCall) -> Any:
    """Returns a model of the layer's name with the factors; the last has bias and activation."""
    import keras

    last = len(factors.parts) - 1
    model = keras.Sequential(
        [keras.Input(call.inputs[0][1:], dtype=layer.compute_dtype)], name=layer.name
    )
    for index, part in enumerate(factors.parts):
        model.add(_part_layer(layer, part, index, index == last))
    for made, kernel in zip(model.layers, factors.kernels, strict=True):
        bias = [layer.bias] if made.use_bias else []
        made.set_weights([kernel, *map(keras.ops.convert_to_numpy, bias)])
    model.trainable = layer.trainable
    return model


def _part_layer(layer: Any, part: Part, index: int, last: bool) -> Any:
    import keras

    config = {
        "name": f"{layer.name}_{index + 1}{_PART}",
        "dtype": layer.dtype_policy,
        "use_bias": layer.use_bias and last,
        "activation": layer.activation if last else None,
        "activity_regularizer": layer.activity_regularizer if last else None,
        "bias_regularizer": layer.bias_regularizer if last else None,
        "bias_constraint": layer.bias_constraint if last else None,
    }
    regularizer = "depthwise_regularizer" if part.depthwise else "kernel_regularizer"
    config[regularizer] = layer.kernel_regularizer
    *size, _, outputs = part.shape
    if not size:
        return keras.layers.Dense(outputs, **config)
    along = part.axes
    # Padding and strides of an axis act where the factors extend along it; elsewhere they would
    # act twice.
    padding = layer.padding if along else "valid"
    config |= {
        "kernel_size": tuple(size),
        "strides": tuple(s if axis in along else 1 for axis, s in enumerate(layer.strides)),
        "dilation_rate": tuple(
            d if axis in along else 1 for axis, d in enumerate(layer.dilation_rate)
        ),
        "padding": padding,
    }
    kind = f"Conv{len(size)}D"
    if part.depthwise:
        return getattr(keras.layers, f"Depthwise{kind}")(**config)
    return getattr(keras.layers, kind)(outputs, **config)
