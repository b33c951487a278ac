"""Rules of layers whose outputs are weighted sums over channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.surgery.channels import Analysis, Call, Channels, Reader
from edgecompress.surgery.groups import FilterAxis, Filters
from edgecompress.surgery.rules.base import (
    Cut,
    Rule,
    activate,
    channels_last,
    cut_bias,
    is_elementwise,
    need,
    plain_weights,
    reads_border,
    register,
)


def _mix(analysis: Analysis, call: Call, kernel: np.ndarray, exact: bool) -> Channels:
    """Follows a layer whose outputs are weighted sums; kernel is (positions, inputs, outputs)."""
    layer, source = call.layer, call.inputs[0]
    need(len(source.labels) == kernel.shape[1], "mixes channels in groups")
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
    if not is_elementwise(activation):
        analysis.freeze(outputs, f"the activation of {call.title} mixes channels")
        return Channels(outputs, np.full(len(outputs), np.nan))
    return Channels(outputs, activate(activation, constant))


def _in_groups(analysis: Analysis, call: Call) -> Channels:
    """Follows a grouped convolution: the inputs and outputs of a group are removed together."""
    layer, kernel, source = call.layer, call.weights["kernel"], call.inputs[0]
    need(is_elementwise(layer.activation), "has an activation that mixes channels")
    size, count = kernel.shape[-2:]
    labels = source.labels.reshape(layer.groups, size)
    for column in labels.T[1:]:
        analysis.unite(labels[:, 0], column)
    outputs = np.repeat(labels[:, 0], count // layer.groups)
    analysis.producers.setdefault(call.path, outputs)
    incoming = source.constant
    if reads_border(analysis, layer):
        incoming = np.where(incoming == 0, incoming, np.nan)
    # The inputs of each output, (inputs of a group, outputs).
    read = np.repeat(incoming.reshape(layer.groups, size), count // layer.groups, axis=0).T
    taps = kernel.reshape(-1, size, count)
    reads = (taps != 0).any(axis=0)
    analysis.filters[call.path] = ~reads.any(axis=0)
    bias = call.weights.get("bias", np.zeros(count)).astype(np.float64)
    constant = bias + (np.where(reads, read, 0.0) * taps.sum(axis=0, dtype=np.float64)).sum(axis=0)
    return Channels(outputs, activate(layer.activation, constant))


@register("dense")
class DenseRule(Rule):
    """y = x W + b on the last axis."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        plain_weights(call.layer)
        return _mix(analysis, call, call.weights["kernel"][None], exact=True)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel = call.weights["kernel"][keep_in][:, keep_out]
        return {"kernel": kernel, **cut_bias(call, keep_out)}, {"units": int(keep_out.sum())}


@register("convolution")
class ConvRule(Rule):
    """A convolution over all channels, or over each of several groups of them."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, kernel = call.layer, call.weights["kernel"]
        plain_weights(layer)
        channels_last(layer)
        if layer.groups > 1:
            return _in_groups(analysis, call)
        return _mix(
            analysis,
            call,
            kernel.reshape(-1, *kernel.shape[-2:]),
            not reads_border(analysis, layer),
        )

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel, entries = call.weights["kernel"], {"filters": int(keep_out.sum())}
        if call.layer.groups > 1:  # Whole groups stay or go.
            entries["groups"] = int(keep_in.sum()) // kernel.shape[-2]
        else:
            kernel = kernel[..., keep_in, :]
        return {"kernel": kernel[..., keep_out], **cut_bias(call, keep_out)}, entries


@register("transposed")
class ConvTransposeRule(Rule):
    """A transposed convolution; its kernel is (..., outputs, inputs)."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        channels_last(call.layer)
        kernel = np.swapaxes(call.weights["kernel"], -1, -2)
        # A constant input gives a pattern, as positions see different elements of the kernel.
        return _mix(analysis, call, kernel.reshape(-1, *kernel.shape[-2:]), exact=False)

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        kernel = call.weights["kernel"][..., keep_out, :][..., keep_in]
        return {"kernel": kernel, **cut_bias(call, keep_out)}, {"filters": int(keep_out.sum())}


@register("separable")
class SeparableConvRule(Rule):
    """A depthwise and a pointwise convolution in one: together a convolution of low rank."""

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, depthwise = call.layer, call.weights["depthwise_kernel"].astype(np.float64)
        channels_last(layer)
        inputs, multiplier = depthwise.shape[-2:]
        pointwise = call.weights["pointwise_kernel"].reshape(inputs, multiplier, -1)
        kernel = np.einsum("pim,imo->pio", depthwise.reshape(-1, inputs, multiplier), pointwise)
        return _mix(analysis, call, kernel, not reads_border(analysis, layer))

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        depthwise, pointwise = call.weights["depthwise_kernel"], call.weights["pointwise_kernel"]
        rows = np.repeat(keep_in, depthwise.shape[-1])
        weights = {
            "depthwise_kernel": depthwise[..., keep_in, :],
            "pointwise_kernel": pointwise[..., rows, :][..., keep_out],
            **cut_bias(call, keep_out),
        }
        return weights, {"filters": int(keep_out.sum())}


@register("einsum")
class EinsumDenseRule(Rule):
    """EinsumDense that sums over the last axis of its input and makes the last of its output.

    Other axes of the kernel are like the positions of a convolution's kernel: `abc,cd->abd`,
    `abde,dec->abc`, `abc,cde->abde`.
    """

    def follow(self, analysis: Analysis, call: Call) -> Channels:
        """See Rule."""
        layer, kernel = call.layer, call.weights["kernel"]
        plain_weights(layer)
        given, axes, made = _equation(layer)
        need(given[-1] in axes and given[-1] not in made, "does not sum over its last axis")
        need(made[-1] in axes and made[-1] not in given, "does not make its last axis")
        alone = layer.bias_axes in (None, made[-1])
        need(alone, "has a bias with other axes than the channels")
        order = (axes.index(given[-1]), axes.index(made[-1]))
        taps = np.moveaxis(kernel, order, (-2, -1))
        # Along an axis that its output has as well, positions see different weights.
        exact = not any(axis in made for axis in axes if axis != made[-1])
        return _mix(analysis, call, taps.reshape(-1, *taps.shape[-2:]), exact)

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """See Rule."""
        _, axes, made = _equation(layer)
        if made[-1] not in axes:
            return ()
        return (Filters((FilterAxis("kernel", axes.index(made[-1]) - len(axes)),)),)

    def bias_entry(self, layer: Any) -> dict[str, Any]:
        """See Rule."""
        return {"bias_axes": _equation(layer)[2][-1]}

    def cut(self, call: Call, keep_in: np.ndarray, keep_out: np.ndarray) -> Cut:
        """See Rule."""
        given, axes, made = _equation(call.layer)
        kernel = np.compress(keep_in, call.weights["kernel"], axes.index(given[-1]))
        kernel = np.compress(keep_out, kernel, axes.index(made[-1]))
        shape = call.layer.get_config()["output_shape"]
        shape = list(shape) if isinstance(shape, (list, tuple)) else [shape]
        entries = {"output_shape": (*shape[:-1], int(keep_out.sum()))}
        return {"kernel": kernel, **cut_bias(call, keep_out)}, entries


def _equation(layer: Any) -> tuple[str, str, str]:
    """Returns the axes of the input, the kernel and the output."""
    operands, made = layer.equation.replace(" ", "").split("->")
    given, axes = operands.split(",")
    return given, axes, made
