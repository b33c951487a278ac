"""Channel targets: the filters of a model that a training may set to zero, and their scores.

What callbacks that remove channels share: which layers have filters that `finalize` can remove,
how a criterion scores them, which have to go together, and how zeros stay zero.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping
from edgecompress.callbacks.layer_choice import LayerChoice, select_layers
from edgecompress.callbacks.observation import Observation, Observed, views_of, why_not
from edgecompress.callbacks.views import View
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.model_copy import variable_of
from edgecompress.criteria.base import Criterion
from edgecompress.surgery.carriers import if_all_were_silent, padding
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.groups import FilterAxis, norm_scale, zero_filters_of
from edgecompress.surgery.rules import Producer, filters_of, producers_of
from edgecompress.surgery.zero_filters import FrozenZeros, frozen_zeros, possible_zeros


@dataclass(frozen=True)
class TargetKernel:
    """A weight that holds filters.

    Attributes:
        name: Its name, unique in the model.
        variable: It.
        where: Its axis of filters.
    """

    name: str
    variable: Any
    where: FilterAxis

    @property
    def shape(self) -> KernelShape:
        """Its shape and axes."""
        return KernelShape(tuple(self.variable.shape), self.where.axis)


class ChannelTarget:
    """A layer whose filters can be removed, with the BatchNormalization that reads it.

    Args:
        path: The layer's name; `<nested model>/<layer>` inside nested models, `<layer>:heads` for
            the heads of attention.
        producer: The layer, and its weights that hold the filters.
        norm_path: Path of the BatchNormalization that is its only reader, or None.
        norm: That layer, or None.
    """

    def __init__(self, path: str, producer: Producer, norm_path: str | None, norm: Any) -> None:
        self.path, self.norm_path, self.norm = path, norm_path, norm
        self.layer, self.where = producer.layer, producer.filters
        self.kernels = tuple(
            TargetKernel(_name_of(path, part), variable_of(self.layer, part.attribute), part)
            for part in self.where.kernels
        )
        self.gamma = getattr(norm, "gamma", None)
        first = self.kernels[0]
        self.filters: int = first.where.count(first.variable.shape)

    def scores(self, criterion: Criterion, seen: Observation | None) -> np.ndarray:
        """Returns each filter's score, with BatchNormalization folded in where it counts.

        The score of a filter in several weights, or gates, is the L2 norm of its scores there.
        """
        parts = []
        for kernel in self.kernels:
            statistics = None if seen is None else seen.statistics(kernel.variable, kernel.shape)
            value = ops.convert_to_numpy(kernel.variable)
            scores = criterion.group_scores(value, kernel.where.axis, statistics)
            parts.append(scores.reshape(kernel.where.gates, -1))
        stacked = np.concatenate(parts)
        scores = stacked[0] if len(stacked) == 1 else np.linalg.norm(stacked, axis=0)
        if self.norm is None or not criterion.grows_with_weights:
            return scores
        names = ("gamma", "moving_variance")
        found = {name: getattr(self.norm, name) for name in names}
        weights = {k: ops.convert_to_numpy(v) for k, v in found.items() if v is not None}
        return scores * norm_scale(weights, self.norm.epsilon)

    def zeros(self) -> np.ndarray:
        """Returns which filters are entirely zero."""
        weights = {
            kernel.where.attribute: ops.convert_to_numpy(kernel.variable) for kernel in self.kernels
        }
        return zero_filters_of(self.where, weights)


@dataclass(frozen=True)
class ChannelTargets:
    """The filters that a callback works on.

    Attributes:
        layers: Their layers, in the model's order.
        criterion: What scores them.
        analyses: How channels go through the model.
        views: What the criterion looks at in the model.
        left_out: A sentence for each layer that is left out.
    """

    layers: tuple[ChannelTarget, ...]
    criterion: Criterion
    analyses: tuple[Analysis, ...]
    views: Mapping[str, View]
    left_out: tuple[str, ...] = ()

    def observe(self, hook: UpdateHook, attach: Callable[[Hook], Any]) -> Observation:
        """Returns what shows training to the criterion.

        Args:
            hook: An attached hook of the fit, which has to call `Observation.observe`.
            attach: Attaches further hooks to the fit.
        """
        kernels = [
            Observed(kernel.name, target.layer, kernel.variable, kernel.shape)
            for target in self.layers
            for kernel in target.kernels
        ]
        return Observation(self.criterion, kernels, hook, attach, self.views)

    def scores(self, seen: Observation | None) -> dict[str, np.ndarray]:
        """Returns the score of each filter, path -> (filters,) in float64.

        Args:
            seen: What the criterion has seen of training; None for nothing.
        """
        return {target.path: target.scores(self.criterion, seen) for target in self.layers}

    def roots(self) -> list[dict[str, np.ndarray]]:
        """Returns which filters go together, for each analysis: path -> a number for each filter.

        Filters with the same number, of one layer or of several whose channels are added together,
        can only be removed together.
        """
        return [
            {
                target.path: analysis.roots(analysis.producers[target.path])
                for target in self.layers
                if target.path in analysis.producers
            }
            for analysis in self.analyses
        ]

    def strongest(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns scores with that of the strongest filter for all that go together."""
        joined = {path: score.copy() for path, score in scores.items()}
        for roots in self.roots():
            best: dict[int, float] = {}
            for path, labels in roots.items():
                for root, score in zip(labels, scores[path], strict=True):
                    best[int(root)] = max(best.get(int(root), 0.0), float(score))
            for path, labels in roots.items():
                joined[path] = np.array([best[int(root)] for root in labels])
        return joined

    def frozen(self, model: Any) -> list[FrozenZeros]:
        """Returns what has to stay zero so that the filters that are zero stay removable."""
        return frozen_zeros(model, [target.path for target in self.layers])

    def possible_zeros(self, model: Any) -> list[FrozenZeros]:
        """Returns every variable that `frozen` could ever name, with nothing kept zero."""
        return possible_zeros(model, [target.path for target in self.layers])


