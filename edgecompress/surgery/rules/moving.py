"""Rules of layers that move channels, or the positions around them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
import numpy as np

from edgecompress.surgery.channels import Analysis, Call, Channels
from edgecompress.surgery.rules.base import Cut, Rule, channels_last, need, register


@register("flatten")
class FlattenRule(Rule):
    """Lays the positions one after another; channels stay the fastest axis."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        channels_last(call.layer)
        positions = call.shapes[0][1:-1]
        need(None not in positions, "flattens an unknown number of positions")
        count = math.prod(p for p in positions if p is not None)
        source = call.inputs[0]
        return Channels(np.tile(source.labels, count), np.tile(source.constant, count))


@register("reshape")
class ReshapeRule(Rule):
    """A reshape that keeps the last axis or makes it the only one."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        source, shape = call.inputs[0], call.output_shape
        if shape[-1] == len(source.labels):
            return source
        need(len(shape) == 2 and None not in call.shapes[0][1:], "splits or joins channels")
        count = math.prod(p for p in call.shapes[0][1:-1] if p is not None)
        return Channels(np.tile(source.labels, count), np.tile(source.constant, count))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        target = list(call.layer.target_shape)
        if target[-1] != -1:
            target[-1] = int(keep_out.sum())
        return {}, {"target_shape": target}


@register("concatenate")
class ConcatenateRule(Rule):
    """Concatenates channels, or positions of the same channels."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(call.plain, "is called with other arguments than tensors")
        rank = len(call.shapes[0])
        if call.layer.axis in (-1, rank - 1):
            return Channels(
                np.concatenate([source.labels for source in call.inputs]),
                np.concatenate([source.constant for source in call.inputs]),
            )
        first, *others = call.inputs
        constant = first.constant
        for source in others:
            analysis.unite(first.labels, source.labels)
            constant = np.where(constant == source.constant, constant, np.nan)
        return Channels(first.labels, constant)


@register("repeat")
class RepeatRule(Rule):
    """Repeats a vector at several positions."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        return call.inputs[0]


@register("permute")
class PermuteRule(Rule):
    """Permutes the positions, with the channels last before and after."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(call.plain, "is called with other arguments than tensors")
        rank = len(call.shapes[0])
        layer = isinstance(call.layer, keras.layers.Layer)
        axes = (0, *call.layer.dims) if layer else call.layer.axes
        need(axes is not None, "moves the channels to another axis")
        order = [axis % rank for axis in axes]
        need(order[0] == 0 and order[-1] == rank - 1, "moves the channels to another axis")
        return call.inputs[0]


@register("axes")
class AxesRule(Rule):
    """Adds or drops an axis of size 1 before the channels."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(call.plain, "is called with other arguments than tensors")
        rank = max(len(call.shapes[0]), len(call.output_shape))
        axes = _axes(call.layer, rank)
        need(0 not in axes and rank - 1 not in axes, "changes the axis of the channels")
        return call.inputs[0]


@register("mean")
class ReductionRule(Rule):
    """A mean, maximum, minimum or sum over positions."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(call.plain, "is called with other arguments than tensors")
        shape, source = call.shapes[0], call.inputs[0]
        axes = _axes(call.layer, len(shape))
        need(0 not in axes and len(shape) - 1 not in axes, "reduces the channels or the batch")
        if type(call.layer).__name__ != "Sum":
            need(getattr(call.layer, "initial", None) is None, "starts from another value")
            return source
        sizes = [shape[axis] for axis in axes]
        count = math.nan if None in sizes else math.prod(s for s in sizes if s is not None)
        return Channels(source.labels, np.where(source.constant == 0, 0.0, source.constant * count))


def _axes(operation: Any, rank: int) -> list[int]:
    """Returns the axes that an operation works on; raises NotUnderstood if it names none."""
    axis = operation.axis
    need(axis is not None, "works on all axes")
    return [a % rank for a in (axis if isinstance(axis, (list, tuple)) else [axis])]


@register("slice")
class SliceRule(Rule):
    """Indices and slices of positions; the channels and the batch stay whole."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        need(len(call.args) == 2 and not call.kwargs, "is called in an unknown way")
        key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        fixed = all(part is None or part is ... or isinstance(part, (int, slice)) for part in key)
        need(fixed, "is indexed by a tensor")
        whole = slice(None)
        need(bool(key) and (key[0] is ... or key[0] == whole), "selects in the batch")
        named = sum(part is not None and part is not ... for part in key)
        last = ... not in key and named >= len(call.shapes[0])
        last = last or (... in key and key[-1] is not ...)
        need(not last or key[-1] == whole, "selects channels")
        return call.inputs[0]
