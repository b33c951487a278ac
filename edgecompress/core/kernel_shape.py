"""The shape of a kernel and its axes, as criteria and patterns see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelShape:
    """What is known about a kernel besides its weights.

    Attributes:
        shape: Its shape.
        filter_axis: The axis that counts output channels; None if the layer has none.

    Example:
        >>> kernel = KernelShape((3, 3, 8, 16))
        >>> kernel.filters, kernel.input_axis
        (16, 2)
    """

    shape: tuple[int, ...]
    filter_axis: int | None = -1

    @property
    def filters(self) -> int | None:
        """The number of output channels; None if the layer has none."""
        return None if self.filter_axis is None else self.shape[self.filter_axis]

    @property
    def input_axis(self) -> int | None:
        """The axis of the input channels: the other one of the last two; None for none."""
        if self.filter_axis is None or len(self.shape) < 2:
            return None
        rank = len(self.shape)
        return rank - 2 if self.filter_axis % rank == rank - 1 else rank - 1

    def others(self, axis: int) -> tuple[int, ...]:
        """Returns all axes but one."""
        rank = len(self.shape)
        return tuple(i for i in range(rank) if i != axis % rank)

    def along(self, values: Any, axis: int) -> Any:
        """Returns one number for each index of an axis, repeated to the kernel's shape.

        Args:
            values: Shape (size of the axis,).
            axis: The axis.
        """
        from keras import ops

        shape = [1] * len(self.shape)
        shape[axis] = -1
        return ops.broadcast_to(ops.reshape(values, shape), self.shape)

    def by_filter(self, weights: Any) -> Any:
        """Returns the kernel as a matrix: (filters, weights of each)."""
        from keras import ops

        moved = ops.moveaxis(weights, self.filter_axis or 0, 0)
        return ops.reshape(moved, (self.filters or 1, -1))
