"""How each family of layers moves channels, and how it is cut: one small class each.

A layer without a rule, a subclass of a Keras layer, or a layer whose configuration its rule does
not support keeps all channels that it touches: less is removed, but the result is correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.registry import Registry
from edgecompress.surgery.channels import Analysis, Call, Channels, NotUnderstood, Reader

# Elementwise activations; softmax and the like mix channels.
_ELEMENTWISE = {
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu",
    "hard_swish", "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus", "squareplus",
    "swish", "tanh", "tanh_shrink", "threshold",
}  # fmt: skip

Cut = tuple[dict[str, np.ndarray], dict[str, Any]]


class Rule:
    """How one family of layers treats channels."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """Returns the channels of the output and notes in `analysis` what the layer needs.

        Raises:
            NotUnderstood: this rule does not support the layer's configuration.
        """
        raise NotImplementedError

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """Returns the weights and the changed config entries for the kept channels.

        Args:
            call: The layer.
            keep_in: Which channels of its first input stay, (inputs,) booleans.
            keep_out: Which channels of its output stay, (outputs,) booleans.
        """
        return dict(call.weights), {}


# By the family of the layer's class in `core.layer_kinds`.
RULES: Registry[Rule] = Registry("family of layers")


def _register(family: str) -> Callable[[type[Rule]], type[Rule]]:
    def store(rule: type[Rule]) -> type[Rule]:
        RULES.register(family)(rule())
        return rule

    return store


def rule_of(layer: Any) -> Rule | None:
    """Returns the rule of a layer; None for operations, subclasses and unknown classes."""
    kind = exact_kind_of(layer) if isinstance(layer, keras.layers.Layer) else None
    return None if kind is None else RULES.get(kind.family)


def _need(condition: bool, why_not: str) -> None:
    if not condition:
        raise NotUnderstood(why_not)


def _channels_last(layer: Any) -> None:
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    _need(last, "keeps its channels first")


def _activate(activation: Any, values: np.ndarray) -> np.ndarray:
    """Applies an elementwise Keras activation to constants; NaN stays NaN."""
    known = ~np.isnan(values)
    if activation in (None, keras.activations.linear) or not known.any():
        return values
    filled = np.where(known, values, 0.0).astype("float32")
    result = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(filled)))
    return np.where(known, result.astype(np.float64), np.nan)


def _elementwise(activation: Any) -> bool:
    if activation is None:
        return True
    name = getattr(activation, "__name__", "")
    return name in _ELEMENTWISE and getattr(keras.activations, name, None) is activation


def _mix(analysis: Analysis, call: Call, kernel: np.ndarray, exact: bool) -> Channels:
    """Follows a layer whose outputs are weighted sums; kernel is (positions, inputs, outputs)."""
    layer, source = call.layer, call.inputs[0]
    _need(len(source.labels) == kernel.shape[1], "mixes channels in groups")
    outputs = analysis.made_by(call.path, kernel.shape[2])
    sums = kernel[0] if len(kernel) == 1 else kernel.sum(axis=0, dtype=np.float64)
    reads = (kernel != 0).any(axis=0)
    reader = Reader(source.labels, source.constant, outputs, sums, reads, exact)
    analysis.read(call.path, reader)
    analysis.filters[call.path] = ~reads.any(axis=0)
    varies = (reads & ~reader.foldable[:, None]).any(axis=0)
    bias = call.weights.get("bias", np.zeros(kernel.shape[2])).astype(np.float64)
    values = bias + reader.respond(np.where(reader.foldable, source.constant, 0.0))
    constant = np.where(varies, np.nan, values)
    activation = getattr(layer, "activation", None)
    if not _elementwise(activation):
        analysis.freeze(outputs, f"the activation of {call.title} mixes channels")
        return Channels(outputs, np.full(len(outputs), np.nan))
    return Channels(outputs, _activate(activation, constant))


def _pads(analysis: Analysis, layer: Any) -> bool:
    """Returns whether a convolution reads zeros beyond the border."""
    return analysis.borders and layer.padding != "valid" and math.prod(layer.kernel_size) > 1


def _plain_weights(layer: Any) -> None:
    _need(not getattr(layer, "lora_enabled", False), "is adapted by LoRA")
    _need(getattr(layer, "quantization_mode", None) is None, "is quantized in place")


def _cut_bias(call: Call, keep_out: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value[keep_out] for name, value in call.weights.items() if name == "bias"}


@_register("dense")
class DenseRule(Rule):
    """y = x W + b on the last axis."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _plain_weights(call.layer)
        return _mix(analysis, call, call.weights["kernel"][None], exact=True)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel = call.weights["kernel"][keep_in][:, keep_out]
        return {"kernel": kernel, **_cut_bias(call, keep_out)}, {"units": int(keep_out.sum())}


