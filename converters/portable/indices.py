"""The wrapping of negative indices: SELECT of integers, which microcontrollers lack.

Keras looks rows up with indices that may count from the end, `where(i < 0, i + n, i)`. Token
numbers are not negative, so an Embedding of a model's input needs none of it; computed indices are
wrapped without SELECT, `i + n * (i < 0)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from edgecompress.converters.portable.base import Graph, Place, register
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator

_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST")


@register("indices", "SELECT of indices was left out (token numbers are not negative)")
def indices(graph: Graph) -> Iterator[Place]:
    """Yields the wrapped indices of rows that are a model's input."""
    for select, _, source in _wrapped(graph):
        if _is_input(graph, source):
            yield Place(_output(graph, select), _left_out(graph, select, source))


@register("wrapped_indices", "SELECT of indices became MUL and ADD")
def wrapped_indices(graph: Graph) -> Iterator[Place]:
    """Yields the wrapped indices of rows that the model computes."""
    for select, less, source in _wrapped(graph):
        if not _is_input(graph, source):
            yield Place(_output(graph, select), _added(graph, select, less))


def _wrapped(graph: Graph) -> Iterator[tuple[Operator, Operator, int]]:
    """Yields (SELECT, LESS, index) of `where(i < 0, i + n, i)` that a GATHER reads."""
    for select in graph.operators("SELECT", "SELECT_V2"):
        condition, wrapped, source = select.inputs
        less, added = graph.writer(condition, "LESS"), graph.writer(wrapped, "ADD")
        readers = graph.readers(select.outputs[0])
        if less is None or added is None or not readers or select.outputs[0] in graph.flat.outputs:
            continue
        zero, count = graph.values(less, 1), graph.values(added, 1)
        if (
            less.inputs[0] == added.inputs[0] == source
            and graph.tensor(source).type == "INT32"
            and zero is not None and zero.size == 1 and not zero.any()
            and count is not None and count.size == 1
            and all(r.code == "GATHER" and r.inputs[1] == select.outputs[0] for r in readers)
        ):  # fmt: skip
            yield select, less, source


def _is_input(graph: Graph, tensor: int) -> bool:
    while (view := graph.writer(tensor, *_VIEWS)) is not None:
        tensor = view.inputs[0]
    return tensor in graph.flat.inputs and graph.tensor(tensor).type.startswith("INT")


def _output(graph: Graph, select: Operator) -> str:
    return graph.flat.output(graph.readers(select.outputs[0])[0]).name


def _left_out(graph: Graph, select: Operator, source: int) -> Callable[[ModelEditor], None]:
    readers = graph.readers(select.outputs[0])

    def edit(editor: ModelEditor) -> None:
        for reader in readers:
            editor.set_input(editor.operators[reader.index], 1, source)

    return edit


def _added(graph: Graph, select: Operator, less: Operator) -> Callable[[ModelEditor], None]:
    condition, wrapped, source = select.inputs
    added = graph.writer(wrapped, "ADD")
    count, shape = added.inputs[1] if added else -1, graph.flat.output(select).shape

    def edit(editor: ModelEditor) -> None:
        sign, step = (editor.add(shape, "INT32", name=graph.flat.output(select).name) for _ in "ab")
        kinds = {
            "inDataType": editor.type_number("BOOL"),
            "outDataType": editor.type_number("INT32"),
        }
        new: list[Any] = [
            editor.new_operator(editor.operator_code("CAST"), [condition], [sign]),
            editor.new_operator(editor.operator_code("MUL"), [sign, count], [step]),
            editor.new_operator(editor.operator_code("ADD"), [source, step], select.outputs),
        ]
        editor.set_options(new[0], "CastOptions", **kinds)
        editor.set_options(new[1], "MulOptions")
        editor.set_options(new[2], "AddOptions")
        editor.place_instead(editor.operators[select.index], new)

    return edit


@register("selects", "SELECT became SELECT_V2")
def selects(graph: Graph) -> Iterator[Place]:
    """Yields the SELECT operators whose three inputs have one shape; only the name differs."""
    for operator in graph.operators("SELECT"):
        shapes = {graph.tensor(index).shape for index in operator.inputs}
        if len(shapes) == 1 and not graph.tensor(operator.outputs[0]).type.startswith("INT"):
            yield Place(graph.flat.output(operator).name, _renamed(operator.index))


def _renamed(operator: int) -> Callable[[ModelEditor], None]:
    def edit(editor: ModelEditor) -> None:
        editor.set_code(editor.operators[operator], "SELECT_V2", 1)
        editor.set_options(editor.operators[operator], "SelectV2Options")

    return edit
