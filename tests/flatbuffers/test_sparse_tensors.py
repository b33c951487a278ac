"""Sparse tensors against loops over the format's definition, and what contradicts itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgecompress.core.errors import ArgumentError, ModelFileError
from edgecompress.flatbuffers.sparse_tensors import (
    Level,
    Sparsity,
    block_sparsity,
    encode_blocks,
    index_bytes,
)

_RNG = np.random.default_rng(0)


def pruned(rows: int, columns: int, width: int, share: float) -> np.ndarray:
    kept = _RNG.random((rows, columns // width)) >= share
    return np.where(np.repeat(kept, width, 1), _RNG.normal(size=(rows, columns)), 0).astype("f4")


@pytest.mark.parametrize("width", [1, 2, 4, 16])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_blocks_there_and_back(width: int, share: float) -> None:
    matrix = pruned(12, 48, width, share)
    values, sparsity = encode_blocks(matrix, width)
    # By the definition: row after row, block after block.
    blocks = [
        matrix[row, first : first + width]
        for row in range(12)
        for first in range(0, 48, width)
        if matrix[row, first : first + width].any()
    ]
    assert np.array_equal(values, np.concatenate(blocks) if blocks else np.zeros(0))
    assert len(sparsity.levels[1].indices) == len(blocks)
    assert sparsity.expand(values, matrix.shape).tobytes() == matrix.tobytes()
    assert block_sparsity(matrix, width) == pytest.approx(1 - len(blocks) / (12 * 48 / width))


def test_single_zeros_are_no_blocks() -> None:
    matrix = np.ones((2, 8), np.float32)
    matrix[:, ::2] = 0
    assert block_sparsity(matrix, 4) == 0.0
    assert block_sparsity(matrix, 1) == 0.5


def test_columns_first_and_a_block_over_both_dimensions() -> None:
    # Blocks of 2 x 2, visited column by column, by TensorFlow Lite's own order of dimensions:
    # 0 and 1 are the matrix's, 2 and 3 those of the block.
    matrix = np.zeros((4, 6), np.int8)
    matrix[2:4, 0:2] = [[1, 2], [3, 4]]
    matrix[0:2, 4:6] = [[5, 6], [7, 8]]
    sparsity = Sparsity(
        (1, 0, 2, 3), (0, 1), (Level(3), Level(0, (0, 1, 1, 2), (1, 0)), Level(2), Level(2))
    )
    assert np.array_equal(sparsity.expand(np.arange(1, 9, dtype=np.int8), (4, 6)), matrix)


def test_bytes_of_indices() -> None:
    assert [index_bytes(n) for n in (0, 255, 256, 65_535, 65_536)] == [1, 1, 2, 2, 4]
    _, sparsity = encode_blocks(np.ones((3, 1200), np.float32), 4)
    # Four segments up to 900, 900 indices up to 299.
    assert sparsity.bytes == 2 * 4 + 2 * 900


@pytest.mark.parametrize("shape", [(8,), (2, 6), (2, 2, 4)])
def test_what_has_no_blocks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="a multiple of 4"):
        block_sparsity(np.zeros(shape))


VALUES, GOOD = encode_blocks(np.kron(np.eye(4, dtype=np.float32), np.ones((1, 4))), 4)


def level(**changes: Any) -> dict[str, Any]:
    levels = list(GOOD.levels)
    levels[1] = dataclasses.replace(levels[1], **changes)
    return {"levels": tuple(levels)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (level(indices=(0, 1, 2, 4)), "outside its dimension"),
        (level(indices=(0, 1, 2, -1)), "outside its dimension"),
        (level(indices=(0, 1, 2)), "do not fit"),
        (level(segments=(0, 1, 2, 4)), "do not fit"),
        (level(segments=(1, 1, 2, 3, 4)), "do not fit"),
        (level(segments=(0, 2, 1, 3, 4)), "outside its dimension"),
        (level(segments=(0,)), "do not fit"),
        ({"levels": GOOD.levels[:2]}, "has levels"),
        ({"traversal_order": (0, 1, 1)}, "has levels"),
        ({"traversal_order": ()}, "has levels"),
        ({"block_map": ()}, "has levels"),
        ({"block_map": (7,)}, "do not divide"),
        ({"levels": (*GOOD.levels[:2], Level(3))}, "do not divide"),
        ({"levels": (*GOOD.levels[:2], Level(0))}, "do not divide"),
        ({"levels": (Level(5), *GOOD.levels[1:])}, "5 positions instead of 4"),
    ],
)
def test_contradictions_are_named(changes: dict[str, Any], message: str) -> None:
    assert np.array_equal(GOOD.expand(VALUES, (4, 16))[1], [0] * 4 + [1] * 4 + [0] * 8)
    with pytest.raises(ModelFileError, match=message):
        dataclasses.replace(GOOD, **changes).expand(VALUES, (4, 16))


def test_values_and_sizes_are_checked() -> None:
    with pytest.raises(ModelFileError, match="15 values for 16 positions"):
        GOOD.expand(VALUES[:15], (4, 16))
    with pytest.raises(ModelFileError, match="too large"):
        GOOD.expand(VALUES, (1 << 20, 1 << 20))