@_register("convolution")
class ConvRule(Rule):
    """A convolution over all channels."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, kernel = call.layer, call.weights["kernel"]
        _plain_weights(layer)
        _channels_last(layer)
        _need(layer.groups == 1, "convolves in groups")
        return _mix(
            analysis, call, kernel.reshape(-1, *kernel.shape[-2:]), not _pads(analysis, layer)
        )

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel = call.weights["kernel"][..., keep_in, :][..., keep_out]
        return {"kernel": kernel, **_cut_bias(call, keep_out)}, {"filters": int(keep_out.sum())}


@_register("transposed")
class ConvTransposeRule(Rule):
    """A transposed convolution; its kernel is (..., outputs, inputs)."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _channels_last(call.layer)
        kernel = np.swapaxes(call.weights["kernel"], -1, -2)
        # A constant input gives a pattern, as positions see different elements of the kernel.
        return _mix(analysis, call, kernel.reshape(-1, *kernel.shape[-2:]), exact=False)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel = call.weights["kernel"][..., keep_out, :][..., keep_in]
        return {"kernel": kernel, **_cut_bias(call, keep_out)}, {"filters": int(keep_out.sum())}


@_register("separable")
class SeparableConvRule(Rule):
    """A depthwise and a pointwise convolution in one: together a convolution of low rank."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, depthwise = call.layer, call.weights["depthwise_kernel"].astype(np.float64)
        _channels_last(layer)
        inputs, multiplier = depthwise.shape[-2:]
        pointwise = call.weights["pointwise_kernel"].reshape(inputs, multiplier, -1)
        kernel = np.einsum("pim,imo->pio", depthwise.reshape(-1, inputs, multiplier), pointwise)
        return _mix(analysis, call, kernel, not _pads(analysis, layer))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        depthwise, pointwise = call.weights["depthwise_kernel"], call.weights["pointwise_kernel"]
        rows = np.repeat(keep_in, depthwise.shape[-1])
        weights = {
            "depthwise_kernel": depthwise[..., keep_in, :],
            "pointwise_kernel": pointwise[..., rows, :][..., keep_out],
            **_cut_bias(call, keep_out),
        }
        return weights, {"filters": int(keep_out.sum())}


@_register("depthwise")
class DepthwiseConvRule(Rule):
    """A separate convolution per channel; output channels are removed with their input channel."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, kernel, source = call.layer, call.weights["kernel"], call.inputs[0]
        _channels_last(layer)
        _need(_elementwise(layer.activation), "has an activation that mixes channels")
        multiplier = kernel.shape[-1]
        taps = kernel.reshape(-1, kernel.shape[-2] * multiplier)
        zero = ~(taps != 0).any(axis=0)
        analysis.filters[call.path] = zero
        incoming = np.repeat(source.constant, multiplier)
        if _pads(analysis, layer):
            incoming = np.where(incoming == 0, incoming, np.nan)
        incoming = np.where(zero, 0.0, incoming)
        bias = call.weights.get("bias", np.zeros(len(zero))).astype(np.float64)
        constant = bias + incoming * taps.sum(axis=0, dtype=np.float64)
        labels = np.repeat(source.labels, multiplier)
        return Channels(labels, _activate(layer.activation, constant))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        return {"kernel": call.weights["kernel"][..., keep_in, :], **_cut_bias(call, keep_out)}, {}


@_register("normalization")
class BatchNormalizationRule(Rule):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, weights, source = call.layer, call.weights, call.inputs[0]
        axis = layer.axis if isinstance(layer.axis, int) else None
        _need(axis in (-1, len(call.shapes[0]) - 1), "normalizes another axis than the last")
        deviation = np.sqrt(weights["moving_variance"].astype(np.float64) + layer.epsilon)
        scale = weights.get("gamma", 1.0) / deviation
        centered = np.where(scale == 0, 0.0, source.constant - weights["moving_mean"])
        return Channels(source.labels, scale * centered + weights.get("beta", 0.0))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        return {name: value[keep_out] for name, value in call.weights.items()}, {}


