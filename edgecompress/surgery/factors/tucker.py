"""A small core between two 1x1 convolutions: the factorization `tucker`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgecompress.surgery.factors.base import FACTORIZATIONS, Factorization, Part, Ranks, rank_of

# Alternating improvements of the two bases; the first few bring nearly all.
_ROUNDS = 10
# Stops when a round adds less than this share of what is kept.
_GAIN = 1e-4


@FACTORIZATIONS.register("tucker")
class Tucker(Factorization):
    """Tucker-2: bases of the input and of the output channels, and a core between them.

    K[s, i, o] = sum over a, b of U[i, a] C[s, a, b] V[o, b]: a 1x1 convolution to r1 channels, a
    convolution from r1 to r2 channels, a 1x1 convolution to all. Kim et al., "Compression of deep
    convolutional neural networks for fast and low power mobile applications" (2016,
    https://arxiv.org/abs/1511.06530, equations (3) to (6)). Bases are the singular vectors of the
    two unfoldings, improved by turns (higher-order orthogonal iteration, De Lathauwer et al.,
    2000).
    """

    spatial = (1, 2)

    def fits(self, shape: Sequence[int]) -> bool:
        """As `Factorization.fits`; a 1x1 kernel is a matrix."""
        return super().fits(shape) and max(shape[:-2]) > 1

    def highest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """As `Factorization.highest`."""
        positions = math.prod(shape[:-2])
        return min(shape[-2], positions * shape[-1]), min(shape[-1], positions * shape[-2])

    def ranks(self, kernel: np.ndarray) -> Ranks:
        """As `Factorization.ranks`; each basis may lose half of what may be lost."""
        flat = _flat(kernel)
        spectra = [_basis(flat, axis)[1] for axis in (1, 2)]

        def smallest(energy: float) -> tuple[int, ...]:
            first, last = (rank_of(s, 1 - (1 - energy) / 2) for s in spectra)
            # A core has no more independent columns than rows.
            return min(first, len(flat) * last), min(last, len(flat) * first)

        return smallest

    def parts(self, shape: Sequence[int], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """As `Factorization.parts`."""
        *space, inputs, outputs = shape
        ones, (first, last) = (1,) * len(space), ranks
        return (
            Part((*ones, inputs, first)),
            Part((*space, first, last), tuple(range(len(space)))),
            Part((*ones, last, outputs)),
        )

    def kernels(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """As `Factorization.kernels`."""
        flat = _flat(kernel)
        first = _basis(flat, 1)[0][:, : ranks[0]]
        last = _basis(flat, 2)[0][:, : ranks[1]]
        kept = 0.0
        for _ in range(_ROUNDS):
            first = _basis(flat @ last, 1)[0][:, : ranks[0]]
            last, singular = _basis(np.swapaxes(np.swapaxes(flat, 1, 2) @ first, 1, 2), 2)
            last, before = last[:, : ranks[1]], kept
            kept = float(np.square(singular[: ranks[1]]).sum())
            if kept - before < _GAIN * kept:
                break
        core = first.T @ flat @ last
        parts = self.parts(kernel.shape, ranks)
        return tuple(
            array.reshape(part.shape)
            for array, part in zip((first, core, last.T), parts, strict=True)
        )


def _flat(kernel: np.ndarray) -> np.ndarray:
    return kernel.astype(np.float64).reshape(-1, *kernel.shape[-2:])


def _basis(tensor: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the left singular vectors and the singular values of an unfolding."""
    unfolded = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    # Of the small square matrix: the unfolding has many more columns than rows.
    squares, left = np.linalg.eigh(unfolded @ unfolded.T)
    count = min(unfolded.shape)
    return left[:, ::-1][:, :count], np.sqrt(np.maximum(squares[::-1][:count], 0))
