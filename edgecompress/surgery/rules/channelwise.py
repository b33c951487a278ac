"""Rules of layers that work on each channel alone, or on the same channel of several tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import keras
import numpy as np

from edgecompress.surgery.channels import Analysis, Call, Channels, NotUnderstood
from edgecompress.surgery.rules.base import (
    Cut,
    Rule,
    activate,
    channels_last,
    cut_bias,
    is_elementwise,
    need,
    reads_border,
    register,
)


@register("depthwise")
class DepthwiseConvRule(Rule):
    """A separate convolution per channel; output channels are removed with their input channel."""

    offsets: ClassVar[tuple[str, ...]] = ("bias",)

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, kernel, source = call.layer, call.weights["kernel"], call.inputs[0]
        channels_last(layer)
        need(is_elementwise(layer.activation), "has an activation that mixes channels")
        multiplier = kernel.shape[-1]
        taps = kernel.reshape(-1, kernel.shape[-2] * multiplier)
        zero = ~(taps != 0).any(axis=0)
        analysis.filters[call.path] = zero
        incoming = np.repeat(source.constant, multiplier)
        if reads_border(analysis, layer):
            incoming = np.where(incoming == 0, incoming, np.nan)
        incoming = np.where(zero, 0.0, incoming)
        bias = call.weights.get("bias", np.zeros(len(zero))).astype(np.float64)
        constant = bias + incoming * taps.sum(axis=0, dtype=np.float64)
        labels = np.repeat(source.labels, multiplier)
        return Channels(labels, activate(layer.activation, constant))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        return {"kernel": call.weights["kernel"][..., keep_in, :], **cut_bias(call, keep_out)}, {}


@register("normalization")
class BatchNormalizationRule(Rule):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta."""

    gains: ClassVar[tuple[str, ...]] = ("gamma",)
    offsets: ClassVar[tuple[str, ...]] = ("beta",)

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, weights, source = call.layer, call.weights, call.inputs[0]
        axis = layer.axis if isinstance(layer.axis, int) else None
        need(axis in (-1, len(call.shapes[0]) - 1), "normalizes another axis than the last")
        deviation = np.sqrt(weights["moving_variance"].astype(np.float64) + layer.epsilon)
        scale = weights.get("gamma", 1.0) / deviation
        centered = np.where(scale == 0, 0.0, source.constant - weights["moving_mean"])
        return Channels(source.labels, scale * centered + weights.get("beta", 0.0))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        return {name: value[keep_out] for name, value in call.weights.items()}, {}


@register("slope")
class PReLURule(Rule):
    """y = max(0, x) + alpha min(0, x) with a learnt alpha."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        alpha, source = call.weights["alpha"], call.inputs[0]
        slopes = alpha.reshape(-1, alpha.shape[-1]).astype(np.float64)
        uniform = (slopes == slopes[0]).all(axis=0)
        negative = np.where(uniform, source.constant * slopes[0], np.nan)
        constant = np.where(source.constant >= 0, source.constant, negative)
        return Channels(source.labels, constant)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        alpha = call.weights["alpha"]
        shared = alpha.shape[-1] != len(keep_out)  # One slope for all channels.
        return {"alpha": alpha if shared else alpha[..., keep_out]}, {}


@register("activation")
class ActivationRule(Rule):
    """An activation as a separate layer, or an elementwise operation."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        need(call.plain, "is called with other arguments than tensors")
        if type(layer) is keras.layers.Activation:
            need(is_elementwise(layer.activation), "has an activation that may mix channels")
            return Channels(source.labels, activate(layer.activation, source.constant))
        return Channels(source.labels, activate(layer, source.constant))


@register("pooling")
class PoolingRule(Rule):
    """Works per channel and keeps a constant; averages exclude padding."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        channels_last(call.layer)
        return call.inputs[0]


@register("identity")
class IdentityRule(Rule):
    """Does nothing at inference."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        return call.inputs[0]


