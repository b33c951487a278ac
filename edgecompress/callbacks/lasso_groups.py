"""What group lasso takes as groups: filters that `finalize` removes, slices of kernels, layers.

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
from edgecompress.callbacks.views import View
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.criteria.base import Criterion
from edgecompress.patterns import PATTERNS
from edgecompress.patterns.layers import Layers
from edgecompress.patterns.slices import Slices
from edgecompress.surgery.channels import analyse
from edgecompress.surgery.groups import smallest
from edgecompress.surgery.zero_filters import FrozenZeros, zero_filters

FILTERS, LAYERS = "filters", "layers"
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

    def weakest(self, scores: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
        """Returns a share of each layer's groups, those with the smallest scores."""
        return {path: smallest(found, share) for path, found in scores.items()}

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
    slices = (name for name, made in PATTERNS.items() if _is_slices(name, made))
    return [FILTERS, *slices, LAYERS]


def find_groups(
    kind: str, model: Any, layers: LayerChoice, criterion: Criterion, note: Callable[[str], None]
) -> LassoGroups:
    """Returns the groups of a model; notes the layers that are left out.

    Raises:
        As `channel_targets.find_targets` and `layer_choice.choose_kernels`.
    """
    if kind == FILTERS:
        return FilterGroups(model, layers, criterion, note)
    if kind == LAYERS:
        return LayerGroups(model, layers, criterion, note)
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


class KernelGroups(LassoGroups):
    """Groups of the kernels that `Pruning` prunes."""

    _criterion: Criterion
    _views: Mapping[str, View]
    _kernels: list[tuple[ChosenKernel, KernelShape]]

    def observe(self, hook: UpdateHook, attach: Attach) -> Observation:
        """As `LassoGroups.observe`."""
        kernels = [
            Observed(kernel.name, kernel.layer, kernel.variable, shape)
            for kernel, shape in self._kernels
        ]
        return Observation(self._criterion, kernels, hook, attach, self._views)


class SliceGroups(KernelGroups):
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
        self._kernels, left_out = [], []
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

    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """As `LassoGroups.scores`."""
        found = {}
        for kernel, shape in self._kernels:
            scores = _weight_scores(self._criterion, seen, kernel, shape)
            units = self._pattern.units(scores, shape)
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


class LayerGroups(KernelGroups):
    """Whole layers with gamma of their BatchNormalization, compared with each other.

    The layers on the path from inputs to outputs with the fewest weights stay; see the pattern
    `layers`. Without its layer a residual branch holds a constant, and `finalize` removes it.
    """

    def __init__(
        self, model: Any, layers: LayerChoice, criterion: Criterion, note: Callable[[str], None]
    ) -> None:
        """Finds the layers that a shortcut passes by."""
        self._pattern, self._criterion = Layers(), criterion
        self._views = views_of(criterion, model)
        chosen = choose_kernels(model, layers, "penalized", note)
        sizes = {kernel.layer.name: float(np.prod(kernel.variable.shape)) for kernel in chosen}
        spared = self._pattern.spared(model, sizes)
        norms = {k: v for a in analyse(model) for k, v in a.following_norm.items()}
        live = dict(named_layers(model))
        paths = {id(layer): path for path, layer in live.items()}
        self._kernels, left_out, self.penalized = [], [], []
        for kernel in chosen:
            kind = exact_kind_of(kernel.layer)
            axis = None if kind is None else kind.filter_axis
            shape = KernelShape(tuple(kernel.variable.shape), axis)
            reason = spared.get(kernel.layer.name)
            reason = reason or why_not(criterion, kernel.layer, shape, self._views)
            if reason is not None:
                left_out.append(f"{kernel.name} is not penalized: {reason}.")
                note(left_out[-1])
                continue
            norm = live.get(norms.get(paths[id(kernel.layer)], ""))
            gamma = getattr(norm, "gamma", None)
            size = int(np.prod(shape.shape)) + (0 if gamma is None else int(gamma.shape[0]))
            self._kernels.append((kernel, shape))
            self.penalized.append(PenalizedGroups(kernel.variable, (), gamma, size))
        if not self._kernels:
            raise ArgumentError(
                "groups", "leave a layer that a shortcut passes by", LAYERS, " ".join(left_out)
            )
        self.paths = [kernel.name for kernel, _ in self._kernels]

    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """Returns each layer's mean score divided by the largest of all layers, of shape (1,)."""
        found = np.array([self._score(seen, *kernel) for kernel in self._kernels])
        relative = found / max(float(found.max()), np.finfo(np.float64).tiny)
        return {path: relative[i : i + 1] for i, path in enumerate(self.paths)}

    def weakest(self, scores: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
        """Returns a share of the layers, those with the smallest scores."""
        chosen = smallest(np.concatenate([scores[path] for path in self.paths]), share)
        return {path: chosen[i : i + 1] for i, path in enumerate(self.paths)}

    def zeros(self) -> list[np.ndarray]:
        """As `LassoGroups.zeros`."""
        return [
            np.array([not ops.convert_to_numpy(kernel.variable).any()])
            for kernel, _ in self._kernels
        ]

    def silence(self, weak: Mapping[str, np.ndarray]) -> Sequence[str]:
        """As `LassoGroups.silence`; with gamma zero, a normalized layer's mean output stays."""
        for path, groups in zip(self.paths, self.penalized, strict=True):
            if weak[path].any():
                for variable, _ in groups.parts():
                    variable.assign(np.zeros(variable.shape, "float32"))
        return []

    def frozen(self) -> list[FrozenZeros]:
        """As `LassoGroups.frozen`."""
        return [
            FrozenZeros(variable, np.zeros((1,) * len(variable.shape), "float32"))
            for groups, zero in zip(self.penalized, self.zeros(), strict=True)
            if zero.any()
            for variable, _ in groups.parts()
            if not ops.convert_to_numpy(variable).any()
        ]

    def _score(self, seen: Observation | None, kernel: ChosenKernel, shape: KernelShape) -> float:
        scores = _weight_scores(self._criterion, seen, kernel, shape)
        return float(ops.convert_to_numpy(self._pattern.units(scores, shape)))


def _weight_scores(
    criterion: Criterion, seen: Observation | None, kernel: ChosenKernel, shape: KernelShape
) -> Any:
    """Returns the scores of a kernel's weights, in float32."""
    if seen is not None:
        return ops.cast(seen.scores(kernel.variable, shape), "float32")
    weights = ops.convert_to_tensor(kernel.variable)
    return ops.cast(criterion.score_kernel(weights, {}, shape), "float32")


def _is_slices(name: str, made: type) -> bool:
    return issubclass(made, Slices) and name != FILTERS


def _relative(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tiny = np.finfo(np.float64).tiny
    return {path: found / max(float(found.max()), tiny) for path, found in scores.items()}


def _filters_of(target: ChannelTarget) -> PenalizedGroups:
    """Returns a layer's filters as groups of weights."""
    first, *more = target.kernels
    weights = sum(int(np.prod(kernel.variable.shape)) for kernel in target.kernels)
    # The group's size includes gamma if it belongs to the group.
    size = weights // target.filters + (target.gamma is not None)
    others = tuple((kernel.variable, kernel.where.axis) for kernel in more)
    where = first.where
    return PenalizedGroups(first.variable, where.axis, target.gamma, size, where.gates, others)
