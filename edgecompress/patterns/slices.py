"""Slices: weights at the same place along some axes of a kernel go together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import Choice, option
from edgecompress.patterns.base import Pattern


def _l2(scores: Any, axes: tuple[int, ...]) -> Any:
    from keras import ops

    return ops.sqrt(ops.sum(ops.square(scores), axis=axes))


def _l1(scores: Any, axes: tuple[int, ...]) -> Any:
    from keras import ops

    return ops.sum(scores, axis=axes)


def _largest(scores: Any, axes: tuple[int, ...]) -> Any:
    from keras import ops

    return ops.max(scores, axis=axes)


NORMS: Mapping[str, Callable[[Any, tuple[int, ...]], Any]] = {
    "l2": _l2,
    "l1": _l1,
    "max": _largest,
}


@dataclass(frozen=True)
class Slices(Pattern):
    """Units that share their place along `axes`, ranked by a norm of their weights' scores.

    Args:
        norm: `l2`; `l1` (Li et al., "Pruning filters for efficient convnets", 2016,
            https://arxiv.org/abs/1608.08710); or `max`.
    """

    norm: str = option("l2", "How the scores of a unit's weights become one.", Choice(names=NORMS))

    @abstractmethod
    def axes(self, kernel: KernelShape) -> tuple[int, ...] | None:
        """Returns the axes that tell units apart, not negative; None if the kernel lacks them."""

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether the kernel has several units."""
        axes = self.axes(kernel)
        return axes is not None and any(kernel.shape[axis] > 1 for axis in axes)

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the norm of each unit's scores, of the shape of the axes."""
        kept = self.axes(kernel) or ()
        return NORMS[self.norm](scores, tuple(i for i in range(len(kernel.shape)) if i not in kept))

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights from that of the units."""
        from keras import ops

        axes = self.axes(kernel) or ()
        shape = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
        return ops.broadcast_to(ops.reshape(kept, shape), kernel.shape)
