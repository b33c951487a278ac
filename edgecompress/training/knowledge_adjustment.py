"""Knowledge adjustment: what a teacher says of samples that it gets wrong is set right."""

from __future__ import annotations

import numpy as np


def adjusted(outputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns a teacher's outputs with the right class on top.

    Where another class has the largest output, the two swap theirs; all else stays. Wen, Lai and
    Qian, "Preparing lessons: improve knowledge distillation with better supervision" (2019,
    https://arxiv.org/abs/1911.07471), section 3.1 (probability shift).

    Args:
        outputs: Logits or probabilities, (samples, ..., classes); not changed.
        classes: The right class, (samples, ...), whole numbers.

    Example:
        >>> adjusted(np.array([[0.7, 0.2, 0.1]]), np.array([1])).tolist()
        [[0.2, 0.7, 0.1]]
    """
    found = np.array(outputs)
    right, top = classes[..., None], outputs.argmax(-1)[..., None]
    np.put_along_axis(found, top, np.take_along_axis(outputs, right, -1), -1)
    np.put_along_axis(found, right, np.take_along_axis(outputs, top, -1), -1)
    return found
