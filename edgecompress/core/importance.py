"""What pruning under a budget saw of each filter, and where it cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FilterImportance:
    """A filter that could be removed.

    Attributes:
        layer: Its layer; `<nested model>/<layer>` inside nested models.
        filter: Its position in the layer.
        importance: Of everything that goes together with it, as of the last round in which it was
            there.
        saving: Share of the limited costs that all of that saves, summed over the limits.
        kept: Whether it stays.
    """

    layer: str
    filter: int
    importance: float
    saving: float
    kept: bool

    @property
    def rank(self) -> float:
        """Importance for what it saves: the filters with the smallest go first."""
        return self.importance / self.saving if self.saving > 0 else float("inf")


@dataclass(frozen=True)
class Importance:
    """The filters that could be removed, and where the budget cut.

    Attributes:
        filters: They, in the order of layers and filters.
        cut: The rank of the last ones that went in the last round; None if none did.
        budget: The budget, as text.
        costs: Limited cost -> what the model took at the start, and takes finalized.
        units: Limited cost -> its unit.
    """

    filters: tuple[FilterImportance, ...]
    cut: float | None
    budget: str
    costs: Mapping[str, tuple[float, float]]
    units: Mapping[str, str]

    def by_layer(self) -> dict[str, list[FilterImportance]]:
        """Returns the filters of each layer, the least important for what they save first."""
        found: dict[str, list[FilterImportance]] = {}
        for entry in sorted(self.filters, key=lambda entry: entry.rank):
            found.setdefault(entry.layer, []).append(entry)
        return {layer: found[layer] for layer in dict.fromkeys(x.layer for x in self.filters)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "budget": self.budget,
            "cut": self.cut,
            "costs": {name: list(values) for name, values in self.costs.items()},
            "filters": [
                {"layer": x.layer, "filter": x.filter, "importance": x.importance,
                 "saving": x.saving, "kept": x.kept}
                for x in self.filters
            ],
        }  # fmt: skip
