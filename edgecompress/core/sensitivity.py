"""What `--sensitivity` finds: the damage of each layer, and which layers to keep more exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.core.files import jsonable


@dataclass(frozen=True)
class LayerDamage:
    """What rounding a single layer costs, all others in float.

    Attributes:
        layer: The layer's name.
        operators: Its operators in the file.
        sqnr_db: Signal-to-noise ratio of the outputs against the float file, in dB; None if they
            are equal, or if it is unknown.
        score: The metric of the file with this layer rounded, in LiteRT; None without labels.
        problem: Why it could not be measured; None if it was.
    """

    layer: str
    operators: tuple[str, ...] = ()
    sqnr_db: float | None = None
    score: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class KeptLayers:
    """A file with some layers kept more exact, and its price.

    Attributes:
        how: `int16` or `float`; `""` for the file without any.
        layers: The kept layers.
        score: Its metric in the engine of the first target; None without labels.
        reached: Whether it reaches the limit; None without one.
        file_bytes: Its size.
        arena_bytes: Tensor arena on the neediest target; None if unknown.
        microseconds: Predicted latency on the slowest target; None if unknown.
        cheapest: Whether it is the cheapest that reaches the limit: of least latency where that is
            known for all, else the smallest.
    """

    how: str
    layers: tuple[str, ...]
    score: float | None
    reached: bool | None
    file_bytes: int
    arena_bytes: float | None = None
    microseconds: float | None = None
    cheapest: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """The damage of each layer and what keeping some costs.

    Attributes:
        layers: The layers, the most damaging first.
        samples: Samples that the ratios were measured on.
        base: The file as exported.
        metric: Name of the metric; None without labels.
        unit: The unit of its values, as in `core.results.CheckResult`.
        limit: The limit that the search was for; None for none.
        choices: What the search found, one for each way of keeping layers.
        notes: What was not done, with the reason, one sentence each.
    """

    layers: tuple[LayerDamage, ...]
    samples: int
    base: KeptLayers
    metric: str | None = None
    unit: str = "share"
    limit: float | None = None
    choices: tuple[KeptLayers, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        found: Mapping[str, Any] = dataclasses.asdict(self)
        return {name: jsonable(value) for name, value in found.items()}
