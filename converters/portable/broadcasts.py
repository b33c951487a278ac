"""RESHAPE that only drops leading dimensions of 1 before an operator that broadcasts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecompress.converters.portable.base import Graph, Place, register
from edgecompress.flatbuffers.editor import ModelEditor

_BINARY = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE")


@register("broadcasts", "RESHAPE before a broadcast was left out")
def broadcasts(graph: Graph) -> Iterator[Place]:
    """Yields such operators; kernels without a broadcast are faster."""
    for operator in graph.operators(*_BINARY):
        shape = graph.flat.output(operator).shape
        for position, index in enumerate(operator.inputs):
            reshape = graph.writer(index, "RESHAPE")
            if reshape is None or graph.tensor(reshape.inputs[0]).shape != shape:
                continue
            dropped = len(shape) - len(graph.tensor(index).shape)
            if dropped > 0 and shape == (1,) * dropped + graph.tensor(index).shape:
                name = graph.flat.output(operator).name
                yield Place(name, _edit(operator.index, position, reshape.inputs[0]))
                break


def _edit(operator: int, position: int, source: int) -> Callable[[ModelEditor], None]:
    return lambda editor: editor.set_input(editor.operators[operator], position, source)
