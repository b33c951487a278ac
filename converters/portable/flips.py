"""REVERSE_V2, which the quantizer leaves in float: GATHER of the elements in another order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgecompress.converters.portable.base import Graph, Place, register
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator


@register("flips", "REVERSE_V2 became GATHER")
def flips(graph: Graph) -> Iterator[Place]:
    """Yields the REVERSE_V2 operators of one axis, as `keras.ops.flip` has them."""
    for operator in graph.operators("REVERSE_V2"):
        axes, source = graph.values(operator, 1), graph.flat.tensor(operator, 0)
        if axes is not None and axes.size == 1 and source is not None and source.type == "FLOAT32":
            axis = int(axes.reshape(-1)[0]) % len(source.shape)
            yield Place(graph.flat.output(operator).name, _edit(operator, axis, source.shape[axis]))


def _edit(operator: Operator, axis: int, size: int) -> Callable[[ModelEditor], None]:
    def edit(editor: ModelEditor) -> None:
        order = editor.add((size,), "INT32", np.arange(size - 1, -1, -1, dtype=np.int32))
        code = editor.operator_code("GATHER")
        made = editor.new_operator(code, [operator.inputs[0], order], operator.outputs)
        editor.set_options(made, "GatherOptions", axis=axis)
        editor.place_instead(editor.operators[operator.index], [made])

    return edit
