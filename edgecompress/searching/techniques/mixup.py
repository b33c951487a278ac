"""Mixup: candidates learn from mixtures of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.converters.calibration import spread
from edgecompress.core.keras_graph import graph_nodes
from edgecompress.recipes.samples import Samples
from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values

# Samples by which the untouched model is compared on either side.
_SAMPLES = 2000
# It overfits if it errs so much more often on validation data: by this share of them, and so many
# times as often.
_GAP, _TIMES = 0.05, 3
# What reads its input as numbers of things, of which there are no mixtures.
_LOOKUPS = (
    "CategoryEncoding", "Discretization", "Embedding", "HashedCrossing", "Hashing",
    "IntegerLookup", "StringLookup", "TextVectorization",
)  # fmt: skip


@TECHNIQUES.register("mixup")
class Mixup(Technique):
    """Convex combinations of samples (Zhang, Cisse, Dauphin and Lopez-Paz, 2018).

    A candidate begins with weights that already fit the training data, and sees these many times
    more. If the untouched model errs far more often on validation data than on them, it overfits:
    then all candidates are trained on mixtures, and the search chooses how much is mixed.
    Otherwise it begins without.
    """

    def __init__(self, subject: Subject) -> None:
        """Looks at the inputs."""
        super().__init__(subject)
        floats = all(array.dtype.kind == "f" for array in subject.data.train.x)
        if not floats or _looks_up(subject.model):
            self.reason = "the inputs are no quantities that could be mixed"

    def knobs(self) -> Sequence[Knob]:
        """Returns the parameter of the distribution of shares; 0 mixes nothing."""
        if self.reason is not None:
            return ()
        if self._overfits():
            return (Knob("alpha", 0.4, (0.2, 0.4, 1.0)),)
        return (Knob("alpha", 0.0, (0.0, 0.2, 0.4)),)

    def mixup(self, values: Values) -> float:
        """Returns the parameter."""
        return float(values["alpha"])

    def _overfits(self) -> bool:
        data = self.subject.data
        if not self.subject.task.is_classifier or data.train.y is None:
            return False
        here, held = self._accuracy(data.train), self._accuracy(data.validation)
        if here - held <= _GAP or 1 - held <= _TIMES * (1 - here):
            return False
        self.note = (
            f"The untouched model's accuracy is {here:.4f} on training data and {held:.4f} on "
            "validation data: candidates are trained on mixtures of samples (mixup)."
        )
        return True

    def _accuracy(self, samples: Samples) -> float:
        from edgecompress.recipes.training import measure

        part = samples.at(spread(np.arange(len(samples)), _SAMPLES))
        return measure(self.subject.model, self.subject.task, part)


def _looks_up(model: object) -> bool:
    """Returns whether a layer of a model reads numbers of things."""
    for node in graph_nodes(model):
        if hasattr(node.operation, "layers"):
            if _looks_up(node.operation):
                return True
        elif type(node.operation).__name__ in _LOOKUPS:
            return True
    return False
