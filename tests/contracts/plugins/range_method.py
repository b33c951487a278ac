"""A toy plugin: activation ranges a tenth narrower than the values of a batch."""

from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.precisions.ranges import RANGES, RangeMethod


@dataclass(frozen=True)
class Narrower(RangeMethod):
    """Nine tenths of the extremes of each batch, as a moving average."""

    summary: ClassVar[str] = "a tenth narrower than the values"

    def batch_range(self, values: Any, steps: int, percentile: float, counts: Any = None) -> Any:
        """Returns nine tenths of the extremes of a batch."""
        return 0.9 * RANGES["moving-average"].batch_range(values, steps, percentile, counts)


RANGES.register("narrower")(Narrower())
