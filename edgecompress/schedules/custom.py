"""A schedule from a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.schedules.base import PYTHON_OPS, SCHEDULES, Schedule, check_steps

# Sparsity below 1: the largest float32 below it.
_MOST = 0.99999994
# Steps at which the function is tried when the schedule is made.
_TRIED = 32


@SCHEDULES.register("custom")
@dataclass(frozen=True)
class CustomSchedule(Schedule):
    """Follows any function of the step.

    The function is called with a float and, inside the compiled train step, with a float32 tensor:
    it uses operators and `keras.ops` only, no `if` on the step. For a record that can be read back,
    register it with `keras.saving.register_keras_serializable()`.

    Args:
        function: Called with the step; returns the share of zero weights, at least 0 and below 1.
        begin_step: First step at which masks are computed. Defaults to 1.
        end_step: Last such step; masks then stay. Defaults to -1, which never ends.
        frequency: Steps between two mask computations. Defaults to 100.

    Raises:
        ArgumentError: an argument breaks its rule; the function returns something else than a share
            at one of the steps tried.

    Example:
        >>> schedule = CustomSchedule(lambda step: 0.9 * step / (step + 500))
        >>> schedule(500), schedule(4500)
        (0.45, 0.81)
    """

    function: Callable[[Any], Any]
    begin_step: int = 1
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        """Refuses arguments that break their rule."""
        super().__post_init__()
        if not callable(self.function):
            raise ArgumentError("function", "be a function of the step", self.function)
        check_steps(self.begin_step, self.end_step, self.frequency, endless=True)
        last = self.begin_step + 1000 * self.frequency if self.end_step < 0 else self.end_step
        stride = max(1, (last - self.begin_step) // _TRIED)
        for step in (*range(self.begin_step, last, stride), last):
            try:
                found = float(self.function(float(step)))
            except (TypeError, ValueError, ArithmeticError) as error:
                text = f"be a function of a whole number; at step {step} it failed"
                raise ArgumentError("function", text, f"{type(error).__name__}: {error}") from error
            if not 0 <= found < 1:
                text = f"return a share of at least 0 and below 1; at step {step} it returned"
                raise ArgumentError("function", text, found)

    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns what the function says, kept between 0 and 1."""
        return ops.clip(ops.cast(self.function(ops.cast(step, "float32")), "float32"), 0.0, _MOST)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, the function by its name."""
        import keras

        return {
            "function": keras.saving.get_registered_name(self.function),
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CustomSchedule:
        """Returns the schedule that `get_config` described.

        Raises:
            UnknownNameError: no function is registered with Keras under the name.
        """
        import keras

        function = keras.saving.get_registered_object(config["function"])
        if function is None:
            known = keras.saving.get_custom_objects()
            raise UnknownNameError("function", config["function"], known)
        return cls(function, **{k: v for k, v in config.items() if k != "function"})
