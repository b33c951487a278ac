"""What a method of choosing ranges has to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.registry import Registry

RANGES: Registry[RangeMethod] = Registry("range method")


@dataclass(frozen=True)
class RangeMethod:
    """How the range of a tensor follows from its values.

    A wide range clips nothing but has large steps; a narrow one has small steps but clips. All
    functions are pure, over keras.ops, and run inside the compiled train step.

    Attributes:
        summary: What it does, in a few words for `--help`.
        weights: Whether it has scales for weights.
        activations: Whether it has ranges for activations.
        extremes_only: Whether the range of a batch depends on its minimum and maximum alone.
        learnt: Whether training learns it by gradients.
        calibration: The method that measures activations on calibration data; "" for itself.
    """

    summary: ClassVar[str]
    weights: ClassVar[bool] = False
    activations: ClassVar[bool] = True
    extremes_only: ClassVar[bool] = False
    learnt: ClassVar[bool] = False
    calibration: ClassVar[str] = ""

    @property
    def calibrated(self) -> RangeMethod:
        """The method that measures activations on calibration data."""
        return RANGES[self.calibration] if self.calibration else self

    def limits(self, weights: Any, axes: Sequence[int], largest: int) -> Any:
        """Returns the magnitude that the largest code of each channel stands for.

        Args:
            weights: A float32 kernel of any shape.
            axes: The axes within a channel, which are reduced.
            largest: The largest code: 127 for 8 bits, 7 for 4.

        Returns:
            A tensor that broadcasts against `weights`; None for the largest weight.
        """
        raise NotImplementedError

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns [minimum, maximum] for a batch, in float32 and without gradient.

        Args:
            values: Activations of any shape.
            steps: Number of steps between the smallest and the largest code: 255 for 8 bits.
            percentile: What the percentile method keeps, 50 to 100.
            counts: How often each of a histogram's values occurred. Defaults to once.
        """
        raise NotImplementedError


def names_for(what: str) -> tuple[str, ...]:
    """Returns the methods for `weights` or `activations`."""
    return tuple(name for name, method in RANGES.items() if getattr(method, what))
