"""Labelled data: inputs with labels, as training, calibration and the accuracy checks take them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

Labels = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs and labels.

    Attributes:
        x: Inputs as the model takes them, one array per input; the first axis counts samples.
        y: Labels as given: one array, or a mapping from `y_<output>` or `y0`, `y1`, ... to arrays;
            None for inputs alone.
        argument: The argument they came from, for error messages.

    Example:
        >>> data = Labelled((np.zeros((3, 8)),), np.array([0, 1, 2]))
        >>> len(data), data.at(np.array([2])).y
        (3, array([2]))
    """

    x: tuple[np.ndarray, ...]
    y: Labels | None
    argument: str = "--evaluate"

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.x[0])

    def at(self, indices: np.ndarray) -> Labelled:
        """Returns the samples at these positions."""
        y = self.y
        if isinstance(y, Mapping):
            y = {key: labels[indices] for key, labels in y.items()}
        elif y is not None:
            y = y[indices]
        return replace(self, x=tuple(array[indices] for array in self.x), y=y)

    def sha256(self) -> str:
        """Returns a hash of all values, shapes and types."""
        labels: list[np.ndarray] = []
        if isinstance(self.y, Mapping):
            labels = [self.y[key] for key in sorted(self.y)]
        elif self.y is not None:
            labels = [self.y]
        digest = hashlib.sha256()
        for array in (*self.x, *labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()
