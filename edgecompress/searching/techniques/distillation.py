"""Distillation: the untouched model teaches the candidates."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.searching.knobs import Knob
from edgecompress.searching.techniques.base import TECHNIQUES, Subject, Technique, Values
from edgecompress.training.base import TeacherLoss
from edgecompress.training.distillation import Distillation as SoftTargets


@TECHNIQUES.register("distillation")
class Distillation(Technique):
    """Soft targets at a temperature (Hinton, Vinyals and Dean, 2015)."""

    def __init__(self, subject: Subject) -> None:
        """Looks at the task."""
        super().__init__(subject)
        if not subject.task.is_classifier:
            self.reason = "the outputs are no probabilities"

    def knobs(self) -> Sequence[Knob]:
        """Returns the teacher's share of the loss, and the temperature."""
        if self.reason is not None:
            return ()
        return (
            Knob("weight", 0.7, (0.0, 0.4, 0.7, 0.9)),
            Knob("temperature", 4.0, (2.0, 4.0, 8.0)),
        )

    def teacher(self, values: Values) -> TeacherLoss | None:
        """Returns the loss against the teacher; None without a share."""
        weight = float(values["weight"])
        if weight == 0:
            return None
        return SoftTargets(temperature=float(values["temperature"]), weight=weight)