def find_targets(
    model: Any,
    layers: LayerChoice,
    criterion: Criterion,
    title: str,
    note: Callable[[str], None],
) -> ChannelTargets:
    """Returns the chosen layers whose filters `finalize` can remove; notes the others.

    Args:
        model: A built Sequential or Functional model.
        layers: The user's choice; None for every layer with filters.
        criterion: What scores them.
        title: Of the technique, for the notes.
        note: Takes a sentence for each layer that is left out.

    Raises:
        ArgumentError: filters of a named layer cannot be removed, or no layer is left.
        UnknownNameError: a name is not a layer of the model.
        UnsupportedModelError: the model is subclassed or not built.
    """
    weights = read_weights(model)
    # `analyse` refuses subclassed models.
    analyses = tuple(if_all_were_silent(model, weights, analyse(model, weights)))
    views = views_of(criterion, model)
    kinds = tuple({type(x) for _, x in named_layers(model) if _has_filters(x)})
    chosen = {id(layer) for layer in select_layers(model, layers, kinds)}
    named = layers is not None and not callable(layers)
    live = dict(named_layers(model))
    producers = producers_of(model)
    targets: list[ChannelTarget] = []
    left_out: list[tuple[str, str, str]] = []
    for path, producer in producers.items():
        if id(producer.layer) not in chosen:
            continue
        norm = next((a.following_norm[path] for a in analyses if path in a.following_norm), None)
        target = ChannelTarget(path, producer, norm, live.get(norm or ""))
        reason = _why_not(path, producer.layer, analyses)
        unseen = _unseen(criterion, target, views)
        if reason is None and unseen is not None:
            reason = f"{unseen}, so the criterion {criterion} cannot score it"
        if reason is None and len(filters_of(producer.layer)) > 1:
            # Its other part can go alone.
            free = {p for p, own in producers.items() if id(own.layer) in chosen}
            others = [p for p in _joined(path, analyses) if p not in free]
            if others:
                reason = f"its channels are joined with those of {others[0]}, which is not chosen"
            elif layers is None and (pads := padding(analyses, path)) is not None:
                reason = (
                    f"{pads} would pad its channels back with zeros, which may cost more than they "
                    "save; `layers` can name it with what it is added to"
                )
        if reason is None:
            targets.append(target)
        else:
            left_out.append((path, producer.owner, reason))
    if layers is None:
        understood = {path for analysis in analyses for path in analysis.uses}
        for path, layer in live.items():
            matrices = [weight for weight in layer.trainable_weights if len(weight.shape) > 1]
            if matrices and path not in understood and path not in producers:
                left_out.append((path, path, f"{type(layer).__name__} is not understood here"))
    for path, owner, reason in left_out:
        if named and not any(producers[target.path].owner == owner for target in targets):
            raise ArgumentError(
                "layers", "name layers whose filters can be removed", path, f"Here {reason}."
            )
    skipped = tuple(f"{title} skips {path}: {reason}." for path, _, reason in left_out)
    for text in skipped:
        note(text)
    if not targets:
        rule = "leave a layer whose filters can be removed"
        raise ArgumentError("layers", rule, layers, " ".join(skipped))
    return ChannelTargets(tuple(targets), criterion, analyses, views, skipped)


