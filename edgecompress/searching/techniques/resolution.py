"""Resolution: how early a model's maps get smaller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompress.core.errors import EdgeCompressError
from edgecompress.core.keras_graph import GraphNode, graph_nodes, is_plain_model
from edgecompress.core.model_copy import Weights, copy_model
from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values
from edgecompress.surgery.bypass import bypass

WHOLE, EARLIER, HALVED = "whole", "earlier", "halved"
# Layers whose kernel and strides are those of a convolution over one map after another.
_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_POOLS = ("AveragePooling", "MaxPooling")


@dataclass(frozen=True)
class Change:
    """What makes maps smaller.

    Attributes:
        configs: Layer -> entries of its config.
        weights: Layer -> larger kernels.
        gone: Pooling layers that are left out.
    """

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    gone: tuple[str, ...] = ()


def find_change(model: Any, kind: str) -> Change | None:
    """Returns what gives a model smaller maps; None if nothing does.

    An early convolution takes steps twice as long: `halved`. If its kernel would leave out
    positions, it grows, zeros around the old one. `earlier` undoes the next halving in turn, so
    that maps are as they were from there on.

    Args:
        model: A Keras model.
        kind: `earlier` or `halved`.
    """
    if not is_plain_model(model):
        return None
    nodes = graph_nodes(model)
    first = _first(nodes)
    if first is None:
        return None
    layer, strides = first.operation, []
    for size, stride, kernel in zip(
        first.outputs[0].shape[1:-1], layer.strides, layer.kernel_size, strict=True
    ):
        strides.append(2 * stride if size != 1 and kernel > 1 else stride)
    if tuple(strides) == tuple(layer.strides):
        return None
    entries: dict[str, Any] = {"strides": tuple(strides)}
    weights: Weights = {}
    sizes = tuple(max(k, _reaching(k, s)) for k, s in zip(layer.kernel_size, strides, strict=True))
    if sizes != tuple(layer.kernel_size):
        entries["kernel_size"] = sizes
        kernel = np.asarray(layer.kernel)
        around = [
            ((new - old) // 2,) * 2 for new, old in zip(sizes, layer.kernel_size, strict=True)
        ]
        weights[layer.name] = {"kernel": np.pad(kernel, [*around, (0, 0), (0, 0)])}
    configs = {layer.name: entries}
    if kind == HALVED:
        return Change(configs, weights)
    later = _next_halving(nodes, first)
    gone = tuple(name for name, pools in later.items() if pools)
    ones = (1,) * len(strides)
    for name, pools in later.items():
        # A pool of one position does nothing, until it goes.
        configs[name] = {"strides": ones, "pool_size": ones} if pools else {"strides": ones}
    return Change(configs, weights, gone) if later else None


def _first(nodes: Sequence[GraphNode]) -> GraphNode | None:
    """Returns the convolution whose steps get longer: one that everything goes through.

    The first with steps of 1, whose kernel leaves out no position of a step twice as long, if its
    maps are as large as those of the very first convolution; else that one.
    """
    trunk = [node for node in _trunk(nodes) if type(node.operation).__name__ in _CONVOLUTIONS]
    trunk = [node for node in trunk if _ordinary(node.operation)]
    if not trunk:
        return None
    size = trunk[0].outputs[0].shape[1:-1]
    for node in trunk:
        short = all(steps == 1 for steps in node.operation.strides)
        if short and max(node.operation.kernel_size) > 1 and node.outputs[0].shape[1:-1] == size:
            return node
    return trunk[0]


def _trunk(nodes: Sequence[GraphNode]) -> list[GraphNode]:
    """Returns the nodes of one input and output that no path goes around."""
    unread = Counter(id(tensor) for node in nodes for tensor in node.inputs)
    made = {id(tensor) for node in nodes for tensor in node.outputs}
    live = {tensor for tensor in unread if tensor not in made}
    found = []
    for node in nodes:
        reads = [id(tensor) for tensor in node.inputs]
        if len(reads) == 1 and live == set(reads) and unread[reads[0]] == 1:
            found.append(node)
        for tensor in reads:
            unread[tensor] -= 1
            if not unread[tensor]:
                live.discard(tensor)
        live |= {id(tensor) for tensor in node.outputs}
    return found


def _ordinary(layer: Any) -> bool:
    dense = all(rate == 1 for rate in layer.dilation_rate)
    return bool(layer.data_format == "channels_last" and dense)


def _reaching(kernel: int, stride: int) -> int:
    """Returns the kernel, larger by an even number, that leaves out no position of a step."""
    return kernel + 2 * max(0, -(-(stride - kernel) // 2))


def _next_halving(nodes: Sequence[GraphNode], first: GraphNode) -> dict[str, bool]:
    """Returns the layers that halve the first convolution's maps, and whether each is a pool."""
    before = tuple(first.outputs[0].shape[1:-1])
    found = {}
    for node in nodes:
        layer, kind = node.operation, type(node.operation).__name__
        pools = kind.startswith(_POOLS)
        if node is first or not (kind in _CONVOLUTIONS or pools) or len(node.inputs) != 1:
            continue
        steps = layer.strides if isinstance(layer.strides, tuple) else (layer.strides,)
        if tuple(node.inputs[0].shape[1:-1]) == before and max(steps) > 1:
            found[layer.name] = pools
    return found


@TECHNIQUES.register("resolution")
class Resolution(Technique):
    """Halves maps after the first convolution, or earlier than the model does.

    What takes most memory on a board are the first maps: with a quarter of their positions there
    is room for four times the channels.
    """

    reshapes = True
    lays_out = True

    def __init__(self, subject: Subject) -> None:
        """Tries both."""
        super().__init__(subject)
        self._useful = tuple(kind for kind in (EARLIER, HALVED) if self._works(kind))
        if not self._useful:
            self.reason = (
                "no convolution comes first whose steps can be longer while everything behind it "
                "keeps its weights"
            )

    def _works(self, kind: str) -> bool:
        model = self.subject.model
        try:
            made = self.reshape(model, {"maps": kind})
        except EdgeCompressError:
            return False
        return made is not model and made.output_shape == model.output_shape

    def knobs(self) -> Sequence[Knob]:
        """Returns the size of maps."""
        return (Knob("maps", WHOLE, (WHOLE, *self._useful)),) if self._useful else ()

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns the model with smaller maps, or itself."""
        kind = str(values["maps"])
        change = None if kind == WHOLE else find_change(model, kind)
        if change is None:
            return model
        made = copy_model(
            model,
            lambda path, config: {**config, **change.configs.get(path, {})},
            change.weights,
        )
        return bypass(made, dict.fromkeys(change.gone, 0)) if change.gone else made
