"""Channels: those go that matter least for what they cost, until every limit is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgecompress.searching.descent import Widths, cut_at_once, descend
from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values

if TYPE_CHECKING:
    from edgecompress.searching.structures import Structure

# Criteria that score filters from weights and a few hundred batches.
CRITERIA = ("taylor", "magnitude", "geometric-median")
# In rounds, the rest recovers and importance adapts; at once is quicker.
_ROUNDS = (4, 1)
# With limits, the smallest share of them to use: what is smaller than asked for can do less, even
# where the metric, measured on few samples, does not show it.
_FULL = 0.8
# Without a limit, the smallest share of the model's own costs.
_LEAST = 0.1


@TECHNIQUES.register("channels")
class Channels(Technique):
    """Removes channels, ranked over all layers by importance for what they save.

    As in `ChannelPruning`, but before the candidate's own training, which is then as fast as it is
    small: at once, or in rounds with a short training between them. Tilts make the first and the
    last third of the layers more important, or less; weights say how much each limited cost counts.
    """

    def __init__(self, subject: Subject) -> None:
        """Looks for filters that can be removed."""
        from edgecompress.searching.structures import removable_filters

        super().__init__(subject)
        if not removable_filters(subject.model)[0]:
            self.reason = "no layer has filters that can be removed"

    def knobs(self) -> Sequence[Knob]:
        """Returns the criterion, the share of the limits to use, tilts, and weights of costs."""
        if self.reason is not None:
            return ()
        limits = self.subject.targets.limited
        fill = Knob("fill", 1.0, low=_FULL, high=1.0)
        if not limits:
            fill = Knob("fill", 0.5, low=_LEAST, high=1.0, log=True)
        multiple = self.subject.targets.multiple
        steps = tuple(dict.fromkeys((multiple, max(1, multiple // 2), 1)))
        tilts = [Knob(f"tilt_{part}", 0.0, low=-2.0, high=2.0) for part in ("early", "late")]
        weights = [
            Knob(f"weight_{rule}", 0.0, low=-2.0, high=2.0)
            for rule in (limits if len(limits) > 1 else ())
        ]
        rounds = Knob("rounds", _ROUNDS[0], _ROUNDS)
        found = [Knob("criterion", CRITERIA[0], CRITERIA), fill, rounds, *tilts, *weights]
        return (*found, Knob("multiple", steps[0], steps)) if len(steps) > 1 else found

    def fill(self, values: Values) -> float:
        """Returns the share of every limit to stay within."""
        return float(values["fill"])

    def importance(self, values: Values, structure: Structure) -> np.ndarray:
        """Returns the importance of each channel group, with tilts."""
        importance, position = structure.importance(str(values["criterion"]))
        tilt = np.select(
            [position < 1 / 3, position >= 2 / 3],
            [float(values["tilt_early"]), float(values["tilt_late"])],
            0.0,
        )
        return np.asarray(importance * np.exp(tilt))

    def rounds(self, values: Values) -> int:
        """Returns in how many rounds channels go, with training in between."""
        return int(values["rounds"])

    def least(self, values: Values, structure: Structure) -> np.ndarray:
        """Returns the smallest widths that may be kept."""
        return np.minimum(structure.screen.totals, self._step(values))

    def _step(self, values: Values) -> int:
        return int(values.get("multiple", self.subject.targets.multiple))

    def widths(
        self,
        values: Values,
        structure: Structure,
        importance: np.ndarray,
        fill: float,
        way: float = 1.0,
    ) -> np.ndarray:
        """Returns the widths that are kept within a share of the limits; see `descend`.

        Args:
            values: Of its knobs.
            structure: What channels can be taken from.
            importance: Of each channel group.
            fill: The share.
            way: Part of the way there.
        """
        screen = structure.screen
        parts = sum(structure.savings().values(), np.zeros(len(importance)))
        classes = Widths(
            [np.sort(importance[members]) for members in screen.members],
            np.array([float(parts[members].mean()) for members in screen.members]),
            self._step(values),
        )
        weights = {
            name.removeprefix("weight_"): math.exp(float(value))
            for name, value in values.items()
            if name.startswith("weight_")
        }

        def excess(kept: np.ndarray) -> dict[str, float]:
            return structure.excess(structure.costs(kept), fill, way)

        if not screen.exact:
            # Each question is a conversion.
            return cut_at_once(classes, excess)
        return descend(classes, excess, weights)
