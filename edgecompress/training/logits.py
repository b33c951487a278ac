"""Regression of the teacher's logits, or of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.options import option, share
from edgecompress.training.base import LOSSES, Outputs, TeacherLoss


@LOSSES.register("logits")
@dataclass(frozen=True)
class LogitRegression(TeacherLoss):
    """`||z - t||**2 / 2`, with z the student's logits and t the teacher's; for regression, values.

    Ba and Caruana, Do Deep Nets Really Need to be Deep?, 2014, https://arxiv.org/abs/1312.6184,
    equation (1).

    Args:
        weight: Share of the teacher in the loss.
    """

    of_classes: ClassVar[bool] = False

    weight: float = option(0.5, "Share of the teacher's logits in the loss.", share())

    def compare(self, teacher: Any, student: Any, outputs: Outputs) -> Any:
        """Returns the loss of each sample; see `TeacherLoss.compare`."""
        from keras import ops

        return ops.sum(ops.square(student - ops.stop_gradient(teacher)), axis=-1) / 2
