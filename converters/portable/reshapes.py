"""RESHAPE, as Flatten makes it, before FULLY_CONNECTED, which reads rows of any shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecompress.converters.portable.base import Graph, Place, register
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator


@register("reshapes", "RESHAPE before FULLY_CONNECTED was left out")
def reshapes(graph: Graph) -> Iterator[Place]:
    """Yields the operators that read a reshaped tensor as rows: a file without is smaller."""
    for operator in graph.operators("FULLY_CONNECTED"):
        reshape = graph.writer(operator.inputs[0], "RESHAPE")
        if reshape is not None and reads_rows(operator, operator.inputs[0]):
            yield Place(graph.flat.output(operator).name, _edit(operator.index, reshape.inputs[0]))


def reads_rows(operator: Operator, tensor: int) -> bool:
    """Returns whether an operator reads a tensor as rows, regardless of its shape."""
    return (
        operator.code == "FULLY_CONNECTED"
        and operator.inputs[0] == tensor
        and tensor not in operator.inputs[1:]
        and not operator.options.get("keep_num_dims", False)
    )


def _edit(operator: int, source: int) -> Callable[[ModelEditor], None]:
    return lambda editor: editor.set_input(editor.operators[operator], 0, source)