@register("padding")
class ZeroPaddingRule(Rule):
    """Adds zeros around each channel, so that only the constant 0 remains constant."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        channels_last(call.layer)
        source = call.inputs[0]
        if not analysis.borders:
            return source
        return Channels(source.labels, np.where(source.constant == 0, 0.0, np.nan))


@register("rescaling")
class RescalingRule(Rule):
    """y = x scale + offset with plain numbers."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        numbers = isinstance(layer.scale, (int, float)) and isinstance(layer.offset, (int, float))
        need(numbers, "has a scale for each channel")
        return Channels(source.labels, source.constant * layer.scale + layer.offset)


@register("scale")
class ScaleRule(Rule):
    """y = gamma x with a learnt factor for each channel."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        gamma, source = call.weights["gamma"], call.inputs[0]
        need(gamma.shape == source.labels.shape, "has another number of factors than channels")
        constant = np.where(gamma == 0, 0.0, gamma.astype(np.float64) * source.constant)
        return Channels(source.labels, constant)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        gamma = call.weights["gamma"][keep_out]
        return {"gamma": gamma}, {"projection_dim": len(gamma)}


def _product(stack: np.ndarray) -> np.ndarray:
    return np.where((stack == 0).any(axis=0), 0.0, np.prod(stack, axis=0))


# Layers and operations that combine tensors channel by channel; (inputs, channels) -> (channels,).
_COMBINE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "Add": lambda s: s.sum(axis=0),
    "Subtract": lambda s: s[0] - s[1],
    "Multiply": _product,
    "Divide": lambda s: s[0] / s[1],
    "TrueDivide": lambda s: s[0] / s[1],
    "Maximum": lambda s: s.max(axis=0),
    "Minimum": lambda s: s.min(axis=0),
}
# The operation of this name is a mean over an axis.
_LAYERS = {**_COMBINE, "Average": lambda s: s.mean(axis=0)}


@register("merge")
class MergeRule(Rule):
    """Combines tensors and numbers channel by channel; a single channel is broadcast."""

    operations: ClassVar[bool] = True

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        known = _LAYERS if isinstance(call.layer, keras.layers.Layer) else _COMBINE
        combine = known.get(type(call.layer).__name__)
        if combine is None:
            raise NotUnderstood("is not understood")
        return self.combined(analysis, call, combine)

    def combined(
        self, analysis: Analysis, call: Call, combine: Callable[[np.ndarray], np.ndarray]
    ) -> Channels:
        """Ties the channels of the inputs together and combines their constants."""
        ranks = {len(shape) for shape in call.shapes}
        need(len(ranks) == 1, "combines tensors of different ranks")
        count = max(len(source.labels) for source in call.inputs)
        widest = next(s for s in call.inputs if len(s.labels) == count)
        constants = []
        for operand in _operands(call):
            if isinstance(operand, float):
                constants.append(np.full(count, operand))
            elif len(operand.labels) == count:
                analysis.unite(widest.labels, operand.labels)
                constants.append(operand.constant)
            else:
                analysis.freeze(operand.labels, f"{call.title} spreads them over other channels")
                constants.append(np.repeat(operand.constant, count))
        with np.errstate(all="ignore"):
            constant = combine(np.stack(constants))
        return Channels(widest.labels, np.where(np.isfinite(constant), constant, np.nan))


def _operands(call: Call) -> list[Channels | float]:
    """Returns what a call combines, in order: channels of tensors, or numbers."""
    sources = iter(call.inputs)
    operands: list[Channels | float] = []
    for leaf in keras.tree.flatten((call.args, call.kwargs)):
        if isinstance(leaf, keras.KerasTensor):
            operands.append(next(sources))
            continue
        need(leaf is not None and not isinstance(leaf, str), "has arguments that are not numbers")
        values = np.asarray(keras.ops.convert_to_numpy(leaf))
        need(values.size == 1, "has a constant of more than one number")
        need(values.ndim <= len(call.shapes[0]), "combines tensors of different ranks")
        operands.append(float(values.reshape(())))
    return operands


@register("quotient")
class QuotientRule(MergeRule):
    """A quotient of tensors and numbers, channel by channel."""


@register("scaled sum")
class ScaledSumRule(MergeRule):
    """y = a + scale b, as in Inception-ResNet."""

    operations: ClassVar[bool] = False

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        scale = call.layer.scale
        need(isinstance(scale, (int, float)), "has a scale that is not a number")
        return self.combined(analysis, call, lambda s: s[0] + scale * s[1])
