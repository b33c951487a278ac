"""Weights that a mask sets to zero inside a train step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def mask_weights(variable: keras.Variable, mask: Any) -> None:
    """Sets weights to zero where a bool mask, which broadcasts to them, is False."""
    # Not a product: 0.0 and -0.0 are different bytes in a file.
    variable.assign(ops.where(mask, ops.convert_to_tensor(variable), 0.0))