@_register("slope")
class PReLURule(Rule):
    """y = max(0, x) + alpha min(0, x) with a learnt alpha."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        alpha, source = call.weights["alpha"], call.inputs[0]
        _need(alpha.shape[-1] == len(source.labels), "shares its slope over channels")
        slopes = alpha.reshape(-1, alpha.shape[-1]).astype(np.float64)
        uniform = (slopes == slopes[0]).all(axis=0)
        negative = np.where(uniform, source.constant * slopes[0], np.nan)
        constant = np.where(source.constant >= 0, source.constant, negative)
        return Channels(source.labels, constant)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        return {"alpha": call.weights["alpha"][..., keep_out]}, {}


@_register("activation")
class ActivationRule(Rule):
    """An activation as a separate layer."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        if type(layer) is keras.layers.Activation:
            _need(_elementwise(layer.activation), "has an activation that may mix channels")
            return Channels(source.labels, _activate(layer.activation, source.constant))
        return Channels(source.labels, _activate(layer, source.constant))


@_register("pooling")
class PoolingRule(Rule):
    """Works per channel and keeps a constant; averages exclude padding."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _channels_last(call.layer)
        return call.inputs[0]


@_register("identity")
class IdentityRule(Rule):
    """Does nothing at inference."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        return call.inputs[0]


@_register("padding")
class ZeroPaddingRule(Rule):
    """Adds zeros around each channel, so that only the constant 0 remains constant."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _channels_last(call.layer)
        source = call.inputs[0]
        if not analysis.borders:
            return source
        return Channels(source.labels, np.where(source.constant == 0, 0.0, np.nan))


@_register("rescaling")
class RescalingRule(Rule):
    """y = x scale + offset with plain numbers."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, source = call.layer, call.inputs[0]
        numbers = isinstance(layer.scale, (int, float)) and isinstance(layer.offset, (int, float))
        _need(numbers, "has a scale for each channel")
        return Channels(source.labels, source.constant * layer.scale + layer.offset)


@_register("flatten")
class FlattenRule(Rule):
    """Lays the positions one after another; channels stay the fastest axis."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        _channels_last(call.layer)
        positions = call.shapes[0][1:-1]
        _need(None not in positions, "flattens an unknown number of positions")
        count = math.prod(p for p in positions if p is not None)
        source = call.inputs[0]
        return Channels(np.tile(source.labels, count), np.tile(source.constant, count))


@_register("reshape")
class ReshapeRule(Rule):
    """A reshape that keeps the last axis or makes it the only one."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        source, shape = call.inputs[0], call.output_shape
        if shape[-1] == len(source.labels):
            return source
        _need(len(shape) == 2 and None not in call.shapes[0][1:], "splits or joins channels")
        count = math.prod(p for p in call.shapes[0][1:-1] if p is not None)
        return Channels(np.tile(source.labels, count), np.tile(source.constant, count))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        target = list(call.layer.target_shape)
        if target[-1] != -1:
            target[-1] = int(keep_out.sum())
        return {}, {"target_shape": target}


def _merge_constants(name: str, constants: list[np.ndarray]) -> np.ndarray:
    stack = np.stack(constants)
    if name == "Multiply":
        return np.where((stack == 0).any(axis=0), 0.0, np.prod(stack, axis=0))
    functions: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
        "Add": lambda s: s.sum(axis=0),
        "Subtract": lambda s: s[0] - s[1],
        "Average": lambda s: s.mean(axis=0),
        "Maximum": lambda s: s.max(axis=0),
        "Minimum": lambda s: s.min(axis=0),
    }
    return functions[name](stack)


@_register("merge")
class MergeRule(Rule):
    """Combines tensors channel by channel; a single channel is broadcast over the others'."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        ranks = {len(shape) for shape in call.shapes}
        _need(len(ranks) == 1, "combines tensors of different ranks")
        count = max(len(source.labels) for source in call.inputs)
        widest = next(s for s in call.inputs if len(s.labels) == count)
        constants = []
        for source in call.inputs:
            if len(source.labels) == count:
                analysis.unite(widest.labels, source.labels)
                constants.append(source.constant)
            else:
                analysis.freeze(source.labels, f"{call.title} spreads them over other channels")
                constants.append(np.repeat(source.constant, count))
        return Channels(widest.labels, _merge_constants(type(call.layer).__name__, constants))


@_register("concatenate")
class ConcatenateRule(Rule):
    """Concatenates channels, or positions of the same channels."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
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
