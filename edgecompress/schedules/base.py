"""Base class of sparsity schedules: pure functions of the training step."""

from __future__ import annotations

import dataclasses
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from edgecompress.core.errors import ArgumentError
from edgecompress.core.registry import Registry

SCHEDULES: Registry[type[Schedule]] = Registry("schedule")

# Functions a formula needs besides operators, for plain Python numbers, named as in keras.ops.
PYTHON_OPS = SimpleNamespace(
    cast=lambda x, dtype: float(x),
    clip=lambda x, low, high: min(max(x, low), high),
)

S = TypeVar("S", bound="Schedule")


class Schedule(ABC):
    """Defines how sparse the weights should be at a training step, and when masks are recomputed.

    A schedule is a frozen dataclass with `begin_step`, `end_step` and `frequency`, as fields or
    properties. Its formula is written once, in `value`, and serves plain numbers as well as
    tensors inside a compiled train step. Steps count the optimizer's updates; the first is 1.

    Example:
        >>> @SCHEDULES.register("linear")
        ... @dataclasses.dataclass(frozen=True)
        ... class Linear(Schedule):
        ...     final_sparsity: float
        ...     begin_step: int
        ...     end_step: int
        ...     frequency: int = 100
        ...     def value(self, step, ops=PYTHON_OPS):
        ...         x = ops.cast(step - self.begin_step, "float32")
        ...         return self.final_sparsity * ops.clip(
        ...             x / (self.end_step - self.begin_step), 0.0, 1.0)
        >>> Linear(0.8, begin_step=0, end_step=100)(50)
        0.4
    """

    if TYPE_CHECKING:
        # Fields or properties of the subclass.
        @property
        def begin_step(self) -> int: ...  # noqa: D102
        @property
        def end_step(self) -> int: ...  # noqa: D102
        @property
        def frequency(self) -> int: ...  # noqa: D102

    def __post_init__(self) -> None:
        """Turns numpy numbers into plain ones, so that a config is JSON; subclasses call it."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                object.__setattr__(self, field.name, int(value))
            elif isinstance(value, numbers.Real) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))

    @abstractmethod
    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns the target sparsity at a step; `ops` is PYTHON_OPS or keras.ops.

        Args:
            step: An int, or an integer tensor of shape ().
            ops: The namespace with `cast` and `clip` for the kind of `step`.
        """

    def due(self, step: Any) -> Any:
        """Returns whether masks are recomputed at a step: every `frequency` steps in the range.

        Both ends are inclusive; an `end_step` of -1 never ends it. Works on an int and on
        an integer tensor of shape ().
        """
        inside = step >= self.begin_step
        if self.end_step >= 0:
            inside = inside & (step <= self.end_step)
        return inside & ((step - self.begin_step) % self.frequency == 0)

    def __call__(self, step: int) -> float:
        """Returns the target sparsity at a step, a share from 0 to 1."""
        return float(self.value(int(step)))

    def should_update(self, step: int) -> bool:
        """Returns whether masks are recomputed at a step."""
        return bool(self.due(int(step)))

    def last_update(self, step: int) -> int | None:
        """Returns the last step up to `step` at which masks are recomputed; None before any."""
        if self.end_step >= 0:
            step = min(step, self.end_step)
        if step < self.begin_step:
            return None
        return step - (step - self.begin_step) % self.frequency

    @property
    def first_update(self) -> int:
        """The first step at which masks are computed: `begin_step`, or a `frequency` after 0.

        Steps count the optimizer's updates, the first of which is 1.

        Example:
            >>> from edgecompress.schedules.constant import ConstantSparsity
            >>> ConstantSparsity(0.5).first_update, ConstantSparsity(0.5, begin_step=7).first_update
            (100, 7)
        """
        return self.begin_step or self.frequency

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, as `from_config` takes them."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls: type[S], config: Mapping[str, Any]) -> S:
        """Returns the schedule that `get_config` described."""
        return cls(**config)


def serialize(schedule: Schedule) -> dict[str, Any]:
    """Returns a schedule as JSON values: its registered name and its config.

    Raises:
        ArgumentError: the schedule's class is not registered in SCHEDULES.
    """
    for name, registered in SCHEDULES.items():
        if registered is type(schedule):
            return {"name": name, "config": schedule.get_config()}
    raise ArgumentError(
        "schedule",
        "be registered",
        type(schedule).__name__,
        'Decorate its class with @SCHEDULES.register("name").',
    )


def deserialize(data: Mapping[str, Any]) -> Schedule:
    """Returns the schedule that `serialize` described.

    Raises:
        UnknownNameError: no schedule is registered under the name.
    """
    return SCHEDULES[data["name"]].from_config(data["config"])


def check_sparsity(argument: str, value: Any) -> None:
    """Refuses a sparsity that is not a share in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentError(argument, "be a number", value)
    if not 0.0 <= value < 1.0:  # NaN fails this, too.
        raise ArgumentError(argument, "be at least 0 and below 1", value, "0.8 zeroes 80 %.")


def check_steps(begin_step: Any, end_step: Any, frequency: Any, endless: bool) -> None:
    """Refuses steps that the schedule could not follow.

    Args:
        begin_step: First step at which masks are computed.
        end_step: Last one; -1 for never ending if `endless`.
        frequency: Steps between two computations.
        endless: Whether the formula works without an end.
    """
    for name, value in (
        ("begin_step", begin_step),
        ("end_step", end_step),
        ("frequency", frequency),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentError(name, "be a whole number of steps", value)
    if begin_step < 0:
        raise ArgumentError("begin_step", "be at least 0", begin_step)
    if frequency < 1:
        raise ArgumentError("frequency", "be at least 1", frequency)
    if endless:
        if end_step != -1 and end_step < begin_step:
            raise ArgumentError(
                "end_step",
                f"be -1 (never ends) or at least begin_step ({begin_step})",
                end_step,
            )
    elif end_step <= begin_step:
        # The formula divides by end_step - begin_step.
        raise ArgumentError("end_step", f"be greater than begin_step ({begin_step})", end_step)
