"""Training shared values themselves: the optimizer moves one number for each value.

Members of a cluster that have equal optimizer states move alike. So their common value is updated
instead, by an optimizer of the same kind and with the state of its members, and each member takes
the result: the optimizer passes over a few numbers instead of all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from edgecompress.callbacks.fused import fused, on_one_device
from edgecompress.callbacks.hooks import UpdateHook

# Optimizers whose update of a weight depends on that weight and its own state alone.
_ELEMENTWISE = ("SGD", "Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Lion")
# Settings under which it does not, or which keep more than a state for each weight.
_ACROSS_WEIGHTS = (
    "clipnorm",
    "global_clipnorm",
    "weight_decay",
    "use_ema",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class SharedKernel:
    """A kernel whose weights share values.

    Attributes:
        kernel: It.
        labels: For each weight the index of its value, flat, int32; 0 for a zero that stays.
        values: The values, float32; the first is 0.
        zeros_stay: Whether weights that become zero leave their cluster.
    """

    kernel: keras.Variable
    labels: keras.Variable
    values: keras.Variable
    zeros_stay: bool

    @property
    def count(self) -> int:
        """The number of values."""
        return int(self.values.shape[0])

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Returns the mean of each value's members, float32; the first is 0."""
        labels = ops.convert_to_numpy(self.labels)
        members = np.bincount(labels, minlength=self.count)
        sums = np.bincount(labels, weights.ravel().astype("f8"), minlength=self.count)
        sums[0] = 0.0
        return (sums / np.maximum(members, 1)).astype("f4")


def may_train_values(
    model: keras.Model, hook: UpdateHook, others: Sequence[UpdateHook], own: Sequence[SharedKernel]
) -> bool:
    """Returns whether training the values is the same as training the weights.

    Args:
        model: The model being trained.
        hook: The hook that shares the values.
        others: All other hooks on updates.
        own: The kernels.
    """
    optimizer, kernels = hook.optimizer, {id(shared.kernel) for shared in own}
    config = optimizer.get_config()
    return (
        on_one_device(model)
        and type(optimizer) in [getattr(keras.optimizers, name) for name in _ELEMENTWISE]
        and not any(config.get(name) for name in _ACROSS_WEIGHTS)
        and all(shared.kernel.constraint is None for shared in own)
        and all(other.before is None for other in others)
        and not any(id(v) in kernels for other in others for v in other.assigns)
        # An optimizer without weights would not count its updates.
        and any(id(variable) not in kernels for variable in model.trainable_variables)
        and all(_has_all_states(optimizer, shared.kernel) for shared in own)
    )


class SharedValues:
    """Trains the values of kernels.

    Args:
        model: The model being trained.
        hook: The hook whose `before` calls `update`.
        kernels: The kernels, whose weights hold their values.
    """

    def __init__(self, model: keras.Model, hook: UpdateHook, kernels: Sequence[SharedKernel]):
        """Takes the values over, and the optimizer's states: the mean of the members'."""
        self._hook, self._kernels = hook, list(kernels)
        ends = np.cumsum([shared.count for shared in kernels]).tolist()
        self._slices = list(zip([0, *ends[:-1]], ends, strict=True))
        size = ends[-1]
        self._values = keras.Variable(np.zeros(size, "f4"), autocast=False, name="shared_values")
        moved = np.ones(size, "f4")
        moved[[start for start, _ in self._slices]] = 0.0
        self._moved = moved
        optimizer = hook.optimizer
        self._optimizer = _like(optimizer, self._values)
        variables = [shared.kernel for shared in kernels]
        self._sum = fused(self._sums, model, variables)
        self._spread = fused(self._take, model, variables)
        found = [
            [shared.means(ops.convert_to_numpy(s)) for s in _states(optimizer, shared.kernel)]
            for shared in kernels
        ]
        for position, state in enumerate(_states(self._optimizer, self._values)):
            state.assign(np.concatenate([means[position] for means in found]))
        self.read()

    def read(self) -> None:
        """Takes over what the kernels hold, if something else has changed them."""
        values = ops.convert_to_numpy(self._values).copy()
        for shared, (start, end) in zip(self._kernels, self._slices, strict=True):
            weights = ops.convert_to_numpy(ops.cast(shared.kernel, "float32"))
            labels = ops.convert_to_numpy(shared.labels)
            if np.array_equal(values[start:end][labels], weights.ravel()):
                continue
            if shared.zeros_stay:
                shared.labels.assign(np.where(weights.ravel() == 0, 0, labels))
            values[start:end] = shared.means(weights)
        self._values.assign(values)
        self._spread()

    def write(self) -> None:
        """Gives the values, and each member its value's state in the model's optimizer."""
        values = ops.convert_to_numpy(self._values)
        states = [ops.convert_to_numpy(s) for s in _states(self._optimizer, self._values)]
        for shared, (start, end) in zip(self._kernels, self._slices, strict=True):
            shared.values.assign(values[start:end])
            labels = ops.convert_to_numpy(shared.labels).reshape(shared.kernel.shape)
            of_kernel = _states(self._hook.optimizer, shared.kernel)
            for state, found in zip(of_kernel, states, strict=True):
                state.assign(found[start:end][labels])

    def update(self, gradients: Sequence[Any]) -> None:
        """Updates the values and with them the kernels; part of the compiled step.

        Args:
            gradients: Of each kernel's weights.
        """
        optimizer, own = self._hook.optimizer, self._optimizer
        own.iterations.assign(ops.convert_to_tensor(optimizer.iterations))
        own.learning_rate = ops.convert_to_tensor(optimizer.learning_rate)
        own.apply([self._sum(list(gradients))], [self._values])
        self._spread()

    def _sums(self, gradients: list[Any]) -> Any:
        """Returns `dL/dC_k`, the sum of the members' gradients, for all values."""
        sums = [
            ops.segment_sum(
                ops.reshape(ops.cast(gradient, "float32"), (-1,)),
                ops.convert_to_tensor(shared.labels),
                shared.count,
            )
            for gradient, shared in zip(gradients, self._kernels, strict=True)
        ]
        return ops.where(self._moved > 0, ops.concatenate(sums), 0.0)

    def _take(self) -> None:
        values = ops.convert_to_tensor(self._values)
        for shared, (start, end) in zip(self._kernels, self._slices, strict=True):
            labels = ops.reshape(ops.convert_to_tensor(shared.labels), shared.kernel.shape)
            taken = ops.take(values[start:end], labels)
            shared.kernel.assign(ops.cast(taken, shared.kernel.dtype))


def _like(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> Any:
    """Returns an optimizer of the same kind for one variable."""
    config = {**optimizer.get_config(), "learning_rate": 0.0, "name": "shared_values"}
    made = type(optimizer).from_config(config)
    made.build([variable])
    return made


def _has_all_states(optimizer: keras.optimizers.Optimizer, kernel: keras.Variable) -> bool:
    value = keras.Variable(np.zeros(1, "f4"), name="value")
    return len(_states(_like(optimizer, value), value)) == len(_states(optimizer, kernel))


def _states(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> list[Any]:
    """Returns what an optimizer keeps for a variable, as often as its class keeps something."""
    prefix = variable.path.replace("/", "_") + "_"
    return [
        state
        for state in optimizer.variables
        if state.name.startswith(prefix) and tuple(state.shape) == tuple(variable.shape)
    ]
