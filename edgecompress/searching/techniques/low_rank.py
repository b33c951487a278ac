"""Low rank: layers become products of two or three smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values

_OFF = 1.0


@TECHNIQUES.register("low-rank")
class LowRank(Technique):
    """The rewrite `low-rank`, by the energy that is kept."""

    reshapes = True
    order = 1

    def __init__(self, subject: Subject) -> None:
        """Tries the coarsest factors."""
        super().__init__(subject)
        self._useful = self.reshape(subject.model, {"energy": 0.8}) is not subject.model
        if not self._useful:
            self.reason = "no layer has fewer multiply-accumulates as a product of smaller ones"

    def knobs(self) -> Sequence[Knob]:
        """Returns the share of energy that is kept; 1 leaves the layers alone."""
        return (Knob("energy", _OFF, (_OFF, 0.95, 0.9, 0.8)),) if self._useful else ()

    def reshape(self, model: Any, values: Values) -> Any:
        """Returns the model with factored layers, or itself if none got smaller."""
        from edgecompress.surgery.finalize import finalize

        energy = float(values["energy"])
        if energy == _OFF:
            return model
        small = finalize(model, rewrites=f"low-rank:energy={energy:g}")
        return small if small.count_params() < model.count_params() else model
