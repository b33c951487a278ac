"""Random: the baseline that every criterion has to beat."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from edgecompress.core.kernel_shape import KernelShape
from edgecompress.core.options import option, whole
from edgecompress.criteria.base import CRITERIA, Criterion


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Scores weights by numbers drawn once for each kernel, uniformly between 0 and 1.

    The numbers depend on the seed and on the layer's name, so that a second fit prunes the same
    weights. Pruned filters often cost no more accuracy than this: Mittal et al., "Recovering from
    random pruning" (2018, https://arxiv.org/abs/1801.10447).

    Args:
        seed: Of the numbers.
    """

    statistics: ClassVar[tuple[str, ...]] = ("drawn",)

    seed: int = option(0, "Seed of the random numbers.", whole(0))

    @property
    def waits(self) -> bool:
        """No: the numbers are there from the start."""
        return False

    def start(self, name: str, kernel: KernelShape) -> Mapping[str, Any]:
        """Returns the numbers."""
        import numpy as np

        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return {"drawn": random.random(kernel.shape, np.float32)}

    def score(self, weights: Any, statistics: Mapping[str, Any]) -> Any:
        """Returns the numbers; see `Criterion.score`."""
        return statistics["drawn"]