def keep_zeros(frozen: FrozenZeros) -> Wrapping:
    """Returns what keeps the zeros of a variable while training continues."""
    keep = functools.partial(_KeepZeros, mask=frozen.mask)
    return Wrapping(frozen.variable, "constraint", keep)


def _has_filters(layer: Any) -> bool:
    return bool(filters_of(layer))


def _name_of(path: str, part: FilterAxis) -> str:
    """Returns a name for a weight: the layer's alone where it has one such weight."""
    *inner, last = part.attribute.split(".")
    return "_".join([*re.split("[/:]", path), *([*inner, last] if inner else [])])


def _unseen(criterion: Criterion, target: ChannelTarget, views: Mapping[str, View]) -> str | None:
    """Returns why a criterion cannot score a target; None if it can."""
    if criterion.views and any(kernel.where.gates > 1 for kernel in target.kernels):
        return f"its units have gates, which {' and '.join(criterion.views)} cannot tell apart"
    if criterion.views and target.where.part:
        return (
            f"{' and '.join(criterion.views)} belong to output channels, not to {target.where.part}"
        )
    reasons = (why_not(criterion, target.layer, kernel.shape, views) for kernel in target.kernels)
    return next((reason for reason in reasons if reason), None)


def _why_not(path: str, layer: Any, analyses: tuple[Analysis, ...]) -> str | None:
    """Returns why none of a layer's filters can be removed; None if some can."""
    if not layer.trainable:
        return "it is not trainable"
    for analysis in analyses:
        if path not in analysis.producers:
            continue
        reasons = {analysis.root(label): why for label, why in analysis.frozen.items()}
        roots = analysis.roots(analysis.producers[path])
        if all(int(root) in reasons for root in roots):
            return f"its filters have to stay because {reasons[int(roots[0])]}"
        return None
    return "it is not understood in this model"


def _joined(path: str, analyses: tuple[Analysis, ...]) -> list[str]:
    """Returns the layers with a filter that can only go together with one of this layer."""
    for analysis in analyses:
        if path in analysis.producers:
            own = analysis.roots(analysis.producers[path])
            return [
                other
                for other, labels in analysis.producers.items()
                if np.isin(analysis.roots(labels), own).any()
            ]
    return []


@dataclass(frozen=True, eq=False)
class _KeepZeros:
    """A variable's constraint: its own, if any, then zeros for zero filters."""

    inner: Callable[[Any], Any] | None
    mask: np.ndarray

    def __call__(self, value: Any) -> Any:
        value = value if self.inner is None else self.inner(value)
        return value * ops.cast(self.mask, value.dtype)
