"""Depth: residual branches or layers of a chain go, those first that the loss needs least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgecompress.core.keras_graph import GraphNode, functional_of, graph_nodes, is_plain_model
from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values
from edgecompress.surgery.bypass import bypass

# Layers that belong to the layer with a kernel before them.
_FOLLOWERS = (
    "Activation",
    "BatchNormalization",
    "Dropout",
    "LayerNormalization",
    "LeakyReLU",
    "ReLU",
    "SpatialDropout1D",
    "SpatialDropout2D",
)


@dataclass(frozen=True)
class Block:
    """A part of a model that can be left out.

    Attributes:
        name: Of the Add that ends it, or of its first layer.
        without: Layers to bypass to leave it out: name -> position of the input that stays.
        alone: Layers to bypass to leave out the shortcut around it; empty without one.
        damage: How much the loss grows without it.
    """

    name: str
    without: Mapping[str, int]
    alone: Mapping[str, int] = field(default_factory=dict)
    damage: float = 0.0


def find_blocks(model: Any) -> list[Block]:
    """Returns the longer branch of each Add of two; without any, layers that keep the shape."""
    if not is_plain_model(model):
        return []
    return _branches(model) or _layers(model)


def _branches(model: Any) -> list[Block]:
    nodes = graph_nodes(model)
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    found = []
    for node in nodes:
        name = node.operation.name
        if type(node.operation).__name__ != "Add" or len(node.inputs) != 2:
            continue
        if node.inputs[0].shape != node.inputs[1].shape:
            continue
        behind = [_behind(tensor, maker) for tensor in node.inputs]
        own = [_weighted(a - b, maker) for a, b in (behind, behind[::-1])]
        if own[0] == own[1]:
            continue
        longer = int(own[1] > own[0])
        found.append(Block(name, {name: 1 - longer}, {name: longer}))
    return found


def _weighted(tensors: set[int], maker: dict[int, GraphNode]) -> int:
    """Returns how many layers with weights make these tensors."""
    return sum(bool(getattr(maker[tensor].operation, "weights", ())) for tensor in tensors)


def _behind(tensor: Any, maker: dict[int, GraphNode]) -> set[int]:
    """Returns the tensors that a tensor is computed from, itself included."""
    found: set[int] = set()
    due = [tensor]
    while due:
        at = due.pop()
        if id(at) not in found and id(at) in maker:
            found.add(id(at))
            due += maker[id(at)].inputs
    return found


def _layers(model: Any) -> list[Block]:
    """Returns each layer with weights whose output has its input's shape, and what follows it."""
    nodes = graph_nodes(model)
    readers: dict[int, list[GraphNode]] = {}
    for node in nodes:
        for tensor in node.inputs:
            readers.setdefault(id(tensor), []).append(node)
    calls = Counter(node.operation.name for node in nodes)
    outputs = {id(tensor) for tensor in functional_of(model).outputs}
    found = []
    for node in nodes:
        if not getattr(node.operation, "weights", ()) or _follows(node):
            continue
        names, at = [], node
        while _passes(at) and calls[at.operation.name] == 1 and id(at.outputs[0]) not in outputs:
            names.append(at.operation.name)
            after = readers.get(id(at.outputs[0]), [])
            if len(after) != 1 or not _follows(after[0]):
                found.append(Block(names[0], dict.fromkeys(names, 0)))
                break
            at = after[0]
    return found


def _follows(node: GraphNode) -> bool:
    return type(node.operation).__name__ in _FOLLOWERS


def _passes(node: GraphNode) -> bool:
    """Returns whether an operation makes of one tensor one of the same shape."""
    inputs, outputs = node.inputs, node.outputs
    return node.plain and len(inputs) == len(outputs) == 1 and inputs[0].shape == outputs[0].shape


@TECHNIQUES.register("depth")
class Depth(Technique):
    """Leaves out residual branches, or layers of a chain (Wen et al., 2016, section 3.1).

    A network that has become shallow trains without shortcuts, too: without them, a board holds
    one map less at a time, and no operator adds (Li et al., "Residual distillation: towards
    portable deep neural networks without shortcuts", 2020, who keep the depth).
    """

    reshapes = True
    lays_out = True

    def __init__(self, subject: Subject) -> None:
        """Measures the model without each of its blocks."""
        super().__init__(subject)
        blocks = find_blocks(subject.model)
        whole = subject.loss(subject.model) if blocks else 0.0
        measured = [
            replace(b, damage=subject.loss(bypass(subject.model, b.without)) - whole)
            for b in blocks
        ]
        self.blocks = sorted(measured, key=lambda block: block.damage)
        if len(blocks) < 2:
            self.reason = "the model has no residual branches, and no layers that keep the shape"

    def knobs(self) -> Sequence[Knob]:
        """Returns how many blocks go, at most all but one, and whether shortcuts stay."""
        most = len(self.blocks) - 1
        if most < 1:
            return ()
        knobs = [Knob("blocks", 0, low=0, high=most, whole=True)]
        if any(block.alone for block in self.blocks):
            knobs.append(Knob("shortcuts", True, (True, False)))
        return knobs

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns the model without the blocks that matter least, and without shortcuts."""
        count = int(values["blocks"])
        layers: dict[str, int] = {}
        for block in self.blocks[:count]:
            layers |= block.without
        if not values.get("shortcuts", True):
            for block in self.blocks[count:]:
                layers |= block.alone
        return bypass(model, layers) if layers else model
