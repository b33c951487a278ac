"""GPTQ: rounds weight by weight and lets the remaining ones compensate each error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgecompress.core.options import Number, option
from edgecompress.post_training.techniques import TECHNIQUES, Kernel, Technique


@TECHNIQUES.register("gptq")
@dataclass(frozen=True)
class GPTQ(Technique):
    """Rounds the weights of an output one after another; those left compensate each error.

    With `H = E[x x^T]` over the calibration inputs, rounding weight i adds
    `-(w_i - q_i) / [H^-1]_ii * [H^-1]_i,rest` to those not yet rounded, the least change of the
    outputs. Inputs with the largest `H_ii` come first.

    Args:
        damping: Share of the mean of H's diagonal that is added to the diagonal. Defaults to 0.01.

    Raises:
        ArgumentError: `damping` is out of range.

    Frantar et al., https://arxiv.org/abs/2210.17323, algorithm 1. Difference: the weights that
    define a scale keep their codes.
    """

    summary: ClassVar[str] = "rounds weights in turn and compensates each error in the rest"

    damping: float = option(
        0.01,
        "Share of the mean squared input that is added to each input, above 0 up to 1.",
        Number("SHARE", "be a number above 0 and up to 1", 1e-9, 1.0),
    )

    def round(self, kernel: Kernel, codes: np.ndarray) -> np.ndarray:
        """Returns the codes; see the class."""
        order = np.argsort(-np.diagonal(kernel.moments, axis1=1, axis2=2), axis=1)[:, :, None]
        moments = np.take_along_axis(kernel.moments, order, 1)
        moments = np.take_along_axis(moments, order.transpose(0, 2, 1), 2)
        weights = np.take_along_axis(kernel.weights, order, 1)
        pinned = np.take_along_axis(kernel.pinned, order, 1)
        upper = _factor(moments, self.damping)
        chosen = np.empty_like(weights)
        for i in range(weights.shape[1]):
            code = kernel.clipped(np.round(weights[:, i : i + 1] / kernel.scales))[:, 0]
            at_limit = np.sign(weights[:, i]) * kernel.limit
            chosen[:, i] = np.where(pinned[:, i], at_limit, code)
            error = (weights[:, i] - chosen[:, i] * kernel.scales[:, 0]) / upper[:, i, i, None]
            weights[:, i + 1 :] -= upper[:, i, i + 1 :, None] * error[:, None, :]
        found = np.empty_like(chosen)
        np.put_along_axis(found, order, chosen, 1)
        return found


def _factor(moments: np.ndarray, damping: float) -> np.ndarray:
    """Returns the upper factor U of the inverse, `H^-1 = U^T U`, of damped matrices."""
    size = moments.shape[1]
    mean = np.trace(moments, axis1=1, axis2=2) / size
    # Inputs that are always zero: any damping will do.
    added = np.where(mean > 0, damping * mean, 1.0)
    inverse = np.linalg.inv(moments + added[:, None, None] * np.eye(size))
    return np.linalg.cholesky(inverse).transpose(0, 2, 1)
