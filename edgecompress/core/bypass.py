"""Paths through a model's graph on which its outputs still see its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecompress.core.keras_graph import GraphNode, follow_graph, functional_of

# What goes on working when all but one of its inputs are constants.
_SUMS = frozenset({"Add", "Average", "Concatenate", "Maximum", "Minimum", "Subtract"})


def cheapest_path(model: Any, costs: Mapping[str, float]) -> frozenset[str]:
    """Returns the layers that suffice for every output to depend on an input, at the least cost.

    Behind a sum, a concatenation, a maximum or a minimum, one of its inputs suffices; every other
    layer needs all of its inputs. If all layers with a cost but these made nothing but zeros, the
    outputs would still depend on the inputs.

    Args:
        model: A built Sequential or Functional model; nested models are entered.
        costs: Layer -> cost, 0 or more; all others cost nothing.

    Returns:
        Those of the layers with a cost that are on the path of an output.

    Raises:
        UnsupportedModelError: the model is subclassed, not built, or not a Keras 3 model.
    """

    def total(path: frozenset[str]) -> float:
        return sum(costs[name] for name in path)

    def visit(node: GraphNode, read: list[frozenset[str]]) -> list[frozenset[str]]:
        name = node.operation.name
        if type(node.operation).__name__ in _SUMS and read:
            path = min(read, key=total)
        else:
            path = frozenset[str]().union(*read)
        if name in costs:
            path |= {name}
        return [path] * len(node.outputs)

    nothing: list[frozenset[str]] = [frozenset()] * len(functional_of(model).inputs)
    return frozenset[str]().union(*follow_graph(model, nothing, visit))
