"""TILE, which no quantizer has: RESIZE_NEAREST_NEIGHBOR, which copies the same elements.

Keras repeats elements (UpSampling1D, UpSampling2D, RepeatVector, `keras.ops.repeat`) by a RESHAPE,
a TILE and a RESHAPE. Repeating along any axis is the nearest-neighbor enlargement of one axis of a
map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.converters.portable.base import Graph, Place, register, replace, reshape
from edgecompress.flatbuffers.editor import ModelEditor
from edgecompress.flatbuffers.operators import Operator

_RESIZE = "RESIZE_NEAREST_NEIGHBOR"


def nearest_places(old: int, new: int, half_pixels: bool) -> np.ndarray:
    """Returns which of `old` elements each of `new` takes, in the kernels' float32.

    Args:
        old: Size of an axis.
        new: Its size after resizing.
        half_pixels: The option `half_pixel_centers`.
    """
    shift = np.float32(0.5 if half_pixels else 0)
    ratio = np.float32(old) / np.float32(new)
    found = np.floor((np.arange(new, dtype=np.float32) + shift) * ratio)
    return np.minimum(found.astype(np.int64), old - 1)


def half_pixels_for(old: Sequence[int], new: Sequence[int]) -> bool | None:
    """Returns the `half_pixel_centers` with which resizing repeats each element; None for none.

    Without it, a product such as 3 * (1 / 3) may fall below the next whole number.
    """
    for half_pixels in (False, True):
        if all(
            np.array_equal(nearest_places(o, n, half_pixels), np.repeat(np.arange(o), n // o))
            for o, n in zip(old, new, strict=True)
        ):
            return half_pixels
    return None


@dataclass(frozen=True)
class _Repeat:
    """Elements along one axis, each repeated: `(outer, inner)` becomes `(outer, times, inner)`."""

    outer: int
    times: int
    inner: int


@register("repeats", "TILE became RESIZE_NEAREST_NEIGHBOR")
def repeats(graph: Graph) -> Iterator[Place]:
    """Yields the TILE operators of floats, with the reshapes around them that become needless."""
    used: set[int] = set()
    for tile in graph.operators("TILE"):
        counts, source = graph.values(tile, 1), graph.flat.tensor(tile, 0)
        if counts is None or source is None or source.type != "FLOAT32":
            continue
        steps = _steps(source.shape, [int(count) for count in counts])
        if any(half_pixels_for([s.outer], [s.outer * s.times]) is None for s in steps):
            continue
        before = graph.writer(tile.inputs[0], "RESHAPE")
        if before is not None and graph.only_reader(before.outputs[0], "TILE") is None:
            before = None
        after = graph.only_reader(tile.outputs[0], "RESHAPE")
        removed = [operator for operator in (before, tile, after) if operator is not None]
        if used.isdisjoint(operator.index for operator in removed):
            used.update(operator.index for operator in removed)
            yield _resized(graph, removed, steps)


def _steps(shape: Sequence[int], counts: Sequence[int]) -> list[_Repeat]:
    """Returns the repeats that tiling a shape consists of, from the last axis to the first."""
    found, shape = [], list(shape)
    for axis in reversed(range(len(shape))):
        if counts[axis] > 1:
            outer, inner = math.prod(shape[:axis]), math.prod(shape[axis:])
            found.append(_Repeat(outer, counts[axis], inner))
            shape[axis] *= counts[axis]
    return found


def _resized(graph: Graph, removed: Sequence[Operator], steps: Sequence[_Repeat]) -> Place:
    output = graph.flat.output(removed[-1])

    def edit(editor: ModelEditor) -> None:
        new: list[Any] = []
        tensor = removed[0].inputs[0]
        shape = tuple(graph.tensor(tensor).shape)
        for step in steps:
            tensor, shape = _repeated(editor, tensor, shape, step, output.name, new)
        if shape == tuple(output.shape) and new:
            new[-1].outputs = [output.index]
        else:
            new.append(reshape(editor, tensor, output.index, output.shape))
        replace(editor, removed, new)

    return Place(output.name, edit)


def _repeated(
    editor: ModelEditor,
    tensor: int,
    shape: tuple[int, ...],
    step: _Repeat,
    name: str,
    new: list[Any],
) -> tuple[int, tuple[int, ...]]:
    """Adds the operators of one repeat; returns the tensor that they compute and its shape."""
    axis = _axis(shape, step)
    if axis is None:
        shape, axis = (1, step.outer, 1, step.inner), 1
        viewed = editor.add(shape, "FLOAT32", name=name)
        new.append(reshape(editor, tensor, viewed, shape))
        tensor = viewed
    enlarged = [size * step.times if a == axis else size for a, size in enumerate(shape)]
    sizes = editor.add((2,), "INT32", np.array(enlarged[1:3], np.int32))
    output = editor.add(enlarged, "FLOAT32", name=name)
    made = editor.new_operator(editor.operator_code(_RESIZE, 1), [tensor, sizes], [output])
    half_pixels = bool(half_pixels_for(shape[1:3], enlarged[1:3]))
    editor.set_options(
        made, "ResizeNearestNeighborOptions", alignCorners=False, halfPixelCenters=half_pixels
    )
    new.append(made)
    return output, tuple(enlarged)


def _axis(shape: tuple[int, ...], step: _Repeat) -> int | None:
    """Returns the axis of a map along which a repeat runs; None if the shape is no such map."""
    if len(shape) != 4 or shape[0] != 1:
        return None
    for axis in (1, 2):
        if math.prod(shape[: axis + 1]) == step.outer:
            return axis
    return None


@register("resizes", "consecutive RESIZE_NEAREST_NEIGHBOR became one")
def resizes(graph: Graph) -> Iterator[Place]:
    """Yields pairs of enlargements, such as of the height and the width of a map."""
    used: set[int] = set()
    for first in graph.operators(_RESIZE):
        second = graph.only_reader(first.outputs[0], _RESIZE)
        if second is None or used & {first.index, second.index}:
            continue
        old = graph.tensor(first.inputs[0]).shape[1:3]
        middle = graph.flat.output(first).shape[1:3]
        new = graph.flat.output(second).shape[1:3]
        if any(m % o or n % m for o, m, n in zip(old, middle, new, strict=True)):
            continue
        if not (_repeating(first, old, middle) and _repeating(second, middle, new)):
            continue
        half_pixels = half_pixels_for(old, new)
        if half_pixels is not None:
            used |= {first.index, second.index}
            yield Place(graph.flat.output(second).name, _merged(first, second, half_pixels))


def _repeating(operator: Operator, old: Sequence[int], new: Sequence[int]) -> bool:
    """Returns whether an enlargement repeats each element equally often."""
    half_pixels = bool(operator.options.get("half_pixel_centers"))
    return not operator.options.get("align_corners") and all(
        np.array_equal(nearest_places(o, n, half_pixels), np.repeat(np.arange(o), n // o))
        for o, n in zip(old, new, strict=True)
    )


def _merged(first: Operator, second: Operator, half_pixels: bool) -> Callable[[ModelEditor], None]:
    def edit(editor: ModelEditor) -> None:
        entry = editor.operators[second.index]
        editor.place_instead(editor.operators[first.index], [])
        editor.set_input(entry, 0, first.inputs[0])
        editor.set_options(
            entry, "ResizeNearestNeighborOptions", alignCorners=False, halfPixelCenters=half_pixels
        )

    return edit
