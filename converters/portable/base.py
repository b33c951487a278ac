"""Rewrites of a float flatbuffer into operators that more runtimes have, or run faster.

A rewrite computes the same numbers: it replaces operators by others that do the same arithmetic,
and the float file is compared with the Keras model after all of them. To add one: a module in this
folder with a function that finds its places, registered here, its test, and one import line in
`__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.registry import Registry
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.operators import Operator
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.flatbuffers.tensors import Tensor


class Graph:
    """A flatbuffer of one subgraph, with what writes and reads each tensor.

    Args:
        flat: The file.
    """

    def __init__(self, flat: FlatModel) -> None:
        self.flat = flat
        self._writer: dict[int, Operator] = {}
        self._readers: dict[int, list[Operator]] = {}
        for operator in flat.operators:
            self._writer.update((index, operator) for index in operator.outputs)
            for index in dict.fromkeys(operator.inputs):
                self._readers.setdefault(index, []).append(operator)

    def operators(self, *codes: str) -> Iterator[Operator]:
        """Yields the operators with one of these codes, in order of execution."""
        return (operator for operator in self.flat.operators if operator.code in codes)

    def tensor(self, index: int) -> Tensor:
        """Returns a tensor by its number."""
        return self.flat.tensors[index]

    def writer(self, tensor: int, *codes: str) -> Operator | None:
        """Returns the operator that computes a tensor, if it has one of the codes, if any."""
        found = self._writer.get(tensor)
        return found if found is not None and (not codes or found.code in codes) else None

    def readers(self, tensor: int) -> Sequence[Operator]:
        """Returns the operators that read a tensor, each once."""
        return self._readers.get(tensor, ())

    def only_reader(self, tensor: int, *codes: str) -> Operator | None:
        """Returns the operator that reads a tensor, if nothing else does and it has a code."""
        readers = self.readers(tensor)
        if len(readers) != 1 or tensor in self.flat.outputs or readers[0].code not in codes:
            return None
        return readers[0] if readers[0].inputs.count(tensor) == 1 else None

    def values(self, operator: Operator, position: int) -> np.ndarray | None:
        """Returns the values of a constant input; None for a computed or a missing one."""
        tensor = self.flat.tensor(operator, position)
        return tensor.values() if tensor is not None and tensor.is_constant else None


def activation(operator: Operator) -> int:
    """Returns the number of an operator's fused activation, 0 for none."""
    return int(operator.options.get("fused_activation_function", 0))


@dataclass(frozen=True)
class Place:
    """Operators that a rewrite replaces.

    Attributes:
        output: Name of the tensor that the last of them computes.
        edit: Replaces them in the file.
    """

    output: str
    edit: Callable[[ModelEditor], None]


@dataclass(frozen=True)
class Rewrite:
    """One rewrite.

    Attributes:
        find: Yields places of a graph that share no operators. It is called again until there are
            none, so what it makes must not be a place.
        note: What became of which operators, for the notes of an export, e.g. `NEG became SUB`.
    """

    find: Callable[[Graph], Iterator[Place]]
    note: str


PORTABLE: Registry[Rewrite] = Registry("rewrite", home="edgecompress.converters.portable")


def register(
    name: str, note: str
) -> Callable[[Callable[[Graph], Iterator[Place]]], Callable[[Graph], Iterator[Place]]]:
    """Returns a decorator that registers a function as the rewrite `name`; see `Rewrite`."""

    def decorate(
        find: Callable[[Graph], Iterator[Place]],
    ) -> Callable[[Graph], Iterator[Place]]:
        PORTABLE.register(name)(Rewrite(find, note))
        return find

    return decorate


@dataclass(frozen=True)
class Rewritten:
    """A file after all rewrites.

    Attributes:
        flat: The file.
        places: Name of a rewrite -> names of the tensors computed where it applied.
    """

    flat: FlatModel
    places: Mapping[str, tuple[str, ...]]


def rewritten(
    flat: FlatModel,
    rewrites: Mapping[str, Rewrite] | None = None,
    keep: Callable[[str, str], bool] = lambda name, output: False,
) -> Rewritten:
    """Applies rewrites to a float flatbuffer until none has a place left.

    What one makes may be a place of another, whichever was registered first.

    Args:
        flat: The file; one with several subgraphs (loops) is returned unchanged.
        rewrites: Name -> rewrite. Defaults to all.
        keep: (name of a rewrite, output of a place) -> whether the place stays as it is. Defaults
            to none.
    """
    places: dict[str, tuple[str, ...]] = {}
    if flat.subgraphs > 1:
        return Rewritten(flat, places)
    chosen = dict(PORTABLE if rewrites is None else rewrites)
    while True:
        before = flat
        for name, rewrite in chosen.items():
            # Places that share operators come one after the other.
            while found := [p for p in rewrite.find(Graph(flat)) if not keep(name, p.output)]:
                editor = ModelEditor(flat)
                for place in found:
                    place.edit(editor)
                editor.drop_unused()
                flat = read_tflite(editor.pack())
                places[name] = (*places.get(name, ()), *(place.output for place in found))
        if flat is before:
            return Rewritten(flat, places)


def replace(editor: ModelEditor, removed: Sequence[Operator], new: Sequence[Any]) -> None:
    """Puts new operators in the place of the last of some operators and removes the others."""
    for operator in removed[:-1]:
        editor.place_instead(editor.operators[operator.index], [])
    editor.place_instead(editor.operators[removed[-1].index], new)


def reshape(editor: ModelEditor, source: int, output: int, shape: Sequence[int]) -> Any:
    """Returns a new RESHAPE from one tensor to another."""
    sizes = np.array(shape, np.int32)
    target = editor.add((len(sizes),), "INT32", sizes)
    made = editor.new_operator(editor.operator_code("RESHAPE"), [source, target], [output])
    editor.set_options(made, "ReshapeOptions", newShape=sizes)
    return made
