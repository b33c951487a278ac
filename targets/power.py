"""What a board draws while a model runs, and the energy that follows for one inference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from edgecompress.core.errors import ArgumentError, UnknownNameError
from edgecompress.core.forms import CLOSED, Items, Number, Rule, Text

# The models of MLPerf Tiny.
BENCHMARKS = ("ad", "ic", "kws", "vww")
# Of two models on one board and runtime, one draws at most so many times the power of the other in
# 95 of 100 pairs (`benchmarks/energy_bands.py`).
SAME_SETUP = 1.12
# How far the setups of nucleo-l4r5zi, the board with the most of them, are from their middle, in
# times. A board with fewer is not taken to vary less.
OTHER_SETUPS = 1.55

_POSITIVE = Rule("", schema={"exclusiveMinimum": 0})
_SOME = Rule("a list of at least one row", lambda rows: len(rows) > 0, whole=True)


@dataclass(frozen=True)
class PublishedEnergy:
    """One published measurement of energy, with the latency of the same submission.

    Args:
        round: Round of the benchmark, e.g. `v1.1`.
        benchmark: MLPerf Tiny's model: `ad`, `ic`, `kws` or `vww`.
        runtime: What ran it.
        microjoules: Energy of one inference.
        milliseconds: Its latency.
        file: The energy results inside the round's repository.

    Raises:
        ArgumentError: a number is not positive.
        UnknownNameError: there is no such benchmark.
    """

    round: Text
    benchmark: Annotated[Text, Rule("", schema={"enum": list(BENCHMARKS)})]
    runtime: Text
    microjoules: Annotated[Number, _POSITIVE]
    milliseconds: Annotated[Number, _POSITIVE]
    file: Text

    __pydantic_config__ = CLOSED

    def __post_init__(self) -> None:
        """Refuses rows without a measurement."""
        if self.benchmark not in BENCHMARKS:
            raise UnknownNameError("published benchmark", self.benchmark, BENCHMARKS)
        for name in ("microjoules", "milliseconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not 0 < value < math.inf:
                raise ArgumentError(f"published {name}", "be a positive number", value)

    @property
    def milliwatts(self) -> float:
        """The mean power of an inference."""
        return self.microjoules / self.milliseconds


@dataclass(frozen=True)
class PowerModel:
    """What a board draws while a model runs, from published energies.

    On one setup, models draw nearly the same power; setups of one board (supply voltage, regulator,
    clock tree) differ by up to 2.4 times. The band is that of all setups, and at least
    `OTHER_SETUPS` to both sides of its middle.

    Args:
        published: The rows.
    """

    published: Annotated[Items[PublishedEnergy], _SOME]

    __pydantic_config__ = CLOSED

    @property
    def milliwatts(self) -> tuple[float, float]:
        """The lowest and the highest power."""
        powers = [row.milliwatts for row in self.published]
        middle = math.sqrt(min(powers) * max(powers))
        return min(*powers, middle / OTHER_SETUPS), max(*powers, middle * OTHER_SETUPS)


def around(milliwatts: float) -> tuple[float, float]:
    """Returns the band of powers of any model, where one model's power was measured.

    Example:
        >>> around(112.0)
        (100.0, 125.44)
    """
    return round(milliwatts / SAME_SETUP, 9), round(milliwatts * SAME_SETUP, 9)
