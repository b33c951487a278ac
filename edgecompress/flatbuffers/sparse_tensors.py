"""How a .tflite file stores a sparse tensor: which blocks are present, and their values.

The format is TensorFlow Lite's `SparsityParameters`: a tree with one level for each dimension, in
the order of traversal, block dimensions last. A dense level holds all its positions, a compressed
one (compressed sparse rows) lists those that are present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgecompress.core.errors import ArgumentError, ModelFileError

# Elements of the largest tensor that is expanded; a damaged shape must not fill the memory.
_LARGEST = 1 << 28


@dataclass(frozen=True)
class Level:
    """One dimension of a sparse tensor, or of its blocks.

    Attributes:
        size: Positions of a dense level; 0 for a compressed one.
        segments: Compressed: `segments[i]:segments[i + 1]` are the entries of the i-th parent.
        indices: Compressed: the position of each entry.
    """

    size: int = 0
    segments: tuple[int, ...] = field(default=(), repr=False)
    indices: tuple[int, ...] = field(default=(), repr=False)

    @property
    def is_dense(self) -> bool:
        """Whether every position is present."""
        return not self.segments


@dataclass(frozen=True)
class Sparsity:
    """Where the stored values of a sparse tensor belong.

    Attributes:
        traversal_order: For each level the dimension it traverses; numbers from the tensor's rank
            up are block dimensions.
        block_map: For each block dimension the tensor's dimension that it divides.
        levels: As many as `traversal_order` has entries.

    Example:
        >>> values, sparsity = encode_blocks(np.eye(4, dtype=np.float32), 2)
        >>> len(values), sparsity.levels[1].indices
        (8, (0, 0, 1, 1))
        >>> np.array_equal(sparsity.expand(values, (4, 4)), np.eye(4))
        True
    """

    traversal_order: tuple[int, ...]
    block_map: tuple[int, ...]
    levels: tuple[Level, ...]

    @property
    def bytes(self) -> int:
        """Bytes of segments and indices, each vector in the smallest type of the format."""
        vectors = [v for level in self.levels for v in (level.segments, level.indices) if v]
        return sum(len(vector) * index_bytes(max(vector)) for vector in vectors)

    def expand(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Returns the dense tensor.

        Args:
            values: The stored values, in the order of traversal.
            shape: Of the tensor.

        Raises:
            ModelFileError: the parts contradict each other.
        """
        sizes = self._level_sizes(shape)
        positions = np.zeros((len(sizes), 1), np.int64)
        for number, (level, size) in enumerate(zip(self.levels, sizes, strict=True)):
            count = positions.shape[1]
            if level.is_dense:
                if count * size > _LARGEST:
                    raise ModelFileError(f"a sparse tensor of shape {tuple(shape)} is too large")
                positions = np.repeat(positions, size, 1)
                positions[number] = np.tile(np.arange(size), count)
                continue
            segments = np.asarray(level.segments, np.int64)
            lengths = np.diff(segments)
            indices = np.asarray(level.indices, np.int64)
            if len(lengths) != count or segments[0] != 0 or segments[-1] != len(indices):
                raise ModelFileError("the segments of a sparse tensor do not fit its indices")
            if (lengths < 0).any() or ((indices < 0) | (indices >= size)).any():
                raise ModelFileError("an index of a sparse tensor is outside its dimension")
            positions = np.repeat(positions, lengths, 1)
            positions[number] = indices
        if positions.shape[1] != values.size:
            raise ModelFileError(
                f"a sparse tensor has {values.size} values for {positions.shape[1]} positions"
            )
        rank = len(shape)
        where = np.zeros((rank, positions.shape[1]), np.int64)
        by_dimension = dict(zip(self.traversal_order, positions, strict=True))
        for dimension in range(rank):
            where[dimension] = by_dimension[dimension]
        for block, dimension in enumerate(self.block_map):
            width = self._block_size(rank + block)
            where[dimension] = where[dimension] * width + by_dimension[rank + block]
        dense = np.zeros(tuple(shape), values.dtype)
        dense[tuple(where)] = values
        return dense

    def _block_size(self, dimension: int) -> int:
        return self.levels[self.traversal_order.index(dimension)].size

    def _level_sizes(self, shape: Sequence[int]) -> list[int]:
        """Returns the number of positions of each level; refuses levels that do not fit."""
        rank = len(shape)
        if np.prod(shape, dtype=np.float64) > _LARGEST:
            raise ModelFileError(f"a sparse tensor of shape {tuple(shape)} is too large")
        if sorted(self.traversal_order) != list(range(rank + len(self.block_map))) or len(
            self.levels
        ) != len(self.traversal_order):
            raise ModelFileError(
                f"a sparse tensor of shape {tuple(shape)} has levels {self.traversal_order}"
            )
        outer = list(shape)
        for block, dimension in enumerate(self.block_map):
            width = self._block_size(rank + block)
            if not 0 <= dimension < rank or width < 1 or outer[dimension] % width:
                raise ModelFileError(
                    f"blocks of {width} do not divide a sparse tensor of shape {tuple(shape)}"
                )
            outer[dimension] //= width
        sizes = [
            outer[dimension] if dimension < rank else self._block_size(dimension)
            for dimension in self.traversal_order
        ]
        for level, size in zip(self.levels, sizes, strict=True):
            if level.is_dense and level.size != size:
                raise ModelFileError(
                    f"a level of a sparse tensor has {level.size} positions instead of {size}"
                )
        return sizes


def index_bytes(largest: int) -> int:
    """Returns the bytes of the smallest index type that holds a number: 1, 2 or 4."""
    return 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4


def block_sparsity(matrix: np.ndarray, width: int = 4) -> float:
    """Returns the share of 1 x `width` blocks of a matrix that are entirely zero, 0 to 1.

    Args:
        matrix: Shape (rows, columns). Of a Keras Dense kernel (inputs, units) give the transpose:
            a block is `width` inputs of one unit.
        width: Columns of a block; must divide the columns. Defaults to 4.

    Raises:
        ArgumentError: the columns are not a multiple of `width`.

    Example:
        >>> block_sparsity(np.eye(4), 2)
        0.5
    """
    blocks = _blocks(matrix, width)
    return float(1 - blocks.any(-1).mean()) if blocks.size else 0.0


def encode_blocks(matrix: np.ndarray, width: int = 4) -> tuple[np.ndarray, Sparsity]:
    """Returns the values of the 1 x `width` blocks that are not zero, and where they belong.

    Args:
        matrix: Shape (rows, columns).
        width: Columns of a block; must divide the columns. Defaults to 4.

    Raises:
        ArgumentError: the columns are not a multiple of `width`.
    """
    blocks = _blocks(matrix, width)
    kept = blocks.any(-1)
    segments = np.concatenate([[0], np.cumsum(kept.sum(1))])
    levels = (
        Level(len(matrix)),
        Level(0, tuple(segments.tolist()), tuple(np.nonzero(kept)[1].tolist())),
        Level(width),
    )
    return blocks[kept].reshape(-1), Sparsity((0, 1, 2), (1,), levels)


def _blocks(matrix: np.ndarray, width: int) -> np.ndarray:
    if matrix.ndim != 2 or width < 1 or matrix.shape[1] % width:
        raise ArgumentError(
            "matrix", f"have two dimensions, the second a multiple of {width}", matrix.shape
        )
    return matrix.reshape(len(matrix), -1, width)
