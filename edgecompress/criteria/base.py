"""Base class of criteria, which turn weights and training statistics into scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import Number, option
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
    One that compares whole filters is a `FilterCriterion`.

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

    @property
    def views(self) -> tuple[str, ...]:
        """What it looks at in the model around a kernel: names in `callbacks.views.VIEWS`.

        Each is a tensor of one number for each filter, among the statistics under its name.
        """
        return ()

    @property
    def loss_power(self) -> float | None:
        """Power of a group's score that estimates by how much the loss rises without the group.

        Such estimates can be compared and added over layers. None if scores are not about the loss.
        """
        return None

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether the weights of a kernel can be scored."""
        return True

    @property
    def looks(self) -> bool:
        """Whether it needs more than the weights: to observe training, or views of the model."""
        return bool(self.statistics or self.views)

    @property
    def waits(self) -> bool:
        """Whether it can rank weights only after a step of training."""
        return bool(self.statistics)

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

    def start(self, name: str, kernel: KernelShape) -> Mapping[str, Any]:
        """Returns the statistics before training: zeros.

        Args:
            name: Name of the kernel.
            kernel: Its shape.
        """
        import numpy as np

        shape = self.statistic_shape(kernel)
        return {statistic: np.zeros(shape, np.float32) for statistic in self.statistics}

    # --- What callbacks call: the methods above, with the kernel's axes -------------------------

    def statistic_shape(self, kernel: KernelShape) -> tuple[int, ...]:
        """Returns the shape of the statistics of a kernel: its own."""
        return kernel.shape

    def score_kernel(self, weights: Any, statistics: Mapping[str, Any], kernel: KernelShape) -> Any:
        """Returns the score of each weight of a kernel, float32, of its shape."""
        return self.score(weights, statistics)

    def observe_kernel(
        self,
        weights: Any,
        gradient: Any,
        statistics: Mapping[str, Any],
        step: Any,
        kernel: KernelShape,
    ) -> Mapping[str, Any]:
        """Returns the statistics of a kernel after one more step of training."""
        return self.observe(weights, gradient, statistics, step)

    def group_scores(
        self, weights: Any, axis: int, statistics: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Returns one score for each group of weights: the L2 norm of the weights' scores.

        Args:
            weights: The kernel, any shape.
            axis: The axis that counts the groups.
            statistics: Name -> tensor, views among them. Defaults to those before training.

        Returns:
            Scores, (groups,), in float64.
        """
        import numpy as np
        from keras import ops

        kernel = KernelShape(tuple(np.shape(weights)), axis)
        if statistics is None:
            statistics = self.start("", kernel)
        scores = ops.convert_to_numpy(
            self.score_kernel(ops.convert_to_tensor(weights), statistics, kernel)
        )
        return np.sqrt(np.square(scores.astype(np.float64)).sum(axis=kernel.others(axis)))


class FilterCriterion(Criterion):
    """Scores whole filters: all weights of an output channel or unit.

    Its `statistics` hold one number for each filter. Patterns that prune smaller units than filters
    compare a filter's weights by magnitude, scaled so that the L2 norm of the filter's scores is
    the filter's score: w of filter c scores S_c * |w| / ||w_c||_2.

    Example:
        >>> import dataclasses
        >>> from keras import ops
        >>> @dataclasses.dataclass(frozen=True)
        ... class Largest(FilterCriterion):
        ...     def score_filters(self, filters, statistics): return ops.max(ops.abs(filters), 1)
        >>> scores = Largest().group_scores(ops.array([[3.0, 0.0], [4.0, 2.0]]), axis=1)
        >>> [round(float(score), 3) for score in scores]
        [4.0, 2.0]
    """

    def fits(self, kernel: KernelShape) -> bool:
        """Returns whether a kernel has filters."""
        return kernel.filter_axis is not None

    @abstractmethod
    def score_filters(self, filters: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns a score, 0 or more, for each filter: float32, (filters,).

        Args:
            filters: The kernel as a matrix, (filters, weights of each), float32.
            statistics: Name -> tensor, (filters,).
        """

    def observe_filters(
        self, filters: Any, gradient: Any, statistics: Mapping[str, Any], step: Any
    ) -> Mapping[str, Any]:
        """Returns the statistics after one more step of training.

        Args:
            filters: The kernel before the optimizer's update, (filters, weights of each), float32.
            gradient: Gradient of the loss with respect to it, of the same shape.
            statistics: Name -> tensor, (filters,), as of the step before.
            step: How many steps have been observed before this one; a float32 tensor.
        """
        return statistics

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the score of each weight of a kernel whose last axis counts the filters."""
        return self.score_kernel(weights, statistics, KernelShape(tuple(weights.shape)))

    def statistic_shape(self, kernel: KernelShape) -> tuple[int, ...]:
        """Returns (filters,)."""
        return (kernel.filters or 1,)

    def score_kernel(self, weights: Any, statistics: Mapping[str, Any], kernel: KernelShape) -> Any:
        """Returns the filters' scores, divided among their weights."""
        from keras import ops

        filters = kernel.by_filter(ops.cast(weights, "float32"))
        scores = self.score_filters(filters, statistics)
        norms = ops.sqrt(ops.sum(ops.square(filters), axis=1))
        # A filter of zeros has nothing to lose, whatever its score.
        factors = ops.where(norms > 0, scores / ops.where(norms > 0, norms, 1.0), 0.0)
        axis = kernel.filter_axis or 0
        return ops.abs(ops.cast(weights, "float32")) * kernel.along(factors, axis)

    def observe_kernel(
        self,
        weights: Any,
        gradient: Any,
        statistics: Mapping[str, Any],
        step: Any,
        kernel: KernelShape,
    ) -> Mapping[str, Any]:
        """Returns the statistics after one more step; see `observe_filters`."""
        from keras import ops

        filters, slopes = (kernel.by_filter(ops.cast(x, "float32")) for x in (weights, gradient))
        return self.observe_filters(filters, slopes, statistics, step)


def momentum_option(default: float) -> Any:
    """Returns the field of a criterion with the `momentum` of `moving_average`."""
    return option(
        default,
        "Weight of the past in the moving average, 0 to 1.",
        Number("SHARE", "be a number from 0 to 1", 0.0, 1.0),
    )


def moving_average(past: Any, value: Any, momentum: float, step: Any) -> Any:
    """Returns momentum * past + (1 - momentum) * value; the first step's value at the start.

    Example:
        >>> float(moving_average(1.0, 3.0, 0.75, 1.0)), float(moving_average(1.0, 3.0, 0.75, 0.0))
        (1.5, 3.0)
    """
    from keras import ops

    share = ops.where(step > 0, momentum, 0.0)
    return share * past + (1 - share) * value
