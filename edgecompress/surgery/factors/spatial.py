"""A vertical and a horizontal convolution: the factorization `spatial`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.surgery.factors.base import (
    FACTORIZATIONS,
    Factorization,
    Part,
    Ranks,
    balanced,
    rank_of,
)


@FACTORIZATIONS.register("spatial")
class Spatial(Factorization):
    """The kernel as a matrix (rows and inputs, columns and outputs): its singular values.

    A kh x kw convolution becomes kh x 1 with r filters, then 1 x kw: Jaderberg, Vedaldi and
    Zisserman, "Speeding up convolutional neural networks with low rank expansions" (2014,
    https://arxiv.org/abs/1405.3866, scheme 2); the best factors in closed form are those of Tai et
    al. (2016, https://arxiv.org/abs/1511.06067, theorem 1).
    """

    spatial = (2,)

    def fits(self, shape: Sequence[int]) -> bool:
        """As `Factorization.fits`; a kernel of one row or column is not separable further."""
        return super().fits(shape) and min(shape[:2]) > 1

    def highest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """As `Factorization.highest`."""
        return (min(shape[0] * shape[2], shape[1] * shape[3]),)

    def ranks(self, kernel: np.ndarray) -> Ranks:
        """As `Factorization.ranks`."""
        singular = np.linalg.svd(_matrix(kernel), compute_uv=False)
        return lambda energy: (rank_of(singular, energy),)

    def parts(self, shape: Sequence[int], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """As `Factorization.parts`."""
        rows, columns, inputs, outputs = shape
        return Part((rows, 1, inputs, *ranks), (0,)), Part((1, columns, *ranks, outputs), (1,))

    def kernels(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """As `Factorization.kernels`."""
        rows, columns, inputs, outputs = kernel.shape
        first, second = balanced(_matrix(kernel), ranks[0])
        horizontal = second.reshape(-1, columns, outputs).swapaxes(0, 1)
        return first.reshape(rows, 1, inputs, -1), horizontal[None]


def _matrix(kernel: np.ndarray) -> np.ndarray:
    rows, columns, inputs, outputs = kernel.shape
    turned = kernel.astype(np.float64).transpose(0, 2, 1, 3)
    return turned.reshape(rows * inputs, columns * outputs)
