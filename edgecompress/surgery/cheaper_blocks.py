"""Replaces convolutions by cheaper blocks: the rewrite `cheaper-blocks`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import LayerCall, layer_calls, named_layers
from edgecompress.core.options import Choice, Flag, Text, option, parse_options, whole
from edgecompress.surgery.blocks import BLOCKS
from edgecompress.surgery.blocks.base import Block, Chain, Site, Step, axes_of
from edgecompress.surgery.factors.base import Part
from edgecompress.surgery.layer_parts import (
    NO_DEPTHWISE,
    depthwise_exists,
    given_up,
    has_kernel,
    of_other_classes,
    part_layer,
    part_macs,
    why_not_split,
)
from edgecompress.surgery.predicted import check_latency_target, why_not_faster
from edgecompress.surgery.rewrites import REWRITES, Rewrite, Rewritten

_ALL = ".*"
# The end of the names of a block's layers: they are not replaced again.
_OWN = "_block"
# Families of layers: the first is replaced, the other named. Depthwise ones are cheap already.
_CONVOLUTIONS = ("convolution", "transposed")
# Of the BatchNormalization in a block: its statistics start from nothing, and the training that
# follows may be short.
_MOMENTUM = 0.9


@REWRITES.register("cheaper-blocks")
@dataclass(frozen=True)
class CheaperBlocks(Rewrite):
    """Replaces convolutions by blocks of cheaper convolutions; the rest of the model stays.

    Crowley, Gray and Storkey, Moonshine: Distilling with Cheap Convolutions (2018,
    https://arxiv.org/abs/1711.02613): the new model then learns from the old one by attention
    transfer (`Distillation`). A block starts as the nearest approximation of the kernel where there
    is one, and from random values otherwise; the record says which. A layer for which the block
    takes as many multiply-accumulates is left as it is, and so is one that the block does not
    suit; the notes say why.

    Args:
        kind: The block, a name in `surgery.blocks.BLOCKS`.
        groups: Groups of its convolutions; None for the kind's own number.
        factor: Divisor of the channels in its middle; None for the kind's own.
        target: Name of a target: a layer whose block its cost model does not predict to be faster
            is left as it is. Defaults to None: multiply-accumulates decide.
        layers: Regular expression: the layers whose whole name it matches.
        nonlinear: Whether BatchNormalization and ReLU stand between the convolutions of a block, as
            in the papers. Without them the block begins as an approximation of the layer; with
            them it has to be trained anew.

    Raises:
        ArgumentError: `layers` is no regular expression or matches no convolution, or the latency
            on `target` is not predicted.
        UnknownNameError: the kind is unknown or has no such option, or there is no such target.
    """

    exact: ClassVar[bool] = False

    kind: str = option("depthwise-separable", "The block.", Choice(names=lambda: BLOCKS))
    groups: int | None = option(None, "Groups of its convolutions.", whole(1), unset="the kind's")
    factor: int | None = option(
        None, "Divisor of the channels in its middle.", whole(1), unset="the kind's"
    )
    target: str | None = option(None, "Target on which every block has to be faster.", Text())
    layers: str = option(_ALL, "Regular expression: names of the layers to replace.", Text())
    nonlinear: bool = option(False, "BatchNormalization and ReLU inside the blocks.", Flag())

    def __post_init__(self) -> None:
        """Refuses options that the kind does not have."""
        _ = self.block
        if self.target is not None:
            check_latency_target(self.target)
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ArgumentError("layers", "be a regular expression", self.layers) from error

    @property
    def block(self) -> Block:
        """The block with its options."""
        given = {"groups": self.groups, "factor": self.factor}
        return parse_options(BLOCKS[self.kind], given, f"cheaper-blocks kind={self.kind}")

    def apply(self, model: Any) -> Rewritten:
        """Returns the model with blocks in place of layers; see `Rewrite.apply`."""
        from edgecompress.core.model_copy import copy_model

        calls: dict[int, list[LayerCall]] = {}
        for call in layer_calls(model):
            calls.setdefault(id(call.layer), []).append(call)
        chosen = {
            path: layer
            for path, layer in named_layers(model)
            if has_kernel(layer, _OWN, _CONVOLUTIONS[:1]) and re.fullmatch(self.layers, path)
        }
        if not chosen and self.layers != _ALL:
            raise ArgumentError("layers", "match the name of a convolution", self.layers)
        block = self.block
        replaced, details, notes = {}, {}, []
        for path, layer in chosen.items():
            uses = calls.get(id(layer), [])
            site = why_not_split(layer, uses) or _site(layer, uses[0])
            why = site if isinstance(site, str) else _why_not(block, layer, site)
            if why is not None or isinstance(site, str):
                notes.append(f"cheaper-blocks leaves {path}: {why}.")
                continue
            chains = block.chains(site)
            before, after = _macs(site, chains, uses[0])
            if after >= before:
                notes.append(
                    f"cheaper-blocks leaves {path}: the block {self.kind} takes "
                    f"{after / before:.2f} times its multiply-accumulates."
                )
                continue
            made = _replacement(layer, chains, uses[0], self.nonlinear)
            why = None if self.target is None else why_not_faster(layer, uses[0], made, self.target)
            if why is not None:
                notes.append(f"cheaper-blocks leaves {path}: {why}.")
                continue
            replaced[path] = made
            details[path] = {"macs": [before, after], **self._start(block, site)}
            notes += [f"cheaper-blocks: {path}: {text}." for text in given_up(layer)]
        others = of_other_classes(
            model, self.layers, _CONVOLUTIONS[:1], _CONVOLUTIONS, "Conv1D and Conv2D are replaced"
        )
        notes += [f"cheaper-blocks leaves {text}." for text in others]
        if not replaced:
            if not chosen:
                notes.append("cheaper-blocks replaces nothing: the model has no convolution.")
            return Rewritten(model, notes=tuple(notes))
        result = copy_model(model, replaced=replaced)
        return Rewritten(result, details={"replaced": details}, notes=tuple(notes))

    def _start(self, block: Block, site: Site) -> dict[str, Any]:
        """Returns what the record says about the values that a block starts from."""
        product = block.product(site)
        if product is None:
            return {"start": "random"}
        if self.nonlinear and any(len(chain) > 1 for chain in block.chains(site)):
            return {"start": "kernel, with BatchNormalization and ReLU between"}
        whole = np.square(site.kernel, dtype=np.float64).sum()
        lost = np.square(site.kernel - product).sum()
        return {"start": "kernel", "energy": 1 - float(lost / whole) if whole else 1.0}


def _site(layer: Any, call: LayerCall) -> Site:
    import keras

    return Site(keras.ops.convert_to_numpy(layer.kernel), _tap(layer, call))


def _tap(layer: Any, call: LayerCall) -> tuple[int, ...] | None:
    """Returns what `Site.tap` is: how much padding comes before, in steps of the dilation."""
    found = []
    for axis, size in enumerate(layer.kernel_size):
        inputs, outputs = call.inputs[0][1 + axis], call.outputs[0][1 + axis]
        stride, dilation = layer.strides[axis], layer.dilation_rate[axis]
        if inputs is None or outputs is None or outputs != -(-inputs // stride):
            return None
        reach = (size - 1) * dilation
        if layer.padding == "causal":
            before = reach
        elif layer.padding == "same":
            before = max((outputs - 1) * stride + reach + 1 - inputs, 0) // 2
        else:
            before = 0
        if before % dilation:
            return None
        found.append(before // dilation)
    return tuple(found)


def _why_not(block: Block, layer: Any, site: Site) -> str | None:
    if max(site.shape[:-2]) == 1:
        return "its kernel is 1x1, a matrix: low-rank makes it smaller"
    if block.depthwise and not depthwise_exists(layer):
        return NO_DEPTHWISE
    return block.why_not(site)


def _macs(site: Site, chains: Sequence[Chain], call: LayerCall) -> tuple[int, int]:
    """Returns the multiply-accumulates of the convolution and of the block."""
    before = part_macs((Part(site.shape, axes_of(site)),), call)
    return before, sum(part_macs([step.part for step in chain], call) for chain in chains)


def _replacement(layer: Any, chains: Sequence[Chain], call: LayerCall, nonlinear: bool) -> Any:
    """Returns a model of the layer's name: the block, with the layer's bias and activation."""
    import keras

    inputs = keras.Input(call.inputs[0][1:], dtype=layer.compute_dtype)
    made: list[tuple[Any, Step]] = []
    sums, alone = [], len(chains) == 1
    for branch, chain in enumerate(chains, 1):
        x = inputs
        for index, step in enumerate(chain, 1):
            name = f"{layer.name}_{branch}_{index}" if not alone else f"{layer.name}_{index}"
            last = index == len(chain)
            part = part_layer(
                layer, step.part, f"{name}{_OWN}", last and branch == 1, last and alone
            )
            x = part(x)
            made.append((part, step))
            if last:
                continue
            if nonlinear:
                x = _normalized(x, layer, step.relu, name)
            x = _shuffled(x, step.shuffle, name)
        sums.append(x)
    if not alone:
        dtype = layer.dtype_policy
        x = keras.layers.Add(name=f"{layer.name}_sum{_OWN}", dtype=dtype)(sums)
        x = keras.layers.Activation(
            layer.activation,
            activity_regularizer=layer.activity_regularizer,
            name=f"{layer.name}_activation{_OWN}",
            dtype=dtype,
        )(x)
    model = keras.Model(inputs, x, name=layer.name)
    for part, step in made:
        kernel = _random(step.part) if step.kernel is None else step.kernel
        bias = [layer.bias] if part.use_bias else []
        part.set_weights([*map(keras.ops.convert_to_numpy, [kernel, *bias])])
    model.trainable = layer.trainable
    return model


def _random(part: Part) -> Any:
    """Returns a random kernel that keeps the variance: 1 / inputs, those that one output reads.

    Keras's initializers count other inputs of depthwise and grouped kernels.
    """
    import keras

    inputs = math.prod(part.shape[:-2]) * (1 if part.depthwise else part.shape[-2])
    return keras.random.normal(part.shape, stddev=1 / math.sqrt(inputs))


def _normalized(x: Any, layer: Any, relu: bool, name: str) -> Any:
    import keras

    dtype = layer.dtype_policy
    x = keras.layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_norm{_OWN}", dtype=dtype)(
        x
    )
    return keras.layers.ReLU(name=f"{name}_relu{_OWN}", dtype=dtype)(x) if relu else x


def _shuffled(x: Any, groups: int, name: str) -> Any:
    """Returns the channels shuffled, by operators of at most four axes, which every engine has."""
    import keras

    if groups == 1:
        return x
    *space, channels = x.shape[1:]
    shape = (math.prod(space), groups, channels // groups)
    x = keras.layers.Reshape(shape, name=f"{name}_split{_OWN}")(x)
    x = keras.layers.Permute((1, 3, 2), name=f"{name}_shuffle{_OWN}")(x)
    return keras.layers.Reshape((*space, channels), name=f"{name}_join{_OWN}")(x)
