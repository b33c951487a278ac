"""NEG, which no integer kernel has: its sign moves into the next addition, else 0 - x."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgecompress.converters.portable.base import Graph, Place, activation, register
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator


@register("negations", "NEG became SUB")
def negations(graph: Graph) -> Iterator[Place]:
    """Yields the NEG operators; `(-x) * y + z` becomes `z - x * y`, as LayerNormalization has it.

    Moving a sign through a product and into a sum does not change how either rounds.
    """
    used: set[int] = set()
    for negation in graph.operators("NEG"):
        products, end = _into_sum(graph, negation)
        if end is None or used & {operator.index for operator in (*products, end)}:
            yield _subtracted(graph, negation)
            continue
        used |= {operator.index for operator in (*products, end)}
        yield _moved(graph, negation, products, end)


def _into_sum(graph: Graph, negation: Operator) -> tuple[list[Operator], Operator | None]:
    """Returns the products that carry the sign, and the sum that can take it; None if none can."""
    tensor, products = negation.outputs[0], []
    while (product := graph.only_reader(tensor, "MUL")) and not activation(product):
        products.append(product)
        tensor = product.outputs[0]
    end = graph.only_reader(tensor, "ADD", "SUB")
    if end is not None and end.code == "SUB" and end.inputs[1] != tensor:
        end = None
    return products, end


def _moved(graph: Graph, negation: Operator, products: list[Operator], end: Operator) -> Place:
    def edit(editor: ModelEditor) -> None:
        first = (*products, end)[0]
        last = products[-1].outputs[0] if products else negation.inputs[0]
        if products:
            position = first.inputs.index(negation.outputs[0])
            editor.set_input(editor.operators[first.index], position, negation.inputs[0])
        editor.place_instead(editor.operators[negation.index], [])
        carried = products[-1].outputs[0] if products else negation.outputs[0]
        entry = editor.operators[end.index]
        other = end.inputs[1 - end.inputs.index(carried)]
        code = "SUB" if end.code == "ADD" else "ADD"
        editor.set_code(entry, code, 1)
        editor.set_options(entry, f"{code.title()}Options", fusedActivationFunction=activation(end))
        editor.set_input(entry, 0, other)
        editor.set_input(entry, 1, last)

    return Place(graph.flat.output(end).name, edit)


def _subtracted(graph: Graph, negation: Operator) -> Place:
    def edit(editor: ModelEditor) -> None:
        entry = editor.operators[negation.index]
        zero = editor.add((1,), "FLOAT32", np.zeros(1, np.float32))
        made = editor.new_operator(
            editor.operator_code("SUB"), [zero, negation.inputs[0]], negation.outputs
        )
        editor.set_options(made, "SubOptions")
        editor.place_instead(entry, [made])

    return Place(graph.flat.output(negation).name, edit)
