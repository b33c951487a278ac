"""Magnitude pruning: the smallest weights become zero during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecompress.callbacks.layer_choice import LayerChoice
from edgecompress.callbacks.pruning import Pruning
from edgecompress.core.errors import ArgumentError
from edgecompress.patterns.blocks import Blocks
from edgecompress.patterns.weights import Weights
from edgecompress.schedules.base import Schedule, serialize


class MagnitudePruning(Pruning):
    """Sets the weights of smallest magnitude to zero during `fit`, following a schedule.

    `Pruning` with the criterion `magnitude`. At every update step of the schedule the k-th largest
    magnitude becomes the threshold,

        mask = |w| >= threshold,    k = max(round(size * (1 - sparsity)), 1),

    and after every optimizer step, weights outside the mask are set to 0. With `scope`
    "layer" this is the algorithm of tensorflow-model-optimization (Zhu and Gupta, 2017,
    https://arxiv.org/abs/1710.01878, section 3), weight for weight.

    Args:
        schedule: Target sparsity over the steps, e.g. `PolynomialDecay`.
        layers: As in `Pruning`.
        scope: As in `Pruning`. Defaults to "layer".
        per_layer: As in `Pruning`.
        block_size: Rows and columns of the blocks of a Dense or Embedding kernel that are pruned as
            a unit, by their mean magnitude. (4, 1) is four inputs of one unit, as required by the
            sparse kernels on phones. Layers whose kernel does not divide into such blocks are
            skipped. Defaults to (1, 1): individual weights, in all kernels.

    Raises:
        ArgumentError: an argument breaks its rule; at the start of `fit` also if no layer is
            left to prune or the schedule was over before training began.
        UnsupportedModelError: at the start of `fit`, the model is subclassed.

    Example:
        >>> pruning = MagnitudePruning(PolynomialDecay(0.8, begin_step=0, end_step=3000))
        ...  # doctest: +SKIP
        >>> model.fit(x, y, epochs=10, callbacks=[pruning])  # doctest: +SKIP
    """

    technique = "magnitude_pruning"

    def __init__(
        self,
        schedule: Schedule,
        layers: LayerChoice = None,
        scope: str = "layer",
        block_size: tuple[int, int] = (1, 1),
        per_layer: Mapping[str, float] | None = None,
    ) -> None:
        """Checks the arguments; the model is looked at when training begins."""
        sizes = tuple(block_size) if isinstance(block_size, (tuple, list)) else ()
        if len(sizes) != 2:
            raise ArgumentError(
                "block_size", "be two whole numbers of at least 1: rows and columns", block_size
            )
        blocks = Blocks(*sizes)
        self.block_size = sizes
        pattern = Weights() if sizes == (1, 1) else blocks
        super().__init__(schedule, "magnitude", pattern, layers, scope, per_layer)

    def settings(self) -> Mapping[str, Any]:
        """Returns schedule, scope, block size and the names of the pruned layers."""
        return {
            "schedule": serialize(self.schedule),
            "scope": self.scope,
            **self._per_layer_setting(),
            "block_size": list(self.block_size),
            "layers": [pruned.layer for pruned in self._pruned],
        }

    def _pattern_argument(self) -> tuple[str, str, Any]:
        return "block_size", "divide at least one kernel", self.block_size
