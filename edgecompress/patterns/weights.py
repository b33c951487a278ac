"""Individual weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.patterns.base import PATTERNS, Pattern


@PATTERNS.register("weights")
@dataclass(frozen=True)
class Weights(Pattern):
    """Individual weights are pruned: smallest files, no faster kernels."""

    def units(self, scores: Any, kernel: KernelShape) -> Any:
        """Returns the scores themselves."""
        return scores

    def expand(self, kept: Any, kernel: KernelShape) -> Any:
        """Returns the mask itself."""
        return kept
