"""Distillation: soft labels at a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Number, option, share
from edgecompress.training.base import LOSSES, Outputs, TeacherLoss


@LOSSES.register("distillation")
@dataclass(frozen=True)
class Distillation(TeacherLoss):
    """`T**2 * KL(p || q)`, with p and q softened by the temperature T.

    p = softmax(teacher / T), q = softmax(student / T); for one output the same with sigmoids.
    Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
    https://arxiv.org/abs/1503.02531, section 2: the factor keeps the gradients of soft and true
    labels in proportion when T changes. The paper's cross-entropy is larger by the entropy of p,
    which training cannot change; without it, 0 means that both agree.

    Args:
        temperature: T, greater than 0.
        weight: Share of the soft labels in the loss.
    """

    temperature: float = option(
        4.0, "Temperature of the soft labels.", Number("NUMBER", "be greater than 0", 1e-9)
    )
    weight: float = option(0.9, "Share of the soft labels in the loss.", share())

    def compare(self, teacher: Any, student: Any, outputs: Outputs) -> Any:
        """Returns the loss of each sample; see `TeacherLoss.compare`."""
        import keras
        from keras import ops

        teacher = ops.stop_gradient(teacher) / self.temperature
        student = student / self.temperature
        if outputs.binary:
            entropy, wanted = keras.losses.binary_crossentropy, ops.sigmoid(teacher)
        else:
            entropy, wanted = keras.losses.categorical_crossentropy, ops.softmax(teacher)
        between = entropy(wanted, student, from_logits=True)
        return self.temperature**2 * (between - entropy(wanted, teacher, from_logits=True))
