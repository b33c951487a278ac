"""Training: the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Technique, Values


@TECHNIQUES.register("training")
class Training(Technique):
    """Adam with a rate that falls to 0 as half a cosine."""

    def knobs(self) -> Sequence[Knob]:
        """Returns the rate it begins with."""
        return (Knob("rate", 2e-3, low=5e-4, high=5e-3, log=True),)

    def rate(self, values: Values) -> float | None:
        """Returns the rate."""
        return float(values["rate"])
