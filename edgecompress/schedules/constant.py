"""Constant sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.schedules.base import (
    PYTHON_OPS,
    SCHEDULES,
    Schedule,
    check_sparsity,
    check_steps,
)


@SCHEDULES.register("constant_sparsity")
@dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """The same sparsity at every update.

    The arguments have the same meaning as in tensorflow-model-optimization. So with the defaults
    nothing is pruned in the first 99 steps: masks are computed every `frequency` steps from
    `begin_step` on, and the first step after 0 is step 100. `ConstantSparsity(0.5, begin_step=1)`
    prunes from the first step on.

    Args:
        target_sparsity: Share of zero weights, at least 0 and below 1.
        begin_step: First step at which masks are computed. Defaults to 0.
        end_step: Last step at which masks are recomputed; the masks then stay. Defaults to -1,
            which never ends.
        frequency: Steps between two mask computations. Defaults to 100.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=200)
        >>> schedule(300), schedule.should_update(300), schedule.should_update(100)
        (0.5, True, False)
    """

    target_sparsity: float
    begin_step: int = 0
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        """Refuses arguments that break their rule."""
        super().__post_init__()
        check_sparsity("target_sparsity", self.target_sparsity)
        check_steps(self.begin_step, self.end_step, self.frequency, endless=True)

    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns the target sparsity, whatever the step."""
        return ops.cast(self.target_sparsity, "float32")
