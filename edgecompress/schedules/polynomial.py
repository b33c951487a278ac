"""Polynomial decay of density: sparsity rises fast at first and levels off at its target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgecompress.core.errors import ArgumentError
from edgecompress.schedules.base import (
    PYTHON_OPS,
    SCHEDULES,
    Schedule,
    check_sparsity,
    check_steps,
)


@SCHEDULES.register("polynomial_decay")
@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Sparsity rises from `initial_sparsity` to `final_sparsity` along a polynomial.

    With t the step, t0 = begin_step and t1 = end_step:

        s(t) = final + (initial - final) * (1 - (t - t0) / (t1 - t0)) ** power

    held at `initial_sparsity` before t0 and at `final_sparsity` after t1: equation 1 of Zhu and
    Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878, with `power` = 3.
    The arguments have the same meaning as in tensorflow-model-optimization, except that
    `initial_sparsity` has a default and therefore comes after the steps.

    Masks change only every `frequency` steps. If `frequency` does not divide `end_step -
    begin_step`, the last update comes before `end_step`, slightly below `final_sparsity`.

    Args:
        final_sparsity: Share of zero weights at the end, at least 0 and below 1.
        begin_step: First step at which masks are computed.
        end_step: Last such step; greater than `begin_step`.
        initial_sparsity: Share of zero weights at `begin_step`. Defaults to 0.
        power: Exponent, greater than 0. Defaults to 3.
        frequency: Steps between two mask computations. Defaults to 100.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> schedule = PolynomialDecay(final_sparsity=0.8, begin_step=0, end_step=1000)
        >>> round(schedule(500), 3), schedule(1000), schedule.should_update(550)
        (0.7, 0.8, False)
    """

    final_sparsity: float
    begin_step: int
    end_step: int
    initial_sparsity: float = 0.0
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        """Refuses arguments that break their rule or the formula."""
        super().__post_init__()
        check_sparsity("final_sparsity", self.final_sparsity)
        check_sparsity("initial_sparsity", self.initial_sparsity)
        check_steps(self.begin_step, self.end_step, self.frequency, endless=False)
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)):
            raise ArgumentError("power", "be a number", self.power)
        if not (math.isfinite(self.power) and self.power > 0):
            raise ArgumentError("power", "be finite and greater than 0", self.power)

    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns the target sparsity at a step."""
        passed = ops.cast(step - self.begin_step, "float32") / (self.end_step - self.begin_step)
        density = 1 - ops.clip(passed, 0.0, 1.0)
        return (self.initial_sparsity - self.final_sparsity) * density**self.power + (
            self.final_sparsity
        )
