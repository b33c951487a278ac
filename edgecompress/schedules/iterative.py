"""Iterative pruning: the same share of the remaining weights goes in each round."""

from __future__ import annotations

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


@SCHEDULES.register("iterative")
@dataclass(frozen=True)
class IterativeSparsity(Schedule):
    """Prunes in rounds, each of which leaves the same share of the weights that are left.

    After round k of n, with s = final_sparsity:

        sparsity = 1 - (1 - s) ** (k / n)

    Han et al., "Learning both weights and connections for efficient neural networks" (2015,
    https://arxiv.org/abs/1506.02626), section 3.4, prune, retrain and prune again; equal shares are
    those of Frankle and Carbin, "The lottery ticket hypothesis" (2019,
    https://arxiv.org/abs/1803.03635), section 1. The steps between two rounds are the retraining.

    Args:
        final_sparsity: Share of zero weights after the last round, at least 0 and below 1.
        begin_step: Step of the first round, at least 1.
        rounds: Number of rounds, at least 1.
        frequency: Steps from one round to the next.

    Raises:
        ArgumentError: an argument breaks its rule.

    Example:
        >>> schedule = IterativeSparsity(0.875, begin_step=100, rounds=3, frequency=500)
        >>> [round(schedule(step), 3) for step in (99, 100, 600, 1100)]
        [0.0, 0.5, 0.75, 0.875]
        >>> schedule.end_step
        1100
    """

    final_sparsity: float
    begin_step: int
    rounds: int
    frequency: int = 1000

    def __post_init__(self) -> None:
        """Refuses arguments that break their rule."""
        super().__post_init__()
        check_sparsity("final_sparsity", self.final_sparsity)
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ArgumentError("rounds", "be a whole number of at least 1", self.rounds)
        check_steps(self.begin_step, -1, self.frequency, endless=True)
        if self.begin_step < 1:
            raise ArgumentError("begin_step", "be at least 1, the first step", self.begin_step)

    @property
    def end_step(self) -> int:
        """Step of the last round."""
        return self.begin_step + (self.rounds - 1) * self.frequency

    def value(self, step: Any, ops: Any = PYTHON_OPS) -> Any:
        """Returns the sparsity after the rounds up to a step."""
        done = ops.cast((step - self.begin_step) // self.frequency + 1, "float32")
        share = ops.clip(done, 0.0, float(self.rounds)) / self.rounds
        return 1 - (1 - self.final_sparsity) ** share
