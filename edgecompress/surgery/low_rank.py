"""Writes kernels as products of smaller ones: the rewrite `low-rank`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.keras_graph import LayerCall, layer_calls, named_layers
from edgecompress.core.options import Choice, Flag, Text, option, share, whole
from edgecompress.surgery.factors import FACTORIZATIONS
from edgecompress.surgery.factors.base import Factorization, Part, composed
from edgecompress.surgery.layer_parts import (
    NO_DEPTHWISE,
    REPLACED,
    depthwise_exists,
    given_up,
    has_kernel,
    of_other_classes,
    part_layer,
    part_macs,
    why_not_split,
)
from edgecompress.surgery.predicted import alone, check_latency_target, time_of
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten

# Method and ranks -> share of what the layer takes.
Cost = Callable[[Factorization, tuple[int, ...]], float]

BEST = "best"
# What `best` tries: those with a closed form.
_CLOSED = ("channels", "spatial", "tucker")
_HOW_FAR = ("energy", "macs", "rank", "latency")
_ENERGY = 0.9
_ALL = ".*"
# The end of the names of the layers that take another's place: they are not factorized again.
_PART = "_factor"


@REWRITES.register("low-rank")
@dataclass(frozen=True)
class LowRank(Rewrite):
    """Replaces Dense layers and convolutions by two or three smaller layers.

    The kernel is approximated by a product of smaller kernels. That changes the outputs, so train
    the model further. A layer that would take as many multiply-accumulates as before is left as it
    is, and the notes say so. One of `energy`, `macs`, `rank` and `latency` says how far
    to go.

    Args:
        method: How convolutions are factorized. `best` chooses for each layer: the fewest
            multiply-accumulates at an `energy`, or the smallest error at `macs` or a `rank`. Dense
            layers and 1x1 convolutions are matrices and always factorized by `channels`.
        energy: Share of the sum of a kernel's squares that stays, 0.9 if nothing else is given.
        macs: Share of each layer's multiply-accumulates that stays.
        rank: Rank of every layer, or less where a kernel has less.
        latency: Share of each layer's predicted time on `target` that stays.
        target: Name of a target. A layer that its cost model predicts to become no faster is left
            as it is; of several methods the fastest is chosen, if no rank or share of
            multiply-accumulates is given. Defaults to None: multiply-accumulates decide.
        layers: Regular expression: the layers whose whole name it matches.
        slower: Whether layers that become more expensive are factorized, too.

    Raises:
        ArgumentError: more than one of `energy`, `macs`, `rank` and `latency`; `latency` without a
            target, or a target whose latency is not predicted; `layers` is no regular expression or
            matches no layer.
        UnknownNameError: there is no such target.
    """

    exact: ClassVar[bool] = False

    method: str = option(
        BEST, "How convolutions are factorized.", Choice(names=lambda: (BEST, *FACTORIZATIONS))
    )
    energy: float | None = option(None, "Share of each kernel's squares that stays.", share())
    macs: float | None = option(None, "Share of each layer's MACs that stays.", share())
    rank: int | None = option(None, "Rank of every layer.", whole(1))
    latency: float | None = option(
        None, "Share of each layer's predicted time on the target that stays.", share()
    )
    target: str | None = option(None, "Target on which every layer has to become faster.", Text())
    layers: str = option(_ALL, "Regular expression: names of the layers to factorize.", Text())
    slower: bool = option(False, "Also factorize layers that become more expensive.", Flag())

    def __post_init__(self) -> None:
        """Refuses options that contradict each other."""
        given = [name for name in _HOW_FAR if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(given[1], f"be left out beside {given[0]}", getattr(self, given[1]))
        for name in ("macs", "latency"):
            if getattr(self, name) == 0:
                raise ArgumentError(name, "be greater than 0", 0)
        if self.target is not None:
            check_latency_target(self.target)
        elif self.latency is not None:
            raise ArgumentError("latency", "come with a target", self.latency)
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ArgumentError("layers", "be a regular expression", self.layers) from error

    def apply(self, model: Any) -> Rewritten:
        """Returns the model with smaller layers; see `Rewrite.apply`."""
        chosen, notes = candidates(model, self.layers)
        factors: dict[str, Factors] = {}
        for path, (layer, call) in chosen.items():
            found = self._factors(layer, call)
            if isinstance(found, str):
                notes.append(f"low-rank leaves {path}: {found}.")
            else:
                factors[path] = found
        if not factors:
            return Rewritten(model, notes=tuple(notes))
        notes += [
            f"low-rank: {path}: {text}." for path in factors for text in given_up(chosen[path][0])
        ]
        details = {path: found.details() for path, found in factors.items()}
        result = replaced(model, chosen, factors)
        return Rewritten(result, details={"factorized": details}, notes=tuple(notes))

    def _factors(self, layer: Any, call: LayerCall) -> Factors | str:
        """Returns the factors of a layer, or why it is left as it is."""
        try:
            return self._nearest(layer, call)
        except EdgeCompressError as error:
            return f"its time on {self.target} is not known ({str(error).rstrip('.')})"

    def _nearest(self, layer: Any, call: LayerCall) -> Factors | str:
        import keras

        kernel = keras.ops.convert_to_numpy(layer.kernel)
        shape = kernel.shape
        before = part_macs((Part(shape, tuple(range(len(shape) - 2))),), call)

        def macs(method: Factorization, ranks: tuple[int, ...]) -> float:
            return part_macs(method.parts(shape, ranks), call) / before

        cost = macs if self.target is None else times(layer, call, kernel, self.target)
        limited = {"macs": macs, "latency": cost}.get(self._chosen)
        share = getattr(self, self._chosen)
        found, least = [], math.inf
        for method in self._methods(shape):
            if method.depthwise and not depthwise_exists(layer):
                return NO_DEPTHWISE
            ranks = self._ranks(method, kernel, limited)
            taken = cost(method, ranks)
            least = min(least, taken)
            fits = limited is None or limited(method, ranks) <= share
            if fits and (taken < 1 or self.slower):
                after = part_macs(method.parts(shape, ranks), call)
                found.append((taken, factors_of(method, kernel, ranks, (before, after))))
        if not found:
            what = "multiply-accumulates" if self.target is None else f"time on {self.target}"
            return f"a {self._asked} takes {least:.2f} times its {what}"
        if self._chosen == "energy":
            return min(found, key=lambda one: (one[0], one[1].error))[1]
        return min(found, key=lambda one: (one[1].error, one[0]))[1]

    @property
    def _chosen(self) -> str:
        """Which of the options says how far to go."""
        given = [name for name in _HOW_FAR if getattr(self, name) is not None]
        return given[0] if given else "energy"

    @property
    def _asked(self) -> str:
        if self.rank is not None:
            return f"factorization of rank {self.rank}"
        if self._chosen in ("macs", "latency"):
            return f"factorization within {getattr(self, self._chosen):g} of its cost"
        return f"factorization that keeps {self._energy:g} of its squares"

    @property
    def _energy(self) -> float:
        return _ENERGY if self.energy is None else self.energy

    def _methods(self, shape: Sequence[int]) -> list[Factorization]:
        """Returns the factorizations that are tried."""
        return methods(self.method, shape)

    def _ranks(
        self, method: Factorization, kernel: np.ndarray, limited: Cost | None
    ) -> tuple[int, ...]:
        if self.rank is not None:
            return method.at(kernel.shape, self.rank)
        if limited is None:
            return method.ranks(kernel)(self._energy)
        share = getattr(self, self._chosen)
        found = method.largest(kernel, lambda ranks: limited(method, ranks) <= share)
        return method.at(kernel.shape, 1) if found is None else found


# --- parts that a whole-model budget shares -----------------------------------------------------


def candidates(
    model: Any, layers: str = _ALL
) -> tuple[dict[str, tuple[Any, LayerCall]], list[str]]:
    """Returns the layers that can be factorized, each with its use, and notes on the others.

    Args:
        model: The model.
        layers: Regular expression: those whose whole name it matches.

    Raises:
        ArgumentError: it matches no layer.
    """
    calls: dict[int, list[LayerCall]] = {}
    for call in layer_calls(model):
        calls.setdefault(id(call.layer), []).append(call)
    chosen = {
        path: layer
        for path, layer in named_layers(model)
        if has_kernel(layer, _PART) and re.fullmatch(layers, path)
    }
    if not chosen and layers != _ALL:
        raise ArgumentError("layers", "match the name of a Dense layer or convolution", layers)
    found, notes = {}, []
    for path, layer in chosen.items():
        uses = calls.get(id(layer), [])
        why = why_not_split(layer, uses)
        if why is None:
            found[path] = layer, uses[0]
        else:
            notes.append(f"low-rank leaves {path}: {why}.")
    others = of_other_classes(
        model, layers, REPLACED, None, "Dense, Conv1D and Conv2D are factorized"
    )
    return found, [*notes, *(f"low-rank leaves {text}." for text in others)]


def methods(name: str, shape: Sequence[int]) -> list[Factorization]:
    """Returns the factorizations of a kernel that are tried under a name, or under `BEST`."""
    fitting = [FACTORIZATIONS[each]() for each in (_CLOSED if name == BEST else (name,))]
    # A matrix has one factorization alone.
    return [one for one in fitting if one.fits(shape)] or [FACTORIZATIONS["channels"]()]


def times(layer: Any, call: LayerCall, kernel: np.ndarray, target: str) -> Cost:
    """Returns what says how much of a layer's time on a target its factors take."""
    whole = time_of(alone(layer, call), target)

    @functools.cache
    def share_of(method: type[Factorization], ranks: tuple[int, ...]) -> float:
        made = factors_of(method(), kernel, ranks, (0, 0))
        return time_of(_replacement(layer, made, call), target) / whole

    return lambda method, ranks: share_of(type(method), ranks)


