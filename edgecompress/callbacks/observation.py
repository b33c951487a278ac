"""What a criterion observes of training: each step's gradients, as optimizer variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.criteria.base import Criterion


class Observation:
    """The statistics of a criterion for the kernels of a fit, initially zero.

    Args:
        criterion: The criterion.
        kernels: Name -> kernel.
        hook: An attached hook of the fit; it keeps the statistics out of saved files.
    """

    def __init__(
        self, criterion: Criterion, kernels: Sequence[tuple[str, keras.Variable]], hook: UpdateHook
    ) -> None:
        """Adds the variables, if the criterion needs any."""
        self._criterion = criterion
        self._kernels = {id(kernel): kernel for _, kernel in kernels}
        self._kept: dict[int, dict[str, keras.Variable]] = {
            id(kernel): {
                statistic: hook.add_variable(kernel.shape, "float32", f"{name}_{statistic}")
                for statistic in criterion.statistics
            }
            for name, kernel in kernels
        }
        self._steps = None
        if criterion.statistics:
            self._steps = hook.add_variable((), "float32", "observed_steps")
            self._steps.assign(0.0)
        for statistics in self._kept.values():
            for variable in statistics.values():
                variable.assign(ops.zeros(variable.shape))

    @property
    def needed(self) -> bool:
        """Whether the criterion observes training at all."""
        return self._steps is not None

    @property
    def ready(self) -> Any:
        """Whether the criterion can rank weights yet: True, or a tensor if it observes training."""
        return True if self._steps is None else ops.convert_to_tensor(self._steps) > 0

    def statistics(self, kernel: keras.Variable) -> Mapping[str, Any]:
        """Returns the statistics of a kernel as tensors."""
        return {name: ops.convert_to_tensor(v) for name, v in self._kept[id(kernel)].items()}

    def scores(self, kernel: keras.Variable) -> Any:
        """Returns the scores of a kernel's weights."""
        return self._criterion.score(ops.convert_to_tensor(kernel), self.statistics(kernel))

    def observe(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Shows the criterion the gradients of a step; part of the compiled step.

        Returns:
            The same gradients, which is what `UpdateHook.before` wants.
        """
        if self._steps is None:
            return gradients
        step = ops.convert_to_tensor(self._steps)
        for gradient, variable in zip(gradients, variables, strict=True):
            kernel = self._kernels.get(id(variable))
            if kernel is None or gradient is None:
                continue
            found = self._criterion.observe(
                ops.convert_to_tensor(kernel), gradient, self.statistics(kernel), step
            )
            for name, value in found.items():
                self._kept[id(kernel)][name].assign(value)
        self._steps.assign(step + 1)
        return gradients
