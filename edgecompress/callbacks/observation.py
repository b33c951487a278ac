"""What a criterion observes of training: each step's gradients, as optimizer variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.hooks import Hook, UpdateHook
from edgecompress.callbacks.replicas import dense, summed
from edgecompress.callbacks.views import VIEWS, View
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.criteria.base import Criterion


@dataclass(frozen=True)
class Observed:
    """A kernel that a criterion scores.

    Attributes:
        name: Its name, for the statistics.
        layer: Its layer.
        variable: Its weights.
        shape: Its shape and axes.
    """

    name: str
    layer: Any
    variable: keras.Variable
    shape: KernelShape


@dataclass(frozen=True)
class _Kept:
    """A kernel with the statistics that are kept of it."""

    kernel: Observed
    statistics: Mapping[str, keras.Variable]

    def tensors(self) -> dict[str, Any]:
        return {name: ops.convert_to_tensor(value) for name, value in self.statistics.items()}


def views_of(criterion: Criterion, model: keras.Model) -> dict[str, View]:
    """Returns the views of a model that a criterion needs, by name."""
    return {name: VIEWS[name](model) for name in criterion.views}


def why_not(
    criterion: Criterion, layer: Any, shape: KernelShape, views: Mapping[str, View]
) -> str | None:
    """Returns why a criterion cannot score a layer's kernel; None if it can."""
    if not criterion.fits(shape):
        return "it has no separate filters"
    return next((reason for view in views.values() if (reason := view.missing(layer))), None)


class Observation:
    """The statistics of a criterion for the kernels of a fit, and its views of the model.

    Args:
        criterion: The criterion.
        kernels: The kernels.
        hook: An attached hook of the fit; it keeps the statistics out of saved files.
        attach: Attaches further hooks to the fit.
        views: As `views_of` returns them. Defaults to none.
    """

    def __init__(
        self,
        criterion: Criterion,
        kernels: Sequence[Observed],
        hook: UpdateHook,
        attach: Callable[[Hook], Any],
        views: Mapping[str, View] | None = None,
    ) -> None:
        """Adds the variables, if the criterion needs any."""
        self._criterion = criterion
        self._views = dict(views or {})
        # A variable can be several kernels, whose filters lie along different axes.
        self._kernels: dict[int, dict[KernelShape, _Kept]] = {}
        for kernel in kernels:
            start = criterion.start(kernel.name, kernel.shape)
            kept = {
                statistic: hook.add_variable(
                    criterion.statistic_shape(kernel.shape), "float32", f"{kernel.name}_{statistic}"
                )
                for statistic in criterion.statistics
            }
            for statistic, variable in kept.items():
                variable.assign(start[statistic])
            self._kernels.setdefault(id(kernel.variable), {})[kernel.shape] = _Kept(kernel, kept)
        self._steps = None
        if criterion.waits:
            self._steps = hook.add_variable((), "float32", "observed_steps")
            self._steps.assign(0.0)
        layers = [(kernel.layer, kernel.shape) for kernel in kernels]
        for view in self._views.values():
            for further in view.begin(layers, hook):
                attach(further)

    @property
    def needed(self) -> bool:
        """Whether the criterion observes training at all."""
        return self._steps is not None

    @property
    def ready(self) -> Any:
        """Whether the criterion can rank weights yet: True, or a tensor if it observes training."""
        return True if self._steps is None else ops.convert_to_tensor(self._steps) > 0

    def statistics(self, kernel: keras.Variable, shape: KernelShape) -> Mapping[str, Any]:
        """Returns the statistics and views of a kernel, whose filters lie as given, as tensors."""
        found = self._kernels[id(kernel)][shape]
        views = {name: view.tensor(found.kernel.layer) for name, view in self._views.items()}
        return found.tensors() | views

    def scores(self, kernel: keras.Variable, shape: KernelShape) -> Any:
        """Returns the scores of a kernel's weights."""
        statistics = self.statistics(kernel, shape)
        return self._criterion.score_kernel(ops.convert_to_tensor(kernel), statistics, shape)

    def observe(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Shows the criterion the gradients of a step; part of the compiled step.

        Returns:
            The same gradients, which is what `UpdateHook.before` wants.
        """
        if self._steps is None:
            return gradients
        step = ops.convert_to_tensor(self._steps)
        for gradient, variable in zip(gradients, variables, strict=True):
            kernels = self._kernels.get(id(variable), {})
            if not kernels or gradient is None:
                continue
            # Every replica has to see the whole batch: each keeps its own statistics.
            whole = summed(dense(gradient))
            weights = ops.convert_to_tensor(variable)
            for kept in kernels.values():
                found = self._criterion.observe_kernel(
                    weights, whole, kept.tensors(), step, kept.kernel.shape
                )
                for name, value in found.items():
                    kept.statistics[name].assign(value)
        self._steps.assign(step + 1)
        return gradients
