"""A model of a file: what a .tflite file would be if layers had other widths, without converting.

Widths enter a file as sizes of dimensions. From a few conversions at known widths, each size is
solved for as a whole-number formula; any other width then gives a `FlatModel` of the right shapes
in under a millisecond, which the targets' rules judge like any file. One more conversion is the
proof: unless it is predicted exactly, there is no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecompress.core.errors import EdgeCompressError
from edgecompress.flatbuffers.model import FlatModel
from edgecompress.flatbuffers.tensors import Tensor

# Widths that one size may depend on: the branches of a concatenation.
_MOST_TERMS = 8


class NoFileModel(EdgeCompressError):
    """The sizes in the file do not follow the widths by any formula."""


@dataclass(frozen=True)
class Affine:
    """`constant + sum over the terms of factor * width`, in whole numbers.

    Example:
        >>> Affine(2, ((0, 3), (1, 1)))(np.array([10, 5]))
        37
    """

    constant: int
    terms: tuple[tuple[int, int], ...] = ()

    def __call__(self, widths: np.ndarray) -> int:
        """Returns the value at these widths."""
        return self.constant + sum(factor * int(widths[at]) for at, factor in self.terms)


def solve(values: Sequence[int], widths: np.ndarray) -> Affine | None:
    """Returns the formula with the fewest terms found that gives all values; None for none.

    Terms are added one at a time, each the one that leaves the smallest residual (orthogonal
    matching pursuit).

    Args:
        values: Of one size, (probes,).
        widths: (probes, width classes).

    Example:
        >>> solve([16, 24, 40], np.array([[2, 9], [3, 5], [5, 7]]))
        Affine(constant=0, terms=((0, 8),))
    """
    wanted = np.asarray(values, np.float64)
    if (wanted == wanted[0]).all():
        return Affine(int(wanted[0]))
    chosen: list[int] = []
    # A formula of as many unknowns as there are probes would fit anything.
    for _ in range(min(_MOST_TERMS, len(wanted) - 2, widths.shape[1])):
        best, least = -1, np.inf
        for at in range(widths.shape[1]):
            if at in chosen:
                continue
            residual = _fit(wanted, widths[:, [*chosen, at]])[1]
            if residual < least - 1e-9:
                best, least = at, residual
        if best < 0:
            return None
        chosen.append(best)
        solution = np.round(_fit(wanted, widths[:, chosen])[0]).astype(int)
        found = Affine(
            int(solution[0]),
            tuple((at, int(f)) for at, f in zip(chosen, solution[1:], strict=True) if f),
        )
        if all(found(row) == value for row, value in zip(widths, values, strict=True)):
            return found
    return None


def _fit(wanted: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, float]:
    matrix = np.column_stack([np.ones(len(wanted)), columns])
    solution = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return solution, float(np.linalg.norm(matrix @ solution - wanted))


@dataclass(frozen=True)
class _Shape:
    """How one tensor follows the widths.

    Attributes:
        tensor: As in the first probe.
        dimensions: A formula for each.
        values: A formula for each element of a constant that holds a shape; none for others.
    """

    tensor: Tensor
    dimensions: tuple[Affine, ...]
    values: tuple[Affine, ...] = ()

    @property
    def fixed(self) -> bool:
        return not any(formula.terms for formula in (*self.dimensions, *self.values))

    def at(self, widths: np.ndarray) -> Tensor:
        if self.fixed:
            return self.tensor
        old = self.tensor
        shape = tuple(formula(widths) for formula in self.dimensions)
        new = dataclasses.replace(old, shape=shape, raw=None)
        raw = None
        if self.values:
            kind = np.int64 if old.type == "INT64" else np.int32
            raw = np.array([formula(widths) for formula in self.values], kind).tobytes()
        elif old.raw is not None:
            raw = bytes(new.bytes)
        scales, zeros = old.scales, old.zero_points
        if len(scales) > 1:
            count = shape[old.quantized_dimension]
            scales = (scales[0],) * count
            zeros = (zeros[0] if zeros else 0,) * count
        return dataclasses.replace(new, raw=raw, scales=scales, zero_points=zeros)


class FileModel:
    """What a file would be at other widths.

    Args:
        flats: The file at known widths. All but the last are solved for, the last is the proof.
        widths: Those widths, (files, width classes).

    Raises:
        NoFileModel: operators or a size follow no formula, or the proof fails.
    """

    def __init__(self, flats: Sequence[FlatModel], widths: np.ndarray) -> None:
        """Solves for the sizes, and checks them on the last file."""
        first = flats[0]
        alike = [matched(first, flat) for flat in flats]
        files = [tensors for tensors in alike if tensors is not None]
        if len(files) < len(flats):
            raise NoFileModel("Other widths make a file with other operators.")
        self._first = first
        known = np.asarray(widths)[:-1]
        self._shapes = [_shape_of(tensors, known) for tensors in zip(*files[:-1], strict=True)]
        # What the rest takes; offsets are aligned, so a few bytes more or less.
        left = [len(flat.data) - _growing(flat.tensors) for flat in flats]
        self._base = max(left)
        made = self.at(np.asarray(widths)[-1])
        for wanted, found in zip(files[-1], made.tensors, strict=True):
            if wanted.shape != found.shape or len(wanted.scales) != len(found.scales):
                raise NoFileModel(f"The shape of tensor {wanted.index} follows no formula.")

    def at(self, widths: np.ndarray) -> FlatModel:
        """Returns the file at these widths; its constants are zeros, its size is near.

        Args:
            widths: (width classes,).
        """
        tensors = tuple(shape.at(widths) for shape in self._shapes)
        size = self._base + _growing(tensors)
        return dataclasses.replace(self._first, data=bytes(size), tensors=tensors)


def matched(first: FlatModel, other: FlatModel) -> list[Tensor] | None:
    """Returns the tensors of a file in the order of another that has the same operators.

    Converters store equal constants once, and two biases of zeros are equal where two layers happen
    to be equally wide: the order of tensors changes with the widths.

    Returns:
        None if operators or what they read differ.
    """
    if [o.code for o in first.operators] != [o.code for o in other.operators]:
        return None
    if len(first.tensors) != len(other.tensors):
        return None
    known = dict(zip(_by_use(first), _by_use(other), strict=True))
    known[-1] = -1
    for one, two in zip(first.operators, other.operators, strict=True):
        if [known[index] for index in (*one.inputs, *one.outputs)] != [*two.inputs, *two.outputs]:
            return None
    return [other.tensors[known[index]] for index in range(len(first.tensors))]


def _by_use(flat: FlatModel) -> list[int]:
    """Returns the positions of tensors in the order in which they are used, the others last."""
    used = [*flat.inputs]
    for operator in flat.operators:
        used += [index for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return list(dict.fromkeys([*used, *range(len(flat.tensors))]))


def _shape_of(tensors: Sequence[Tensor], widths: np.ndarray) -> _Shape:
    first = tensors[0]
    if any(len(tensor.shape) != len(first.shape) for tensor in tensors):
        raise NoFileModel(f"Tensor {first.index} has another rank at other widths.")
    dimensions = []
    for axis in range(len(first.shape)):
        found = solve([tensor.shape[axis] for tensor in tensors], widths)
        if found is None:
            raise NoFileModel(f"Axis {axis} of tensor {first.index} follows no formula.")
        dimensions.append(found)
    values: list[Affine] = []
    if _holds_shape(first) and len({tensor.raw for tensor in tensors}) > 1:
        read = [tensor.values().reshape(-1).tolist() for tensor in tensors]
        if len({len(row) for row in read}) > 1:
            raise NoFileModel(f"Constant {first.index} has another length at other widths.")
        for column in zip(*read, strict=True):
            formula = solve([int(value) for value in column], widths)
            if formula is None:
                raise NoFileModel(f"Constant {first.index} follows no formula.")
            values.append(formula)
    return _Shape(first, tuple(dimensions), tuple(values))


def _holds_shape(tensor: Tensor) -> bool:
    """Whether a constant holds sizes or indices, not something learnt."""
    return (
        tensor.raw is not None
        and tensor.type in ("INT32", "INT64")
        and not tensor.is_quantized
        and len(tensor.shape) <= 2
    )


def _growing(tensors: Sequence[Tensor]) -> int:
    """Returns the bytes of a file that grow with its widths.

    These are constants, aligned, a scale for each channel, and the zero points of all channels,
    which the file stores once for each number of channels, as they are all zero.
    """
    constants = sum(-(-tensor.stored_bytes // 16) * 16 for tensor in tensors if tensor.is_constant)
    counts = [len(tensor.scales) for tensor in tensors if len(tensor.scales) > 1]
    return constants + 4 * sum(counts) + sum(8 * count + 8 for count in set(counts))
