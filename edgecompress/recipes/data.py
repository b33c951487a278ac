"""Training and validation data of a recipe: loaded, checked, split with a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.converters import calibration
from edgecompress.converters.loaders import LoadedModel
from edgecompress.core.errors import ArgumentError

# Fewer samples than this on either side are too few to train or to measure.
_FEWEST = 2


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and labels.

    Attributes:
        x: One array for each input of the model; first axis samples.
        y: Labels as they came; None if there were none.
    """

    x: tuple[np.ndarray, ...]
    y: np.ndarray | None

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.x[0])

    def at(self, indices: np.ndarray) -> Samples:
        """Returns the samples at these positions."""
        return Samples(
            tuple(array[indices] for array in self.x), None if self.y is None else self.y[indices]
        )

    def sha256(self) -> str:
        """Returns a hash of all values, shapes and types."""
        digest = hashlib.sha256()
        for array in (*self.x, *(() if self.y is None else (self.y,))):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """What a recipe trains on and what it measures on.

    Attributes:
        train: Training samples.
        validation: Samples that are never trained on.
        split: How the two were obtained, for people.
    """

    train: Samples
    validation: Samples
    split: str


def load(source: Any, validation: Any, loaded: LoadedModel, share: float, seed: int) -> Data:
    """Loads training and validation data.

    Args:
        source: Training data: path of an .npz file with `x` and `y`, (x, y), a mapping, or only
            inputs for a model that reconstructs its input.
        validation: The same for validation; None takes a random share of the training data.
        loaded: The model that the data are for.
        share: Share of the training data held out for validation.
        seed: Of the random split.

    Raises:
        ArgumentError: data are missing, damaged, too few or not finite, or their shapes do not
            match the model's.
    """
    samples = _samples(source, loaded, "--data")
    if validation is not None:
        other = _samples(validation, loaded, "--validation")
        if (samples.y is None) != (other.y is None):
            rule = "hold labels (y) as --data does" if other.y is None else "hold no labels"
            raise ArgumentError("--validation", rule, "none" if other.y is None else "labels")
        return Data(samples, other, f"{len(other):,} samples of their own file")
    count = round(share * len(samples))
    if count < _FEWEST or len(samples) - count < _FEWEST:
        raise ArgumentError(
            "--validation-split",
            f"leave at least {_FEWEST} samples on both sides",
            f"{share:g} of {len(samples)} samples",
            "Give more data, or --validation FILE.npz.",
        )
    order = np.random.default_rng(seed).permutation(len(samples))
    # Sorted, so that the split preserves the order of the data.
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    return Data(
        samples.at(rest),
        samples.at(held_out),
        f"{count:,} of {len(samples):,} samples, drawn with seed {seed}",
    )


def _samples(source: Any, loaded: LoadedModel, argument: str) -> Samples:
    x, y = calibration.load(source, loaded, argument=argument)
    if x is None:
        raise ArgumentError(argument, "be given", None, "An .npz file with x and y.")
    if len(x[0]) < _FEWEST:
        raise ArgumentError(argument, f"hold at least {_FEWEST} samples", len(x[0]))
    if isinstance(y, Mapping):
        if len(y) > 1:
            raise ArgumentError(argument, "hold labels of one output under the key y", sorted(y))
        y = next(iter(y.values()))
    if y is None:
        return Samples(x, None)
    got = f"array of shape {y.shape} and dtype {y.dtype}"
    if y.dtype.kind not in "biuf":
        raise ArgumentError(argument, "hold numbers under the key y", got)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int(np.count_nonzero(~np.isfinite(y)))
        raise ArgumentError(
            argument, "hold finite labels", f"{bad} of {y.size} are NaN or infinite"
        )
    return Samples(x, y)
