"""Depth: whole residual branches go, those first without which the loss grows least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.keras_graph import GraphNode, graph_nodes, is_plain_model, named_layers
from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values

# Weights that make a layer's output 0, whatever it reads.
_SCALES = ("gamma", "beta", "kernel", "bias", "depthwise_kernel", "pointwise_kernel")
# Layers that give 0 for 0.
_THROUGH = ("Activation", "ReLU", "Dropout", "LeakyReLU", "SpatialDropout2D")


@dataclass(frozen=True)
class Branch:
    """A branch of a sum that can be left out.

    Attributes:
        add: The layer that adds it to another.
        last: The layer whose weights make it zero.
        damage: How much the loss grows without it.
    """

    add: str
    last: str
    damage: float = 0.0


def find_branches(model: Any) -> list[Branch]:
    """Returns the longer branch of each Add of two, where a layer can make it zero."""
    if not is_plain_model(model):
        return []
    nodes = graph_nodes(model)
    maker = {id(tensor): node for node in nodes for tensor in node.outputs}
    found = []
    for node in nodes:
        if type(node.operation).__name__ != "Add" or len(node.inputs) != 2:
            continue
        behind = [_behind(tensor, maker) for tensor in node.inputs]
        own = [_weighted(a - b, maker) for a, b in (behind, behind[::-1])]
        if own[0] == own[1]:
            continue
        longer = int(own[1] > own[0])
        last = _last(maker.get(id(node.inputs[longer])), maker)
        if last is not None:
            found.append(Branch(node.operation.name, last))
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


def _last(node: GraphNode | None, maker: dict[int, GraphNode]) -> str | None:
    while node is not None:
        layer = node.operation
        if getattr(layer, "gamma", None) is not None or getattr(layer, "kernel", None) is not None:
            return str(layer.name)
        if type(layer).__name__ not in _THROUGH or len(node.inputs) != 1:
            return None
        node = maker.get(id(node.inputs[0]))
    return None


def silenced(model: Any, branches: Sequence[Branch]) -> Any:
    """Returns a copy in which branches are zero."""
    from edgecompress.core.model_copy import copy_model

    copied = copy_model(model)
    layers = dict(named_layers(copied))
    for branch in branches:
        for name in _SCALES:
            variable = getattr(layers[branch.last], name, None)
            if variable is not None:
                variable.assign(np.zeros(variable.shape, np.float32))
    return copied


@TECHNIQUES.register("depth")
class Depth(Technique):
    """Leaves out residual branches, layers and all (Wen et al., 2016, section 3.1)."""

    reshapes = True
    shrinks = "branches"

    def __init__(self, subject: Subject) -> None:
        """Measures the model without each of its branches."""
        super().__init__(subject)
        branches = find_branches(subject.model)
        whole = subject.loss(subject.model) if branches else 0.0
        measured = [
            Branch(b.add, b.last, subject.loss(silenced(subject.model, [b])) - whole)
            for b in branches
        ]
        self.branches = sorted(measured, key=lambda branch: branch.damage)
        if not branches:
            self.reason = "the model has no residual branches"

    def knobs(self) -> Sequence[Knob]:
        """Returns how many branches go, at most all but one."""
        most = len(self.branches) - 1
        return (Knob("branches", 0, low=0, high=most, whole=True),) if most > 0 else ()

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns the model without the branches that matter least."""
        from edgecompress.surgery.finalize import finalize

        count = int(values["branches"])
        return finalize(silenced(model, self.branches[:count])) if count else model
