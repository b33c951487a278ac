"""Fewer filters followed by a mixture of them: the factorization `channels`."""

from __future__ import annotations

import math
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


@FACTORIZATIONS.register("channels")
class Channels(Factorization):
    """The kernel as a matrix (spatial positions and inputs, outputs): its singular values.

    A convolution becomes one with r filters and a 1x1 convolution that mixes them (Zhang et al.,
    "Accelerating very deep convolutional networks for classification and detection", 2016,
    https://arxiv.org/abs/1505.06798, section 3.1); a Dense layer becomes two, W = U V (Denil et
    al., "Predicting parameters in deep learning", 2013, https://arxiv.org/abs/1306.0543, equation
    (1)).
    """

    spatial = (0, 1, 2)

    def highest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """As `Factorization.highest`."""
        return (min(math.prod(shape[:-1]), shape[-1]),)

    def ranks(self, kernel: np.ndarray) -> Ranks:
        """As `Factorization.ranks`."""
        singular = np.linalg.svd(_matrix(kernel), compute_uv=False)
        return lambda energy: (rank_of(singular, energy),)

    def parts(self, shape: Sequence[int], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """As `Factorization.parts`."""
        space = len(shape) - 2
        return (
            Part((*shape[:-1], *ranks), tuple(range(space))),
            Part((*(1,) * space, *ranks, shape[-1])),
        )

    def kernels(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """As `Factorization.kernels`."""
        factors = balanced(_matrix(kernel), ranks[0])
        parts = self.parts(kernel.shape, ranks)
        return tuple(f.reshape(part.shape) for f, part in zip(factors, parts, strict=True))


def _matrix(kernel: np.ndarray) -> np.ndarray:
    return kernel.astype(np.float64).reshape(-1, kernel.shape[-1])
