"""How each family of layers moves channels, and how it is cut: one small class each.

A layer without a rule, a subclass of a Keras layer, or a layer whose configuration its rule does
not support keeps all channels that it touches: less is removed, but the result is correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from edgecompress.core.keras_graph import named_layers
from edgecompress.core.layer_kinds import exact_kind_of
from edgecompress.core.registry import Registry
from edgecompress.surgery.channels import Analysis, Call, Channels, NotUnderstood
from edgecompress.surgery.groups import FilterAxis, Filters

# Elementwise activations; softmax and the like mix channels.
_ELEMENTWISE = {
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu",
    "hard_swish", "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6",
    "selu", "sigmoid", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus", "squareplus",
    "swish", "tanh", "tanh_shrink", "threshold",
}  # fmt: skip

Cut = tuple[dict[str, np.ndarray], dict[str, Any]]


class Rule:
    """How one family of layers treats channels.

    Attributes:
        operations: Whether it also understands the operations of `keras.ops` of its family, and
            calls with numbers among the arguments.
        reads_channels: Whether the last axis of its input counts channels.
        counts: Whether its statistics count every channel, so that only zeros can be left out.
        pads: Whether it computes as many channels as before once it is cut, of which zeros are
            padded back.
        skips_masked: Whether a mask makes it skip time steps and changes nothing else.
        gains: Weights without which a channel of it that is always 0 is a constant behind it.
        offsets: Weights that such a channel holds behind it.
    """

    operations: ClassVar[bool] = False
    reads_channels: ClassVar[bool] = True
    counts: ClassVar[bool] = False
    pads: ClassVar[bool] = False
    skips_masked: ClassVar[bool] = False
    gains: ClassVar[tuple[str, ...]] = ()
    offsets: ClassVar[tuple[str, ...]] = ()

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

    def filters(self, layer: Any) -> tuple[Filters, ...]:
        """Returns where the filters of a layer are, each kind of them; none if it has none."""
        kind = exact_kind_of(layer)
        if kind is None or kind.kernel is None or kind.filter_axis is None:
            return ()
        return (Filters((FilterAxis(kind.kernel.attribute, kind.filter_axis),)),)

    def bias_entry(self, layer: Any) -> dict[str, Any]:
        """Returns the config entries that switch on a layer's bias."""
        return {"use_bias": True}

    def replacement(self, call: Call, keep: np.ndarray) -> keras.Model | None:
        """Returns the model that takes the layer's place once it is cut; None if it stays.

        Args:
            call: The layer.
            keep: Which channels of its input and output stay, (channels,) booleans.
        """
        return None


# By the family of the layer's class in `core.layer_kinds`.
RULES: Registry[Rule] = Registry("family of layers", "edgecompress.surgery.rules")


def register(family: str) -> Callable[[type[Rule]], type[Rule]]:
    """Returns a decorator that stores a rule for a family of layers."""

    def store(rule: type[Rule]) -> type[Rule]:
        RULES.register(family)(rule())
        return rule

    return store


def rule_of(layer: Any) -> Rule | None:
    """Returns the rule of a layer or operation; None for subclasses and unknown classes."""
    kind = exact_kind_of(layer)
    rule = None if kind is None else RULES.get(kind.family)
    if rule is None or isinstance(layer, keras.layers.Layer) or rule.operations:
        return rule
    return None


def filters_of(layer: Any) -> tuple[Filters, ...]:
    """Returns where the filters of a layer are; none if it has none that could be removed."""
    rule = rule_of(layer)
    return () if rule is None else rule.filters(layer)


@dataclass(frozen=True)
class Producer:
    """A layer whose filters could be removed.

    Attributes:
        owner: The layer's path.
        layer: It.
        filters: Where its filters are.
    """

    owner: str
    layer: Any
    filters: Filters


def producers_of(model: Any) -> dict[str, Producer]:
    """Returns the layers whose filters could be removed, by their names in `Analysis.producers`."""
    found = {}
    for path, layer in named_layers(model):
        for filters in filters_of(layer):
            name = f"{path}:{filters.part}" if filters.part else path
            found[name] = Producer(path, layer, filters)
    return found


def need(condition: bool, why_not: str) -> None:
    """Raises NotUnderstood with a reason unless a condition holds."""
    if not condition:
        raise NotUnderstood(why_not)


def channels_last(layer: Any) -> None:
    """Raises NotUnderstood for a layer whose channels are not the last axis."""
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    need(last, "keeps its channels first")


def activate(activation: Any, values: np.ndarray) -> np.ndarray:
    """Applies an elementwise Keras activation to constants; NaN stays NaN."""
    known = ~np.isnan(values)
    if activation in (None, keras.activations.linear) or not known.any():
        return values
    filled = np.where(known, values, 0.0).astype("float32")
    result = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(filled)))
    return np.where(known, result.astype(np.float64), np.nan)


def is_elementwise(activation: Any) -> bool:
    """Returns whether an activation function works on each element alone."""
    if activation is None:
        return True
    name = getattr(activation, "__name__", "")
    return name in _ELEMENTWISE and getattr(keras.activations, name, None) is activation


def reads_border(analysis: Analysis, layer: Any) -> bool:
    """Returns whether a convolution reads zeros beyond the border."""
    return analysis.borders and layer.padding != "valid" and math.prod(layer.kernel_size) > 1


def plain_weights(layer: Any) -> None:
    """Raises NotUnderstood for a layer whose weights are adapted or quantized in place."""
    need(not getattr(layer, "lora_enabled", False), "is adapted by LoRA")
    need(getattr(layer, "quantization_mode", None) is None, "is quantized in place")


def cut_bias(call: Call, keep_out: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the kept part of a layer's bias, if it has one."""
    return {name: value[keep_out] for name, value in call.weights.items() if name == "bias"}
