"""One-shot pruning: all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.schedules.base import PYTHON_OPS, SCHEDULES, Schedule, check_sparsity


@SCHEDULES.register("one-shot")
@dataclass(frozen=True)
class OneShotSparsity(Schedule):
    """Prunes once, at one step; training before it ranks the weights, training after it recovers.

    Args:
        target_sparsity: Share of zero weights, at least 0 and below 1.
        step: The step, at least 1.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> schedule = OneShotSparsity(0.5, step=200)
        >>> schedule(199), schedule(200), schedule.should_update(200), schedule.should_update(201)
        (0.0, 0.5, True, False)
    """

    target_sparsity: float
    step: int

    def __post_init__(self) -> None:
        """Refuses arguments that break their rule."""
        super().__post_init__()
        check_sparsity("target_sparsity", self.target_sparsity)
        if isinstance(self.step, bool) or not isinstance(self.step, int) or self.step < 1:
            raise ArgumentError("step", "be a whole number of at least 1", self.step)

    @property
    def begin_step(self) -> int:
        """The step."""
        return self.step

    @property
    def end_step(self) -> int:
        """The step."""
        return self.step

    @property
    def frequency(self) -> int:
        """1."""
        return 1

    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns 0 before the step, the target from it on."""
        begun = ops.clip(ops.cast(step - self.step + 1, "float32"), 0.0, 1.0)
        return self.target_sparsity * begun
