"""What group lasso takes as groups: filters that `finalize` removes, or slices of kernels.

A kind of groups says what is penalized, how its groups compare, and how they become zero and stay
it. Slices are those of the patterns: each `Slices` in `PATTERNS` is a kind of groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.channel_targets import ChannelTarget, ChannelTargets, find_targets
from edgecompress.callbacks.fused_penalty import PenalizedGroups
from edgecompress.callbacks.hooks import Hook, UpdateHook
from edgecompress.callbacks.layer_choice import ChosenKernel, LayerChoice, choose_kernels
from edgecompress.callbacks.observation import Observation, Observed, views_of, why_not
from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.criteria.base import Criterion
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.slices import Slices
from edgecompress.surgery.zero_filters import FrozenZeros, zero_filters

FILTERS = "filters"
Attach = Callable[[Hook], Any]


class LassoGroups(ABC):
    """The groups of a fit.

    Attributes:
        penalized: The groups of each layer.
        paths: The layers' names, in the same order.
    """

    penalized: Sequence[PenalizedGroups]
    paths: Sequence[str]

    @abstractmethod
    def observe(self, hook: UpdateHook, attach: Attach) -> Observation:
        """Returns what shows training to the criterion; see `ChannelTargets.observe`."""

    @abstractmethod
    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """Returns each group's score divided by the largest of its layer, by the layer's name."""

    @abstractmethod
    def zeros(self) -> list[np.ndarray]:
        """Returns which groups of each layer are entirely zero."""

    @abstractmethod
    def silence(self, weak: Mapping[str, np.ndarray]) -> Sequence[str]:
        """Sets groups to zero; returns what could not be, as sentences."""

    @abstractmethod
    def frozen(self) -> list[FrozenZeros]:
        """Returns what has to stay zero while training continues."""


def kinds() -> list[str]:
    """Returns the names of all kinds of groups."""
    return [FILTERS, *(name for name, made in PATTERNS.items() if _is_slices(name, made))]


def find_groups(
    kind: str, model: Any, layers: LayerChoice, criterion: Criterion, note: Callable[[str], None]
) -> LassoGroups:
    """Returns the groups of a model; notes the layers that are left out.

    Raises:
        As `channel_targets.find_targets` and `layer_choice.choose_kernels`.
    """
    if kind == FILTERS:
        return FilterGroups(model, layers, criterion, note)
    pattern = PATTERNS[kind]()
    if not isinstance(pattern, Slices):
        raise ArgumentError("groups", "name groups that lie along axes of a kernel", kind)
    return SliceGroups(pattern, model, layers, criterion, note)


class FilterGroups(LassoGroups):
    """Whole filters, with gamma of the BatchNormalization that follows; `finalize` removes them."""

    def __init__(
        self, model: Any, layers: LayerChoice, criterion: Criterion, note: Callable[[str], None]
    ) -> None:
        """Finds the filters that can be removed."""
        self.found: ChannelTargets = find_targets(model, layers, criterion, "group lasso", note)
        for target in self.found.layers:
            if target.norm is not None and target.gamma is None:
                note(
                    f"group lasso on {target.path} shrinks numbers only: its BatchNormalization "
                    f"{target.norm_path} has no gamma (scale=False), which undoes it."
                )
        self._model = model
        self.penalized = [_filters_of(target) for target in self.found.layers]
        self.paths = [target.path for target in self.found.layers]

    def observe(self, hook: UpdateHook, attach: Attach) -> Observation:
        """As `LassoGroups.observe`."""
        return self.found.observe(hook, attach)

    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """As `LassoGroups.scores`.

        Filters whose channels are added together can only be removed together: each gets the
        largest score among them.
        """
        return self.found.strongest(_relative(self.found.scores(seen)))

    def zeros(self) -> list[np.ndarray]:
        """As `LassoGroups.zeros`."""
        return [target.zeros() for target in self.found.layers]

    def silence(self, weak: Mapping[str, np.ndarray]) -> Sequence[str]:
        """As `LassoGroups.silence`; their mean output is folded into the layers that read them."""
        return zero_filters(self._model, weak).notes

    def frozen(self) -> list[FrozenZeros]:
        """As `LassoGroups.frozen`."""
        return self.found.frozen(self._model)


class SliceGroups(LassoGroups):
    """The slices of a pattern in each kernel; as zeros they change nothing else."""

    def __init__(
        self,
        pattern: Slices,
        model: Any,
        layers: LayerChoice,
        criterion: Criterion,
        note: Callable[[str], None],
    ) -> None:
        """Finds the kernels that have such slices."""
        self._pattern, self._criterion = pattern, criterion
        self._views = views_of(criterion, model)
        self._kernels: list[tuple[ChosenKernel, KernelShape]] = []
        left_out = []
        for kernel in choose_kernels(model, layers, "penalized", note):
            kind = exact_kind_of(kernel.layer)
            axis = None if kind is None else kind.filter_axis
            shape = KernelShape(tuple(kernel.variable.shape), axis)
            reason = why_not(criterion, kernel.layer, shape, self._views)
            if not pattern.fits(shape):
                reason = f"its kernel of shape {shape.shape} has no {pattern.title}"
            if reason is None:
                self._kernels.append((kernel, shape))
            else:
                left_out.append(f"{kernel.name} is not penalized: {reason}.")
                note(left_out[-1])
        if not self._kernels:
            raise ArgumentError(
                "groups", "fit at least one kernel", pattern.title, " ".join(left_out)
            )
        self.paths = [kernel.name for kernel, _ in self._kernels]
        self.penalized = []
        for kernel, shape in self._kernels:
            axes = pattern.axes(shape) or ()
            count = int(np.prod([shape.shape[axis] for axis in axes]))
            size = int(np.prod(shape.shape)) // count
            self.penalized.append(PenalizedGroups(kernel.variable, axes, None, size))

    def observe(self, hook: UpdateHook, attach: Attach) -> Observation:
        """As `LassoGroups.observe`."""
        kernels = [
            Observed(kernel.name.replace("/", "_"), kernel.layer, kernel.variable, shape)
            for kernel, shape in self._kernels
        ]
        return Observation(self._criterion, kernels, hook, attach, self._views)

    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """As `LassoGroups.scores`."""
        found = {}
        for kernel, shape in self._kernels:
            if seen is None:
                weights = ops.convert_to_tensor(kernel.variable)
                scores = self._criterion.score_kernel(weights, {}, shape)
            else:
                scores = seen.scores(kernel.variable)
            units = self._pattern.units(ops.cast(scores, "float32"), shape)
            found[kernel.name] = np.asarray(ops.convert_to_numpy(units), np.float64)
        return _relative(found)

    def zeros(self) -> list[np.ndarray]:
        """As `LassoGroups.zeros`."""
        found = []
        for kernel, shape in self._kernels:
            weights = ops.convert_to_numpy(kernel.variable)
            axes = self._pattern.axes(shape) or ()
            others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
            found.append(~(weights != 0).any(axis=others))
        return found

    def silence(self, weak: Mapping[str, np.ndarray]) -> Sequence[str]:
        """As `LassoGroups.silence`."""
        for kernel, shape in self._kernels:
            mask = self._mask(weak[kernel.name], shape)
            weights = ops.convert_to_numpy(kernel.variable)
            kernel.variable.assign(np.where(mask, weights, 0).astype(weights.dtype))
        return []

    def frozen(self) -> list[FrozenZeros]:
        """As `LassoGroups.frozen`."""
        return [
            FrozenZeros(kernel.variable, self._mask(zero, shape).astype("float32"))
            for (kernel, shape), zero in zip(self._kernels, self.zeros(), strict=True)
            if zero.any()
        ]

    def _mask(self, gone: np.ndarray, shape: KernelShape) -> np.ndarray:
        kept = self._pattern.expand(ops.convert_to_tensor(~gone), shape)
        return np.asarray(ops.convert_to_numpy(kept))


def _is_slices(name: str, made: type) -> bool:
    return issubclass(made, Slices) and name != FILTERS


def _relative(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tiny = np.finfo(np.float64).tiny
    return {path: found / max(float(found.max()), tiny) for path, found in scores.items()}


def _filters_of(target: ChannelTarget) -> PenalizedGroups:
    """Returns a layer's filters as groups of weights."""
    kernel = target.kernel
    # The group's size includes gamma if it belongs to the group.
    size = int(np.prod(kernel.shape)) // target.filters + (target.gamma is not None)
    return PenalizedGroups(kernel, target.where.axis, target.gamma, size)
