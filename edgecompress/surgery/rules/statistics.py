"""Rules of layers that normalize by the statistics of each sample.

The mean and the variance of a LayerNormalization count every channel, so that even a channel that
is always zero changes the others: without it, the layer would divide by a smaller count. No
narrower LayerNormalization gives the same: its statistics weigh n kept channels by 1/n, not 1/N.
With the zeros put back before it and dropped after it, the result is the same, and only the
layer's own 2 N weights stay. A root mean square needs no zeros, just other constants.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import keras
import numpy as np

from edgecompress.surgery.channels import Analysis, Call, Channels
from edgecompress.surgery.rules.base import Cut, Rule, need, register


def _over_channels(call: Call) -> None:
    axis = call.layer.axis
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    rank = len(call.shapes[0])
    need([a % rank for a in axes] == [rank - 1], "normalizes another axis than the last")


def _only_zeros_go(analysis: Analysis, call: Call) -> None:
    """Keeps the channels that are not always zero: they change the statistics of all."""
    source = call.inputs[0]
    analysis.freeze(
        source.labels[source.constant != 0],
        f"{call.title} normalizes with them, and they are not zero",
    )


def _affine(call: Call, count: int) -> np.ndarray:
    """Returns the constants of a normalization's outputs: beta where gamma is zero."""
    scale = call.weights.get("gamma", call.weights.get("scale", np.ones(count)))
    offset = call.weights.get("beta", np.zeros(count)).astype(np.float64)
    return np.where(scale == 0, offset, np.nan)


@register("layer_normalization")
class LayerNormalizationRule(Rule):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, statistics over the channels."""

    counts: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    gains: ClassVar[tuple[str, ...]] = ("gamma",)
    offsets: ClassVar[tuple[str, ...]] = ("beta",)

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _over_channels(call)
        need(not call.masked, "carries a mask")
        before = analysis.uses.get(call.path)
        alike = before is None or before.call.shapes == call.shapes
        need(alike, "is called on different shapes")
        need(not getattr(call.layer, "rms_scaling", False), "scales by the root mean square")
        _only_zeros_go(analysis, call)
        source = call.inputs[0]
        return Channels(source.labels, _affine(call, len(source.labels)))

    def replacement(self, call: Call, keep: np.ndarray) -> keras.Model:
        """Returns zero padding to the former width, the layer, and a slice."""
        layer, shape = call.layer, call.shapes[0]
        count, left = len(keep), int(keep.sum())
        inputs = keras.Input(batch_shape=(*shape[:-1], left), dtype=layer.compute_dtype)
        widths = [(0, 0)] * (len(shape) - 1) + [(0, count - left)]
        config = {**layer.get_config(), "name": layer.name}
        inner = type(layer).from_config(config)
        wide = inner(keras.ops.pad(inputs, widths))
        key = (slice(None),) * (len(shape) - 1) + (slice(0, left),)
        model = keras.Model(inputs, wide[key], name=layer.name)
        for name, value in call.weights.items():
            getattr(inner, name).assign(np.concatenate([value[keep], np.zeros(count - left)]))
        return model


@register("rms_normalization")
class RMSNormalizationRule(Rule):
    """y = scale x / sqrt(mean(x^2) + epsilon) over the channels.

    With n of N channels left, mean_N = n/N mean_n: epsilon' = epsilon N/n, scale' = scale
    sqrt(N/n).
    """

    counts: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _over_channels(call)
        _only_zeros_go(analysis, call)
        # A zero stays zero: there is no offset.
        source = call.inputs[0]
        constant = _affine(call, len(source.labels))
        return Channels(source.labels, np.where(source.constant == 0, 0.0, constant))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        ratio = len(keep_in) / int(keep_in.sum())
        scale = call.weights["scale"][keep_in] * math.sqrt(ratio)
        return {"scale": scale.astype("float32")}, {"epsilon": call.layer.epsilon * ratio}


@register("unit_normalization")
class UnitNormalizationRule(Rule):
    """y = x / |x| over the channels: zeros do not count."""

    counts: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _over_channels(call)
        _only_zeros_go(analysis, call)
        source = call.inputs[0]
        return Channels(source.labels, np.where(source.constant == 0, 0.0, np.nan))


@register("group_normalization")
class GroupNormalizationRule(Rule):
    """Normalizes each group of channels by its own statistics; whole groups are removed."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        rank = len(call.shapes[0])
        need(layer.axis % rank == rank - 1, "normalizes another axis than the last")
        size = _group_size(layer, len(source.labels))
        labels = source.labels.reshape(-1, size)
        for column in labels.T[1:]:
            analysis.unite(labels[:, 0], column)
        constants = source.constant.reshape(-1, size)
        same = (constants == constants[:, :1]).all(axis=1)
        offset = call.weights.get("beta", np.zeros(source.labels.shape)).astype(np.float64)
        # Equal constants become zero before the offset.
        constant = np.where(np.repeat(same, size), offset, _affine(call, len(source.labels)))
        return Channels(source.labels, constant)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        groups = int(keep_in.sum()) // _group_size(call.layer, len(keep_in))
        weights = {name: value[keep_out] for name, value in call.weights.items()}
        return weights, {"groups": groups}


def _group_size(layer: Any, channels: int) -> int:
    return 1 if layer.groups == -1 else channels // int(layer.groups)
