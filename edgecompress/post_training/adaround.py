"""AdaRound: learns for each weight whether it is rounded up or down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.core.options import option, whole
from edgecompress.post_training.techniques import TECHNIQUES, Kernel, Technique

# The rectified sigmoid of the paper, and the annealing of its regularizer.
_LOW, _HIGH = -0.1, 1.1
_BETA = (20.0, 2.0)
_WARM = 0.2
_WEIGHT = 10.0
_RATE = 0.1
_MOMENTS = (0.9, 0.999)


@TECHNIQUES.register("adaround")
@dataclass(frozen=True)
class AdaRound(Technique):
    """Learns for each weight whether it is rounded up or down, so that the outputs change least.

    Minimizes `|X (W - W_q)|^2 + lambda * sum(1 - |2 h - 1|^beta)` with Adam, where
    `W_q = s * (floor(W / s) + h)`, `h` is a rectified sigmoid and `X` are the calibration inputs of
    the layer in the quantized model.

    Args:
        iterations: Steps of the optimizer. Defaults to 1,000.

    Raises:
        ArgumentError: `iterations` is out of range.

    Nagel et al., https://arxiv.org/abs/2004.10568, equations 21 to 25. Differences: the gradient
    is exact, from `E[x x^T]` instead of batches; the activation function is not part of the error;
    the weights that define a scale keep their codes.
    """

    summary: ClassVar[str] = "learns which weights are rounded up and which down"

    iterations: int = option(1000, "Steps of the optimizer, 1 or more.", whole(1))

    def round(self, kernel: Kernel, codes: np.ndarray) -> np.ndarray:
        """Returns the codes; see the class."""
        scaled = (kernel.weights / kernel.scales).astype(np.float32)
        floor = np.floor(scaled)
        free = ~kernel.pinned
        moments = kernel.moments.astype(np.float32)
        scales = kernel.scales.astype(np.float32)
        start = (scaled - floor - _LOW) / (_HIGH - _LOW)
        values = np.log(start / (1 - start))
        # In units of the error of rounding to the nearest, for each weight.
        unit = kernel.error(kernel.nearest())
        if unit <= 0:
            return codes
        factor = 2.0 * values.size / unit
        first, second = np.zeros_like(values), np.zeros_like(values)
        for step in range(self.iterations):
            sigmoid = 1 / (1 + np.exp(-values))
            stretched = sigmoid * (_HIGH - _LOW) + _LOW
            up = np.clip(stretched, 0, 1)
            inside = ((stretched > 0) & (stretched < 1)) * sigmoid * (1 - sigmoid)
            slope = inside * (_HIGH - _LOW)
            change = (floor + up - scaled) * scales
            gradient = factor * (moments @ change) * scales
            gradient += _regularizer(up, step / self.iterations)
            gradient *= slope
            first += (1 - _MOMENTS[0]) * (gradient - first)
            second += (1 - _MOMENTS[1]) * (gradient**2 - second)
            rate = _RATE / (1 - _MOMENTS[0] ** (step + 1))
            deviation = np.sqrt(second / (1 - _MOMENTS[1] ** (step + 1))) + 1e-8
            values -= rate * first / deviation
        found = kernel.clipped(floor + (values >= 0))
        return np.where(free, found, kernel.nearest())


def _regularizer(up: np.ndarray, progress: float) -> np.ndarray | float:
    """Returns the gradient of the pull towards 0 and 1, which grows sharper."""
    if progress < _WARM:
        return 0.0
    share = (progress - _WARM) / (1 - _WARM)
    beta = _BETA[0] + (_BETA[1] - _BETA[0]) * share
    distance = 2 * up - 1
    pull: np.ndarray = -2 * beta * np.sign(distance) * np.abs(distance) ** (beta - 1)
    return _WEIGHT * pull
