"""Attention transfer: the student looks at the places its teacher looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.core.options import Number, option
from edgecompress.training.base import LAYER_LOSSES, LayerLoss, places

# Square of a norm below which a map counts as 0, and rounding of a distance's square.
_TINY = 1e-12


@LAYER_LOSSES.register("attention-transfer")
@dataclass(frozen=True)
class AttentionTransfer(LayerLoss):
    """`weight / 2 * || s / ||s|| - t / ||t|| ||` with the maps s and t of student and teacher.

    A map is `sum over channels of |A|**power`, flattened, and norms are L2. Zagoruyko and
    Komodakis, Paying More Attention to Attention, 2017, https://arxiv.org/abs/1612.03928,
    equation (2) with p = 2. Numbers of channels may differ.

    Args:
        weight: The paper's beta, 0.1 or so.
        power: p of the map.
    """

    weight: float = option(
        0.1, "Factor of the distance of maps.", Number("NUMBER", "be 0 or more", 0.0)
    )
    power: float = option(
        2.0, "Power of an activation in the map.", Number("NUMBER", "be 1 or more", 1.0)
    )

    def why_not(
        self,
        teacher: Sequence[int | None],
        student: Sequence[int | None],
        channels: tuple[int, int],
    ) -> str | None:
        """Returns why the layers have no comparable maps; see `LayerLoss.why_not`."""
        if len(teacher) < 3 or len(student) < 3:
            return "an attention map needs places beside the channels"
        if places(teacher, channels[0]) != places(student, channels[1]):
            return "their maps have different sizes"
        return None

    def compare(self, teacher: Any, student: Any, channels: tuple[int, int]) -> Any:
        """Returns the loss of each sample; see `LayerLoss.compare`."""
        from keras import ops

        apart = self._map(student, channels[1]) - self._map(ops.stop_gradient(teacher), channels[0])
        squares = ops.sum(ops.square(apart), axis=-1)
        # The slope of a root at 0 is infinite.
        return ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1.0)), 0.0) / 2

    def _map(self, values: Any, channels: int) -> Any:
        """Returns the normalized maps, (samples, places)."""
        from keras import ops

        found = ops.sum(ops.power(ops.abs(values), self.power), axis=channels)
        found = ops.reshape(found, (ops.shape(found)[0], -1))
        squares = ops.sum(ops.square(found), axis=-1, keepdims=True)
        return found / ops.sqrt(ops.maximum(squares, _TINY))