def replaced(
    model: Any, chosen: Mapping[str, tuple[Any, LayerCall]], factors: Mapping[str, Factors]
) -> Any:
    """Returns a model with factors in place of some layers.

    Args:
        model: The model.
        chosen: Its layers and their uses, by path.
        factors: Path -> what takes the layer's place.
    """
    from edgecompress.core.model_copy import copy_model

    made = {path: _replacement(chosen[path][0], one, chosen[path][1]) for path, one in
            factors.items()}  # fmt: skip
    return copy_model(model, replaced=made)


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


def _replacement(layer: Any, factors: Factors, call: LayerCall) -> Any:
    """Returns a model of the layer's name with the factors; the last has bias and activation."""
    import keras

    last = len(factors.parts) - 1
    model = keras.Sequential(
        [keras.Input(call.inputs[0][1:], dtype=layer.compute_dtype)], name=layer.name
    )
    for index, part in enumerate(factors.parts):
        name, ends = f"{layer.name}_{index + 1}{_PART}", index == last
        model.add(part_layer(layer, part, name, ends, ends))
    for made, kernel in zip(model.layers, factors.kernels, strict=True):
        bias = [layer.bias] if made.use_bias else []
        made.set_weights([kernel, *map(keras.ops.convert_to_numpy, bias)])
    model.trainable = layer.trainable
    return model
