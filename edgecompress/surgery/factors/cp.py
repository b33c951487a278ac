"""A depthwise convolution between two 1x1 convolutions: the factorization `cp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgecompress.surgery.factors.base import FACTORIZATIONS, Factorization, Part, Ranks

_ROUNDS = 60
# Stops when a round gains less than this share of the kernel's squares.
_GAIN = 1e-6
# Keeps the factors from growing against each other, as a share of the normal equations' diagonal.
_RIDGE = 1e-8


@FACTORIZATIONS.register("cp")
class CP(Factorization):
    """Canonical polyadic decomposition: K[s, i, o] = sum over r of U[i, r] D[s, r] V[o, r].

    A 1x1 convolution to r channels, a depthwise convolution, a 1x1 convolution to all: Lebedev et
    al., "Speeding-up convolutional neural networks using fine-tuned CP-decomposition" (2015,
    https://arxiv.org/abs/1412.6553, equation (3)), with the two spatial axes in one factor, for
    which engines have a kernel. Found by alternating least squares; there is no closed form, so
    the rank for a share of the squares is found by trying.
    """

    spatial = (1, 2)
    depthwise = True

    def fits(self, shape: Sequence[int]) -> bool:
        """As `Factorization.fits`; a 1x1 kernel is a matrix."""
        return super().fits(shape) and max(shape[:-2]) > 1

    def highest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """As `Factorization.highest`: the smallest product of two of the three sizes."""
        sizes = (math.prod(shape[:-2]), *shape[-2:])
        return (min(math.prod(sizes) // size for size in sizes),)

    def ranks(self, kernel: np.ndarray) -> Ranks:
        """As `Factorization.ranks`."""
        flat = _flat(kernel)
        whole = float(np.square(flat).sum())

        def smallest(energy: float) -> tuple[int, ...]:
            low, high = 0, self.highest(kernel.shape)[0]
            while high - low > 1:
                rank = (low + high) // 2
                left = np.square(flat - _product(*_als(flat, rank))).sum()
                low, high = (low, rank) if left <= (1 - energy) * whole else (rank, high)
            return (high,)

        return smallest

    def largest(
        self, kernel: np.ndarray, affordable: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, ...] | None:
        """As `Factorization.largest`; looks for the rank itself, which needs no decomposition."""
        low, high = 0, self.highest(kernel.shape)[0]
        while low < high:
            rank = (low + high + 1) // 2
            low, high = (rank, high) if affordable((rank,)) else (low, rank - 1)
        return (low,) if low else None

    def parts(self, shape: Sequence[int], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """As `Factorization.parts`."""
        *space, inputs, outputs = shape
        ones = (1,) * len(space)
        return (
            Part((*ones, inputs, *ranks)),
            Part((*space, *ranks, 1), tuple(range(len(space))), depthwise=True),
            Part((*ones, *ranks, outputs)),
        )

    def kernels(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """As `Factorization.kernels`; the three factors of each term have equal norms."""
        factors = _als(_flat(kernel), ranks[0])
        norms = [np.linalg.norm(factor, axis=0) for factor in factors]
        even = np.cbrt(np.prod(norms, axis=0))
        smallest = np.finfo(np.float64).tiny
        space, inputs, outputs = (
            factor * (even / np.maximum(norm, smallest))
            for factor, norm in zip(factors, norms, strict=True)
        )
        parts = self.parts(kernel.shape, ranks)
        return tuple(
            array.reshape(part.shape)
            for array, part in zip((inputs, space, outputs.T), parts, strict=True)
        )


def _flat(kernel: np.ndarray) -> np.ndarray:
    return kernel.astype(np.float64).reshape(-1, *kernel.shape[-2:])


def _product(space: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return np.einsum("sr,ir,or->sio", space, inputs, outputs, optimize=True)


def _als(flat: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the factors (s, r), (i, r), (o, r) by alternating least squares."""
    random = np.random.default_rng(0)
    factors = [random.standard_normal((size, rank)) for size in flat.shape]
    # From the leading singular vectors where there are enough of them.
    for axis in range(3):
        unfolded = np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1)
        left = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
        factors[axis][:, : left.shape[1]] = left
    unfoldings = [np.moveaxis(flat, axis, 0).reshape(flat.shape[axis], -1) for axis in range(3)]
    whole = float(np.square(flat).sum()) or 1.0
    before = np.inf
    for _ in range(_ROUNDS):
        for axis in range(3):
            first, second = (factors[other] for other in range(3) if other != axis)
            products = np.einsum("ar,br->abr", first, second).reshape(-1, rank)
            gram = (first.T @ first) * (second.T @ second)
            gram[np.diag_indices(rank)] += _RIDGE * np.trace(gram) / rank
            factors[axis] = np.linalg.solve(gram, (unfoldings[axis] @ products).T).T
        left = float(np.square(flat - _product(*factors)).sum())
        if before - left < _GAIN * whole:
            break
        before = left
    return factors[0], factors[1], factors[2]
