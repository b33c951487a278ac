"""Cross-layer equalization: moves ranges between layers that follow each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgecompress.core.errors import few
from edgecompress.core.options import option, whole
from edgecompress.post_training.techniques import TECHNIQUES, Prepared, Technique

_SETTLED = 1e-3


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the first.

    Attributes:
        first: Name of the layer whose output channels are scaled.
        second: Name of the layer whose input channels are scaled back.
    """

    first: str
    second: str


@TECHNIQUES.register("cross-layer-equalization")
@dataclass(frozen=True)
class CrossLayerEqualization(Technique):
    """Scales channels between two layers so that both kernels use their ranges equally.

    Channel i of the first kernel is divided, and of the second multiplied, by
    `s_i = sqrt(r1_i / r2_i)`, with `r = max|w|` of the channel. What lies between must be
    positively homogeneous, `f(s x) = s f(x)`: ReLU, pooling, padding. Other pairs are left alone
    and named. BatchNormalization is folded first. It helps files with one scale for each kernel,
    and kernels of few bits.

    Args:
        rounds: How often all pairs are gone through, at most. Defaults to 20.

    Raises:
        ArgumentError: `rounds` is out of range.

    Nagel et al., https://arxiv.org/abs/1906.04721, section 4.1. Difference: ReLU6 stays, and its
    pairs are left alone.
    """

    summary: ClassVar[str] = "scales channels between layers so that kernels use their ranges"

    rounds: int = option(20, "How often all pairs are gone through, at most.", whole(1))

    def prepare(self, model: Any) -> Prepared:
        """Returns the equalized model; see the class."""
        from edgecompress.post_training.pairs import equalized

        found, pairs, skipped = equalized(model, self.rounds)
        reasons = [f"{name} ({reason})" for name, reason in skipped.items()]
        notes = (f"Not equalized: {few(reasons, 8)}.",) if reasons else ()
        return Prepared(found if pairs else model, notes)


def factors(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns `s = sqrt(r1 / r2)` of each channel; 1 where either kernel is zero.

    Args:
        first: Kernel of the first layer, (rest, channels).
        second: Kernel of the second layer, (channels, rest).

    Example:
        >>> factors(np.array([[8.0, 1.0]]), np.array([[2.0], [0.0]]))
        array([2., 1.])
    """
    one = np.abs(first).max(axis=0)
    two = np.abs(second).max(axis=1)
    known = (one > 0) & (two > 0)
    return np.sqrt(np.where(known, one, 1.0) / np.where(known, two, 1.0))


def settled(values: np.ndarray) -> bool:
    """Returns whether factors change nothing any more."""
    return bool(np.abs(values - 1).max(initial=0.0) < _SETTLED)
