"""Blocks: rectangles of a matrix, as read by the sparse kernels on phones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import option, whole
from edgecompress.patterns.base import PATTERNS, Pattern


@PATTERNS.register("blocks")
@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of a matrix (Dense, Embedding), ranked by the mean score of their weights.

    4 x 1 is four inputs of one unit, as required by LiteRT's sparse kernels.

    Args:
        rows: Rows of a block, in the direction of a Dense layer's inputs.
        columns: Columns of a block, in the direction of its units.

    Raises:
        ArgumentError: an argument is not a whole number of at least 1.
    """

    rows: int = option(4, "Rows of a block (inputs of a Dense layer).", whole(1))
    columns: int = option(1, "Columns of a block (units of a Dense layer).", whole(1))

    def __post_init__(self) -> None:
        """Refuses invalid sizes."""
        for size in (self.rows, self.columns):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ArgumentError(
                    "block_size",
                    "be two whole numbers of at least 1: rows and columns",
                    (self.rows, self.columns),
                )

    @property
    def title(self) -> str:
        """As `Pattern.title`."""
        return f"blocks of {self.rows} x {self.columns}"

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether the kernel is a matrix that the blocks divide."""
        shape = kernel.shape
        return len(shape) == 2 and not shape[0] % self.rows and not shape[1] % self.columns

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the mean score of each block, (rows / block rows, columns / block columns).

        Example:
            >>> from keras import ops
            >>> Blocks(2, 1).units(ops.array([[1.0, 2.0], [3.0, 0.0]]), KernelShape((2, 2)))
            <tf.Tensor: shape=(1, 2), dtype=float32, numpy=array([[2., 1.]], dtype=float32)>
        """
        from keras import ops

        rows, columns = kernel.shape
        blocks = (rows // self.rows, self.rows, columns // self.columns, self.columns)
        return ops.mean(ops.reshape(scores, blocks), axis=(1, 3))

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights from that of the blocks."""
        from keras import ops

        return ops.repeat(ops.repeat(kept, self.rows, axis=0), self.columns, axis=1)
