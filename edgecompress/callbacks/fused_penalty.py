"""The group lasso penalty of all layers in two passes over their weights: norms, then gradients.

Left to automatic differentiation, each weight is read and written six times in a step. Here the
loss gets the penalty's value, and its gradient is added to the others as the optimizer applies
them, before it clips or accumulates anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
from keras import ops

from edgecompress.callbacks.fused import fused
from edgecompress.callbacks.hooks import Hook, UpdateHook, Wrapping
from edgecompress.callbacks.replicas import dense
from edgecompress.surgery.groups import (
    Axes,
    group_lasso_gradient,
    group_lasso_penalty,
    group_lasso_step,
    group_squares,
)

# A number, or what gives it for a step of the optimizer.
Strength: TypeAlias = "float | keras.optimizers.schedules.LearningRateSchedule"


def strength_at(strength: Strength, steps: Any) -> Any:
    """Returns the weight of the penalty after a number of the optimizer's updates, in float32."""
    return ops.cast(strength(steps), "float32") if callable(strength) else strength


@dataclass(frozen=True, eq=False)
class PenalizedGroups:
    """Groups of weights.

    Attributes:
        kernel: A layer's kernel.
        axes: The axis, or axes, that count the groups.
        gamma: Scale of the following BatchNormalization, which belongs to the groups, or None.
        size: Number of weights in each group.
        gates: How often the axis counts the groups, as `FilterAxis.gates`.
        more: Further weights of the groups with their axes, and as many gates.
    """

    kernel: keras.Variable
    axes: Axes
    gamma: keras.Variable | None
    size: int
    gates: int = 1
    more: tuple[tuple[keras.Variable, Axes], ...] = ()

    def squares(self, kernel: Any = None) -> Any:
        """Returns the squared norms.

        Args:
            kernel: The kernel's value inside a train step. Defaults to that of the variable.
        """
        kernel = self.kernel if kernel is None else kernel
        squares = group_squares(kernel, self.axes, self.gamma)
        for weights, axes in self.more:
            squares = squares + group_squares(weights, axes)
        if self.gates == 1:
            return squares
        return ops.sum(ops.reshape(squares, (self.gates, -1)), axis=0)

    def spread(self, squares: Any) -> Any:
        """Returns the squared norm of its whole group for each index of the axes."""
        return squares if self.gates == 1 else ops.tile(squares, self.gates)

    def penalty(self, strength: Any, kernel: Any = None) -> Any:
        """Returns the penalty as a tensor.

        Args:
            strength: Weight of the penalty.
            kernel: The kernel's value inside a train step. Defaults to that of the variable.
        """
        return group_lasso_penalty(self.squares(kernel), self.size, strength)

    def gradients(self, strength: Any) -> dict[int, Any]:
        """Returns the penalty's gradients inside a train step, by the variable's identity."""
        squares = self.spread(self.squares())
        return {
            id(variable): group_lasso_gradient(variable, squares, axes, self.size, strength)
            for variable, axes in self.parts()
        }

    def shrink(self, amount: Any) -> None:
        """Takes the proximal step for a learning rate times the strength; see `surgery.groups`."""
        squares = self.spread(self.squares())
        for variable, axes in self.parts():
            smaller = group_lasso_step(variable, squares, axes, self.size, amount)
            variable.assign(ops.cast(smaller, variable.dtype))

    def parts(self) -> list[tuple[keras.Variable, Axes]]:
        """Returns the variables, with their axes that count the groups."""
        gamma: list[tuple[keras.Variable, Axes]] = []
        if self.gamma is not None:
            gamma.append((self.gamma, 0 if self.axes != () else ()))
        return [(self.kernel, self.axes), *self.more, *gamma]


class FusedPenalty:
    """Adds the penalty to a model's training through `hooks`; on one device only.

    Args:
        model: The model being trained, with Keras's own train step.
        groups: What is penalized.
        strength: Weight of the penalty, or a schedule of it over the optimizer's updates.
    """

    def __init__(
        self, model: keras.Model, groups: Sequence[PenalizedGroups], strength: Strength
    ) -> None:
        """Prepares both passes."""
        self._groups, self._strength, self._model = list(groups), strength, model
        parts = [part for group in self._groups for part in group.parts()]
        # A variable can hold groups along several axes.
        self._variables = list({id(variable): variable for variable, _ in parts}.values())
        self._positions = {id(variable): i for i, variable in enumerate(self._variables)}
        self._measure = fused(self._penalty, model, self._variables)
        self._sum = fused(self._summed, model, self._variables)
        self._squares: list[Any] | None = None
        self._update = UpdateHook(before=self._with_gradients)

    def hooks(self) -> list[Hook]:
        """Returns what adds the value to the loss, and the gradient to the others."""
        return [Wrapping(self._variables[0], "regularizer", self._in_loss), self._update]

    def _penalty(self, strength: Any) -> tuple[Any, list[Any]]:
        """Returns the penalty, and the squared norms of the groups."""
        squares = [group.squares() for group in self._groups]
        return sum(
            group_lasso_penalty(found, group.size, strength)
            for group, found in zip(self._groups, squares, strict=True)
        ), squares

    def _now(self) -> Any:
        return strength_at(self._strength, self._model.optimizer.iterations)

    def _in_loss(self, inner: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        def regularizer(value: Any) -> Any:
            penalty, squares = self._measure(self._now())
            self._squares = [ops.stop_gradient(found) for found in squares]
            penalty = ops.stop_gradient(penalty)
            return penalty if inner is None else penalty + inner(value)

        return regularizer

    def _with_gradients(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        """Adds the penalty's gradients; part of the compiled step."""
        # The norms of this step were found for its loss.
        squares, self._squares = self._squares, None
        if squares is None:
            squares = self._measure(self._now())[1]
        known: list[Any] = [ops.zeros_like(variable) for variable in self._variables]
        places = {}
        for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            index = self._positions.get(id(variable))
            if index is not None:
                places[index] = place
                if gradient is not None:
                    known[index] = dense(gradient)
        summed, gradients = self._sum(known, squares, self._now()), list(gradients)
        for index, place in places.items():
            gradients[place] = summed[index]
        return gradients

    def _summed(self, gradients: list[Any], squares: list[Any], strength: Any) -> list[Any]:
        optimizer = self._update.optimizer
        # Without a wrapper that undoes it, gradients are still scaled here.
        factor = optimizer.loss_scale_factor if optimizer is self._model.optimizer else None
        strength = strength * (factor or 1.0)
        summed = list(gradients)
        for group, found in zip(self._groups, squares, strict=True):
            spread = group.spread(found)
            for variable, axes in group.parts():
                slope = group_lasso_gradient(variable, spread, axes, group.size, strength)
                index = self._positions[id(variable)]
                summed[index] += ops.cast(slope, summed[index].dtype)
        return summed
