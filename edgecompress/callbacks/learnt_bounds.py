"""Training what is no weight: ends of ranges (LSQ, PACT), parameters of posteriors and priors.

They are no weights of the model. The backward pass of the rounding finds their gradients; once
the optimizer has updated the weights, an optimizer of the same kind updates them, in the same
compiled step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks.backends import check_backend
from edgecompress.callbacks.hooks import UpdateHook
from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import optimizers_of

# Narrower ranges would end training: nothing inside, no gradient.
_NARROWEST = 1e-6
# Settings of the model's optimizer that are about its weights alone.
_PLAIN = {
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "loss_scale_factor": None,
}


class LearntBounds:
    """Variables with gradients from outside the model.

    Args:
        model: The model being trained.
        what: What they are, for errors. Defaults to ranges.
        argument: The argument that asked for them, its rule and what else to do, for errors.
        rate: Their learning rate divided by that of the weights. Defaults to 1.
    """

    def __init__(
        self,
        model: keras.Model,
        what: str = "ranges that are learnt by gradients (lsq, pact)",
        argument: tuple[str, str, str] = (
            "settings",
            "have ranges that are not learnt by gradients (lsq, pact) on several devices",
            'Use "mse", or one device.',
        ),
        rate: float = 1.0,
    ) -> None:
        """Begins without any."""
        self._model, self._what, self._argument, self._rate = model, what, argument, rate
        self._variables: dict[str, tuple[keras.Variable, Callable[[Any], Any]]] = {}
        self._gradients: dict[str, Any] = {}
        self._optimizer: Any = None

    def add(self, name: str, variable: keras.Variable, allowed: Callable[[Any], Any]) -> None:
        """Adds a variable.

        Args:
            name: What `found` calls it.
            variable: It.
            allowed: Returns its nearest allowed value after an update.
        """
        self._variables[name] = variable, allowed

    def found(self, name: str, gradient: Any) -> None:
        """Takes a variable's gradient; part of the compiled step."""
        known = self._gradients.get(name)
        self._gradients[name] = gradient if known is None else known + gradient

    def hook(self) -> UpdateHook | None:
        """Returns the hook that updates the variables; None if there are none.

        Raises:
            ArgumentError: several devices train copies of the model, or Keras runs on JAX.
        """
        if not self._variables:
            return None
        # On JAX, a pass through the model cannot leave gradients behind for the update.
        check_backend(self._what, ["tensorflow"])
        strategy = getattr(self._model, "distribute_strategy", None)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            name, rule, hint = self._argument
            raise ArgumentError(name, rule, f"{strategy.num_replicas_in_sync} devices", hint)
        return UpdateHook(self._update)

    def prepare(self) -> None:
        """Makes the optimizer, outside of the compiled step."""
        if not self._variables:
            return
        original = optimizers_of(self._model)[-1]
        config = {**original.get_config(), "learning_rate": 0.0}
        config |= {name: value for name, value in _PLAIN.items() if name in config}
        if config.get("weight_decay") is not None:
            # AdamW takes no None.
            config["weight_decay"] = 0.0
        config["name"] = "learnt_bounds"
        self._optimizer = type(original).from_config(config)
        self._optimizer.build([variable for variable, _ in self._variables.values()])

    def _update(self) -> None:
        """Updates the variables; part of the compiled step."""
        gradients, self._gradients = self._gradients, {}
        scale = getattr(self._model.optimizer, "dynamic_scale", None)
        factor = getattr(optimizers_of(self._model)[-1], "loss_scale_factor", None) or 1.0
        if scale is not None:
            factor = ops.convert_to_tensor(scale) * factor
        ordered = [
            ops.zeros_like(variable) if name not in gradients else gradients[name] / factor
            for name, (variable, _) in self._variables.items()
        ]
        rate = ops.convert_to_tensor(optimizers_of(self._model)[-1].learning_rate)
        self._optimizer.learning_rate = rate if self._rate == 1 else self._rate * rate
        variables = [variable for variable, _ in self._variables.values()]
        self._optimizer.apply(ordered, variables)
        for variable, allowed in self._variables.values():
            variable.assign(allowed(variable.value))


def limits_allowed(values: Any) -> Any:
    """Returns limits of weights that are positive."""
    return ops.maximum(values, _NARROWEST)


def ranges_allowed(learnt: Sequence[bool]) -> Callable[[Any], Any]:
    """Returns what keeps zero inside ranges; rows that are not learnt or unseen stay."""
    rows = [[row] for row in learnt]

    def allowed(values: Any) -> Any:
        low, high = ops.split(values, 2, axis=-1)
        kept = ops.logical_or(low > high, ops.logical_not(ops.convert_to_tensor(rows)))
        low_end = ops.minimum(low, 0.0)
        bounded = ops.concatenate([low_end, ops.maximum(high, low_end + _NARROWEST)], axis=-1)
        return ops.where(kept, values, bounded)

    return allowed
