"""Base class of criteria, which turn weights and training statistics into scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np

CRITERIA: Registry[type[Criterion]] = Registry("criterion")


class Criterion(ABC):
    """Scores weights: those with the smallest scores are pruned first.

    A criterion is a frozen dataclass; its fields are its options (`core.options.option`). All
    methods are pure functions over `keras.ops` and run inside the compiled train step. A criterion
    that only reads the weights defines `score`. One that observes training also lists its
    `statistics`, float32 tensors of the kernel's shape that start at zero, and defines `observe`.

    Example:
        >>> import dataclasses
        >>> from keras import ops
        >>> @dataclasses.dataclass(frozen=True)
        ... class Square(Criterion):
        ...     def score(self, weights, statistics): return ops.square(weights)
        >>> Square().score(ops.array([1.0, -3.0]), {})
        <tf.Tensor: shape=(2,), dtype=float32, numpy=array([1., 9.], dtype=float32)>
    """

    # Names of the tensors that the criterion keeps for each kernel.
    statistics: ClassVar[tuple[str, ...]] = ()
    # Whether scores grow with the weights, so that a following BatchNormalization, which cancels
    # their scale, must be folded in before filters are compared.
    grows_with_weights: ClassVar[bool] = False

    @abstractmethod
    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns a score, 0 or more, for each weight: float32, of the kernel's shape.

        Args:
            weights: The kernel, a float tensor of any shape.
            statistics: Name -> tensor of the kernel's shape.
        """

    def observe(
        self, weights: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the statistics after one more step of training.

        Args:
            weights: The kernel before the optimizer's update.
            gradient: Gradient of the loss with respect to it, of the same shape.
            statistics: Name -> tensor, as of the step before.
            step: How many steps have been observed before this one; a float32 tensor.
        """
        return statistics

    def group_scores(
        self, weights: Any, axis: int, statistics: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Returns one score for each group of weights: the L2 norm of the weights' scores.

        Args:
            weights: The kernel, any shape.
            axis: The axis that counts the groups.
            statistics: Name -> tensor of the kernel's shape. Defaults to zeros.

        Returns:
            Scores, (groups,), in float64.
        """
        import numpy as np
        from keras import ops

        if statistics is None:
            statistics = {name: ops.zeros(np.shape(weights)) for name in self.statistics}
        scores = ops.convert_to_numpy(self.score(ops.convert_to_tensor(weights), statistics))
        others = tuple(i for i in range(scores.ndim) if i != axis % scores.ndim)
        return np.sqrt(np.square(scores.astype(np.float64)).sum(axis=others))
