"""A toy plugin: a technique that corrects a part of each channel's mean error."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.core.options import Number, option
from edgecompress.post_training.techniques import TECHNIQUES, Technique


@TECHNIQUES.register("partial-correction")
@dataclass(frozen=True)
class PartialCorrection(Technique):
    """Takes a share of the mean error of each channel out of its bias."""

    corrects: ClassVar[bool] = True
    summary: ClassVar[str] = "takes a share of the mean error out of each bias"

    share: float = option(0.5, "Share of the mean error.", Number(low=0.0, high=1.0))

    def correction(self, errors: np.ndarray) -> np.ndarray | None:
        """Returns the share of the mean error of each channel."""
        return np.asarray(self.share * errors.mean(axis=0))
