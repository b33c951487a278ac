"""Bias correction: takes the mean error of each channel out of its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.post_training.techniques import TECHNIQUES, Technique


@TECHNIQUES.register("bias-correction")
@dataclass(frozen=True)
class BiasCorrection(Technique):
    """Adds the mean of `float output - quantized output` over the calibration data to each bias.

    Layers are corrected in the order of the model, so that each sees its corrected inputs.

    Nagel et al., https://arxiv.org/abs/1906.04721, section 4.2 and appendix D (empirical).
    """

    corrects: ClassVar[bool] = True
    summary: ClassVar[str] = "takes the mean error of each channel out of its bias"

    def correction(self, errors: np.ndarray) -> np.ndarray | None:
        """Returns the mean error of each channel."""
        return np.asarray(errors.mean(axis=0))
