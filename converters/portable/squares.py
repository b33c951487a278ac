"""SQUARE, which no integer kernel has: x * x."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edgecompress.converters.portable.base import Graph, Place, register
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator


@register("squares", "SQUARE became MUL")
def squares(graph: Graph) -> Iterator[Place]:
    """Yields the SQUARE operators, as RMSNormalization and `keras.ops.square` have them."""
    for operator in graph.operators("SQUARE"):
        yield Place(graph.flat.output(operator).name, _edit(operator))


def _edit(operator: Operator) -> Callable[[ModelEditor], None]:
    def edit(editor: ModelEditor) -> None:
        source = operator.inputs[0]
        made = editor.new_operator(editor.operator_code("MUL"), [source, source], operator.outputs)
        editor.set_options(made, "MulOptions")
        editor.place_instead(editor.operators[operator.index], [made])

    return edit
