"""N:M sparsity: n of every m neighbours are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import option, whole
from edgecompress.patterns.base import PATTERNS, Pattern

# Comparing each weight with its group takes m numbers for each weight.
_LARGEST_GROUP = 64


@PATTERNS.register("n-of-m")
@dataclass(frozen=True)
class NOfM(Pattern):
    """Keeps the n highest-scoring of every m neighbouring weights.

    Neighbours run along the input channels of one output channel (the rows of a Dense kernel), the
    direction in which products are accumulated, as in the sparse tensor cores of GPUs and in the
    N:M kernels of microcontrollers: Zhou et al., "Learning N:M fine-grained structured sparse
    neural networks from scratch" (2021, https://arxiv.org/abs/2102.04010). On the way to a
    schedule's sparsity s, m - round(m * s) of each group stay, and never fewer than n. All groups
    lose the same number, so the scope of the pruning does not matter. On ties, the first stay.

    Args:
        n: Weights that stay of each group.
        m: Weights of a group; input channels have to be a multiple.

    Raises:
        ArgumentError: n is not between 1 and m - 1, or m is over 64.
    """

    n: int = option(2, "Weights that stay of each group.", whole(1))
    m: int = option(4, "Weights of a group, 2 to 64.", whole(2, _LARGEST_GROUP))

    def __post_init__(self) -> None:
        """Refuses groups that would lose nothing or everything."""
        for name, value, least, most in (
            ("m", self.m, 2, _LARGEST_GROUP),
            ("n", self.n, 1, self.m - 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ArgumentError(name, f"be a whole number from {least} to {most}", value)

    @property
    def title(self) -> str:
        """As `Pattern.title`."""
        return f"groups of {self.m} input channels"

    @property
    def highest_sparsity(self) -> float:
        """1 - n / m."""
        return 1 - self.n / self.m

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether the kernel's input channels divide into groups."""
        axis = kernel.input_axis
        return axis is not None and not kernel.shape[axis] % self.m

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the scores in groups, of shape (input channels / m, everything else, m)."""
        from keras import ops

        moved = ops.moveaxis(scores, kernel.input_axis or 0, -1)
        return ops.reshape(moved, (*moved.shape[:-1], moved.shape[-1] // self.m, self.m))

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights from that of the groups."""
        from keras import ops

        moved = ops.reshape(kept, (*kept.shape[:-2], kept.shape[-2] * self.m))
        return ops.moveaxis(moved, -1, kernel.input_axis or 0)

    def masks(
        self, scores: Sequence[Any], sparsity: Any, kernels: Sequence[KernelShape]
    ) -> list[Any]:
        """Returns which weights stay; see `Pattern.masks`."""
        from keras import ops

        dropped = ops.round(ops.cast(float(self.m), "float32") * sparsity)
        staying = ops.cast(ops.maximum(self.m - dropped, float(self.n)), "int32")
        return [
            self.expand(_ranks(self.units(score, kernel)) < staying, kernel)
            for score, kernel in zip(scores, kernels, strict=True)
        ]


def _ranks(groups: Any) -> Any:
    """Returns each member's rank in its group: how many score higher, or equally but earlier.

    Args:
        groups: Shape (..., m).

    Returns:
        int32 of the same shape, a permutation of 0 ... m - 1 in each group.
    """
    from keras import ops

    own, other = ops.expand_dims(groups, -1), ops.expand_dims(groups, -2)
    place = ops.arange(groups.shape[-1])
    first = ops.expand_dims(place, 0) < ops.expand_dims(place, -1)
    before = ops.logical_or(other > own, ops.logical_and(other == own, first))
    return ops.sum(ops.cast(before, "int32"), axis=-1)
