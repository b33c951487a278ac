"""Hashes by which data and models are known again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np


def arrays_sha256(arrays: Iterable[np.ndarray]) -> str:
    """Returns a hash of the values, shapes and types of arrays, as 64 hexadecimal digits.

    Example:
        >>> arrays_sha256([np.zeros(3)]) == arrays_sha256([np.zeros((3, 1))])
        False
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def model_sha256(model: Any) -> str:
    """Returns a hash of a Keras model's layers and weights, as 64 hexadecimal digits."""
    # Keras numbers unnamed inputs process-wide; such a name is meaningless and varies.
    layers = re.sub(r'"(input_layer|keras_tensor)(_\d+)?"', '"input"', model.to_json())
    digest = hashlib.sha256(layers.encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()
