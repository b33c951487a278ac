"""Layers: the whole kernel of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.bypass import cheapest_path
from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import Choice, option
from edgecompress.patterns.base import PATTERNS, Pattern, kept_units


def _root_mean_square(scores: Any) -> Any:
    from keras import ops

    return ops.sqrt(ops.mean(ops.square(scores)))


def _mean(scores: Any) -> Any:
    from keras import ops

    return ops.mean(scores)


def _largest(scores: Any) -> Any:
    from keras import ops

    return ops.max(scores)


# Means, not sums: layers of different sizes are compared.
MEANS: Mapping[str, Callable[[Any], Any]] = {
    "rms": _root_mean_square,
    "mean": _mean,
    "max": _largest,
}


@PATTERNS.register("layers")
@dataclass(frozen=True)
class Layers(Pattern):
    """All weights of a layer, for networks with shortcuts; sparsity is the share of layers.

    The depth-wise groups of Wen et al., "Learning structured sparsity in deep neural networks"
    (2016, https://arxiv.org/abs/1608.03665), equation (4): a layer of zeros cuts off its residual
    branch, which `finalize` then removes. Layers are ranked by a mean of their weights' scores, so
    that a large layer counts no more than a small one (the paper: by its L2 norm). The layers on
    the path from the inputs to the outputs that has the fewest weights stay, so that the outputs
    never lose sight of the inputs; so does one layer of those that remain.

    Args:
        mean: How the scores of a layer's weights become one: `rms`, `mean` or `max`.
    """

    compares_layers: ClassVar[bool] = True

    mean: str = option(
        "rms", "How the scores of a layer's weights become one.", Choice(names=MEANS)
    )

    def spared(self, model: Any, kernels: Mapping[str, float]) -> Mapping[str, str]:
        """Returns the layers of the path with the fewest weights; see `Pattern.spared`."""
        reason = (
            "the outputs have to see the inputs, and of all paths between them the one through "
            "this layer has the fewest weights"
        )
        return dict.fromkeys(cheapest_path(model, kernels), reason)

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the mean of the scores, of shape ()."""
        return MEANS[self.mean](scores)

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask of the weights: all of them, or none."""
        from keras import ops

        return ops.broadcast_to(kept, kernel.shape)

    def masks(
        self, scores: Sequence[Any], sparsity: Any, kernels: Sequence[KernelShape]
    ) -> list[Any]:
        """Returns which weights stay when the weakest layers go; see `Pattern.masks`."""
        from keras import ops

        # Unlike slices, a layer may go as a whole.
        units = ops.stack(
            [self.units(score, kernel) for score, kernel in zip(scores, kernels, strict=True)]
        )
        stronger = ops.sum(
            ops.cast(ops.expand_dims(units, 0) > ops.expand_dims(units, 1), "float32"), axis=1
        )
        kept = stronger < kept_units(math.prod(units.shape), sparsity)
        return [self.expand(kept[i], kernel) for i, kernel in enumerate(kernels)]
