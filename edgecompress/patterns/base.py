"""Base class of patterns, which turn weight scores into masks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.registry import Registry

PATTERNS: Registry[type[Pattern]] = Registry("pattern")
# Number of units from which on compiling the search for the threshold is worthwhile.
_LARGE = 2**14


class Pattern(ABC):
    """Decides which weights are pruned as a unit, and which units stay.

    A pattern is a frozen dataclass; its fields are its options (`core.options.option`). All methods
    are pure functions over `keras.ops` and run inside the compiled train step. If units compete by
    score, a pattern defines `units` and `expand`; one with its own selection rule (n of each group)
    defines `masks`.

    Example:
        >>> from keras import ops
        >>> from edgecompress.core.kernel_shape import KernelShape
        >>> from edgecompress.patterns.blocks import Blocks
        >>> scores = ops.array([[1.0], [2.0], [3.0], [0.5]])
        >>> Blocks(2, 1).masks([scores], 0.5, [KernelShape((4, 1))])[0][:, 0]
        <tf.Tensor: shape=(4,), dtype=bool, numpy=array([False, False,  True,  True])>
    """

    compares_layers: ClassVar[bool] = False

    @property
    def highest_sparsity(self) -> float:
        """The largest share of weights that the pattern can prune."""
        return 1.0

    @property
    def title(self) -> str:
        """The units' name in a note, e.g. `blocks of 4 x 1`."""
        return type(self).__name__.lower()

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether a kernel can be pruned in this pattern."""
        return True

    def spared(self, model: Any, kernels: Mapping[str, float]) -> Mapping[str, str]:
        """Returns which kernels have to stay whatever their scores, with the reason.

        Args:
            model: The model.
            kernels: Layer -> number of weights of its kernel; infinity for a layer that another
                callback may prune as a whole.
        """
        return {}

    @abstractmethod
    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns one score per unit, from those of its weights.

        Args:
            scores: Scores of the weights, float32, of the kernel's shape.
            kernel: The kernel.
        """

    @abstractmethod
    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns a mask of the kernel's shape (True stays) from a mask over units."""

    def masks(
        self, scores: Sequence[Any], sparsity: Any, kernels: Sequence[KernelShape]
    ) -> list[Any]:
        """Returns which weights stay when the weakest units across all kernels are pruned.

        Args:
            scores: Scores of the weights of each kernel, float32, 0 or more.
            sparsity: Share of units to prune, a float32 tensor or float.
            kernels: The kernels.

        Returns:
            A bool tensor of the kernel's shape for each kernel.
        """
        units = [self.units(s, kernel) for s, kernel in zip(scores, kernels, strict=True)]
        kept = keep_largest(units, sparsity)
        return [self.expand(mask, kernel) for mask, kernel in zip(kept, kernels, strict=True)]


def kept_units(size: int, sparsity: Any) -> Any:
    """Returns how many of `size` units stay: max(round(size * (1 - sparsity)), 1), as float32.

    Rounding is to even, in float32, as in tensorflow-model-optimization.
    """
    from keras import ops

    return ops.maximum(ops.round(ops.cast(float(size), "float32") * (1 - sparsity)), 1.0)


def keep_largest(scores: Sequence[Any], sparsity: Any) -> list[Any]:
    """Returns which units stay when those with the smallest scores across all tensors are pruned.

    A unit stays if its score is at least the k-th largest, k = `kept_units`; ties all stay. The
    largest of each tensor always stays, so that no layer dies when a threshold is shared.

    Args:
        scores: Tensors of any shapes, numbers of 0 or more.
        sparsity: Share of units to drop, a float32 tensor or float.

    Returns:
        A bool tensor for each tensor.

    Example:
        >>> from keras import ops
        >>> keep_largest([ops.array([0.1, 0.4, 0.3, 0.2])], 0.5)[0]
        <tf.Tensor: shape=(4,), dtype=bool, numpy=array([False,  True,  True, False])>
    """
    import keras
    from keras import ops

    bits = [ops.view(ops.cast(score, "float32"), "int32") for score in scores]
    size = sum(math.prod(score.shape) for score in scores)
    kept = ops.cast(kept_units(size, sparsity), "int32")
    find = _kth_largest
    if keras.backend.backend() == "tensorflow" and size >= _LARGE:
        import tensorflow as tf

        # Counting in one pass over memory takes a fraction of the time.
        find = tf.function(find, jit_compile=True, autograph=False)
    threshold = find(bits, kept)
    return [found >= ops.minimum(threshold, ops.max(found)) for found in bits]


def _kth_largest(bits: Sequence[Any], kept: Any) -> Any:
    """Returns the k-th largest of non-negative floats, all read as integers."""
    from keras import ops

    # Such floats order like their bit patterns, so the exact k-th largest is found bit by bit with
    # 31 counts: several times faster than a sort, and XLA-friendly.
    def try_bit(index: Any, threshold: Any) -> Any:
        candidate = ops.bitwise_or(threshold, ops.left_shift(1, 30 - index))
        count = sum(ops.sum(ops.cast(found >= candidate, "int32")) for found in bits)
        return ops.where(count >= kept, candidate, threshold)

    return ops.fori_loop(0, 31, try_bit, ops.convert_to_tensor(0, "int32"))
