"""MEAN over a whole map: AVERAGE_POOL_2D, which takes a twentieth of the instructions.

In integers the pooling keeps the scale of its input, where a mean has one of its own. That costs
nothing where the map is hardly below zero, as after a ReLU. The mean of a map around zero is much
smaller than the map, and stays a MEAN. Training rounds in the same way (`core.fusion`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgecompress.converters.portable.base import (
    Graph,
    Place,
    activation,
    register,
    replace,
    reshape,
)
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator

_ABOVE = ("RELU", "RELU6", "LOGISTIC", "SOFTMAX", "HARD_SWISH", "GELU")
_MOVES = (
    "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "RESIZE_NEAREST_NEIGHBOR",
    "RESIZE_BILINEAR", "STRIDED_SLICE", "SLICE", "REDUCE_MAX",
)  # fmt: skip
_MERGES = ("ADD", "MUL", "CONCATENATION", "MAXIMUM", "MINIMUM")
_FUSING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SUB")
# Numbers of RELU and RELU6 as fused activations.
_RELUS = (1, 3)


@register("means", "MEAN over a map became AVERAGE_POOL_2D")
def means(graph: Graph) -> Iterator[Place]:
    """Yields the means over height and width, or over time, as GlobalAveragePooling has them."""
    above = _above(graph)
    for operator in graph.operators("MEAN"):
        source, axes = graph.flat.tensor(operator, 0), graph.values(operator, 1)
        if source is None or axes is None or source.type != "FLOAT32" or source.shape[:1] != (1,):
            continue
        rank = len(source.shape)
        over = sorted({int(axis) % rank for axis in axes.reshape(-1)})
        if (rank, over) in ((4, [1, 2]), (3, [1])) and source.index in above:
            yield _pooled(graph, operator)


def _above(graph: Graph) -> set[int]:
    """Returns the tensors that are hardly below zero, whatever the model's input is."""
    above: set[int] = set()
    for operator in graph.flat.operators:
        code, inputs = operator.code, operator.inputs
        if code in _MERGES:
            stays = all(index in above for index in inputs)
        else:
            stays = code in _MOVES and inputs[0] in above
        rectified = code in (*_MERGES, *_MOVES, *_FUSING) and activation(operator) in _RELUS
        gated = code == "MUL" and _is_gated(graph, operator)
        if code in _ABOVE or rectified or gated or stays:
            above.update(operator.outputs)
    return above


def _is_gated(graph: Graph, product: Operator) -> bool:
    """Returns whether a product is SiLU, `x * sigmoid(x)`."""
    gates = [graph.writer(index, "LOGISTIC") for index in product.inputs]
    return any(gate is not None and gate.inputs[0] in product.inputs for gate in gates)


def _pooled(graph: Graph, operator: Operator) -> Place:
    source, output = graph.tensor(operator.inputs[0]), graph.flat.output(operator)
    name = output.name

    def edit(editor: ModelEditor) -> None:
        new: list[Any] = []
        tensor, shape = source.index, source.shape
        if len(shape) == 3:
            before = graph.writer(tensor, "RESHAPE")
            inner = before.inputs[0] if before is not None else tensor
            shape = (1, shape[1], 1, shape[2])
            # One-dimensional convolutions end in such a reshape.
            if graph.tensor(inner).shape in (shape, (1, 1, source.shape[1], source.shape[2])):
                tensor, shape = inner, graph.tensor(inner).shape
            else:
                viewed = editor.add(shape, "FLOAT32", name=name)
                new.append(reshape(editor, tensor, viewed, shape))
                tensor = viewed
        small = (1, 1, 1, shape[3])
        direct = output.shape == small
        pooled = output.index if direct else editor.add(small, "FLOAT32", name=name)
        made = editor.new_operator(editor.operator_code("AVERAGE_POOL_2D"), [tensor], [pooled])
        editor.set_options(
            made, "Pool2DOptions", padding=1, strideH=shape[1], strideW=shape[2],
            filterHeight=shape[1], filterWidth=shape[2],
        )  # fmt: skip
        new.append(made)
        if not direct:
            new.append(reshape(editor, pooled, output.index, output.shape))
        replace(editor, [operator], new)

    return Place(name, edit)
