"""A toy plugin: a loss that pulls the student's logits to the teacher's."""

from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import option, share
from edgecompress.training.base import LOSSES, Outputs, TeacherLoss


@LOSSES.register("logit-distance")
@dataclass(frozen=True)
class LogitDistance(TeacherLoss):
    """Mean square of the difference of centred logits."""

    weight: float = option(0.5, "Share of the loss.", share())

    def compare(self, teacher: Any, student: Any, outputs: Outputs) -> Any:
        """Returns the loss of each sample."""
        from keras import ops

        apart = student - ops.stop_gradient(teacher)
        if not outputs.binary:
            apart = apart - ops.mean(apart, axis=-1, keepdims=True)
        return ops.mean(ops.square(apart), axis=-1)
