"""Hints: a layer of the student computes what a layer of the teacher does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Number, option
from edgecompress.training.base import LAYER_LOSSES, LayerLoss, places


@LAYER_LOSSES.register("hints")
@dataclass(frozen=True)
class Hints(LayerLoss):
    """`weight / 2 * mean((s - t)**2)` with the activations s and t of student and teacher.

    Romero et al., FitNets: Hints for Thin Deep Nets, 2015, https://arxiv.org/abs/1412.6550,
    equation (3), divided by the number of activations. Where the numbers of channels differ, s is a
    regressor of the student's layer: a 1 x 1 convolution that is trained with it and then dropped.

    Args:
        weight: Factor of the loss.
    """

    weight: float = option(
        1.0, "Factor of the distance of activations.", Number("NUMBER", "be 0 or more", 0.0)
    )

    def why_not(
        self,
        teacher: Sequence[int | None],
        student: Sequence[int | None],
        channels: tuple[int, int],
    ) -> str | None:
        """Returns why the layers cannot be compared; see `LayerLoss.why_not`."""
        if places(teacher, channels[0]) != places(student, channels[1]):
            return "their maps have different sizes"
        if channels[0] % len(teacher) != channels[1] % len(student):
            return "their channels are on different axes"
        if teacher[channels[0]] is None or student[channels[1]] is None:
            return "their numbers of channels are unknown"
        return None

    def regressor(
        self,
        teacher: Sequence[int | None],
        student: Sequence[int | None],
        channels: tuple[int, int],
    ) -> tuple[int, int] | None:
        """Returns the shape of a regressor for other numbers of channels; see `LayerLoss`."""
        inputs, outputs = student[channels[1]], teacher[channels[0]]
        return None if inputs == outputs or not inputs or not outputs else (inputs, outputs)

    def compare(self, teacher: Any, student: Any, channels: tuple[int, int]) -> Any:
        """Returns the loss of each sample; see `LayerLoss.compare`."""
        from keras import ops

        squares = ops.square(student - ops.stop_gradient(teacher))
        return ops.mean(squares, axis=tuple(range(1, len(squares.shape)))) / 2
