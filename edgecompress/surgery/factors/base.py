"""Base class of factorizations: one kernel becomes several smaller ones, applied in turn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.core.registry import Registry

# Share of a kernel's squares -> ranks.
Ranks = Callable[[float], tuple[int, ...]]
# Of the interval of shares, when the largest affordable ranks are looked for.
_HALVINGS = 30

FACTORIZATIONS: Registry[type[Factorization]] = Registry("factorization")


@dataclass(frozen=True)
class Part:
    """One of the kernels that take another's place.

    Attributes:
        shape: In Keras's layout, (*spatial, inputs, outputs), inputs of one group if there are
            several; (*spatial, channels, 1) if depthwise.
        axes: The spatial axes of the original kernel along which it extends; it takes over their
            strides, padding and dilation.
        depthwise: Whether each channel has a filter of its own.
        groups: Groups of channels that are convolved separately.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    depthwise: bool = False
    groups: int = 1


class Factorization(ABC):
    """Writes a kernel (*spatial, inputs, outputs) as kernels applied one after the other.

    All computation is in float64.

    Attributes:
        spatial: Numbers of spatial axes that it factorizes.
        depthwise: Whether one of its parts is a depthwise convolution.
    """

    spatial: ClassVar[tuple[int, ...]]
    depthwise: ClassVar[bool] = False

    def fits(self, shape: Sequence[int]) -> bool:
        """Returns whether a kernel of this shape is factorized."""
        return len(shape) - 2 in self.spatial

    @abstractmethod
    def highest(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the ranks at which every kernel of this shape is exact."""

    @abstractmethod
    def ranks(self, kernel: np.ndarray) -> Ranks:
        """Returns a function: share of the kernel's squares to keep, 0 to 1 -> smallest ranks.

        They do not fall as the share grows.
        """

    def at(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """Returns ranks of this number, or the highest where that is less."""
        return tuple(min(rank, highest) for highest in self.highest(shape))

    def largest(
        self, kernel: np.ndarray, affordable: Callable[[tuple[int, ...]], bool]
    ) -> tuple[int, ...] | None:
        """Returns the largest ranks that are affordable; None if no ranks are."""
        ranks = self.ranks(kernel)
        if not affordable(ranks(0.0)):
            return None
        low, high = 0.0, 1.0
        if affordable(ranks(high)):
            return ranks(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if affordable(ranks(middle)) else (low, middle)
        return ranks(low)

    @abstractmethod
    def parts(self, shape: Sequence[int], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """Returns what takes the place of a kernel of this shape, in the order of application."""

    @abstractmethod
    def kernels(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Returns the kernels of `parts`."""


def rank_of(singular: np.ndarray, energy: float) -> int:
    """Returns how many of the largest singular values keep a share of the sum of squares.

    Args:
        singular: Singular values, falling.
        energy: The share, 0 to 1; at 1 all that are not rounding.

    Example:
        >>> rank_of(np.array([3.0, 1.0, 1.0]), 0.8)
        1
    """
    squares = np.square(singular)
    total = float(squares.sum())
    if total == 0:
        return 1
    if energy >= 1:
        smallest = singular[0] * max(singular.shape) * np.finfo(np.float32).eps
        return max(1, int(np.count_nonzero(singular > smallest)))
    reached = np.cumsum(squares) >= energy * total
    return int(np.argmax(reached)) + 1


def balanced(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `U sqrt(S)` and `sqrt(S) V^T` of the best approximation of a rank.

    No matrix of this rank is nearer in squares (Eckart and Young, 1936). Singular values are shared
    equally, so that both factors train at the same speed.

    Args:
        matrix: Shape (n, m).
        rank: r, at most min(n, m).

    Returns:
        Shapes (n, r) and (r, m).
    """
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(singular[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def ungrouped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Returns the kernel (*spatial, inputs, outputs) that a grouped one amounts to: zeros between.

    Args:
        kernel: Shape (*spatial, inputs / groups, outputs).
        groups: The groups.
    """
    *space, inputs, outputs = kernel.shape
    whole = np.zeros((*space, inputs * groups, outputs), kernel.dtype)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        columns = slice(group * outputs // groups, (group + 1) * outputs // groups)
        whole[..., rows, columns] = kernel[..., columns]
    return whole


def composed(
    parts: Sequence[Part], kernels: Sequence[np.ndarray], shape: Sequence[int]
) -> np.ndarray:
    """Returns the one kernel, of the original shape, that kernels applied in turn amount to."""
    *space, inputs, _ = shape
    whole = np.zeros((*space, inputs, inputs))
    whole[(0,) * len(space)] = np.eye(inputs)
    for part, given in zip(parts, kernels, strict=True):
        own = tuple(size if axis in part.axes else 1 for axis, size in enumerate(space))
        kernel = ungrouped(given, part.groups).astype(np.float64)
        kernel = kernel.reshape(*own, *kernel.shape[-2:])
        made = np.zeros((*space, inputs, part.shape[-2 if part.depthwise else -1]))
        for at in np.ndindex(*own):
            # Along its axes nothing has extended yet: all there is lies at position 0.
            along = tuple(0 if axis in part.axes else slice(None) for axis in range(len(space)))
            to = tuple(at[axis] if axis in part.axes else slice(None) for axis in range(len(space)))
            factor = kernel[at]
            made[to] = whole[along] * factor[:, 0] if part.depthwise else whole[along] @ factor
        whole = made
    return whole


def multiply_accumulates(
    parts: Sequence[Part], inputs: Sequence[int], outputs: Sequence[int]
) -> int:
    """Returns the multiply-accumulates of parts applied in turn.

    Args:
        parts: The parts; in each, the size of the axes along which it extends changes.
        inputs: Positions along each spatial axis before the first.
        outputs: Positions after the last.
    """
    positions, total = list(inputs), 0
    for part in parts:
        for axis in part.axes:
            positions[axis] = outputs[axis]
        weights = part.shape[:-1] if part.depthwise else part.shape
        total += math.prod(positions) * math.prod(weights)
    return total
