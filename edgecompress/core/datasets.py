"""Datasets of batches: tf.data.Dataset and keras.utils.PyDataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

# Cardinalities of tf.data.
_INFINITE, _UNKNOWN = -1, -2


def is_dataset(given: Any) -> bool:
    """Returns whether something is a tf.data.Dataset or a keras.utils.PyDataset."""
    names = {f"{base.__module__.split('.')[0]}.{base.__name__}" for base in type(given).__mro__}
    return bool(names & {"tensorflow.DatasetV2", "keras.PyDataset"})


def batch_count(dataset: Any) -> int | None:
    """Returns the number of batches; None if it is unknown or the dataset has no end."""
    if hasattr(dataset, "cardinality"):
        number = int(dataset.cardinality())
        return None if number in (_INFINITE, _UNKNOWN) else number
    batches = getattr(dataset, "num_batches", None)
    return None if batches is None else int(batches)


def is_endless(dataset: Any) -> bool:
    """Returns whether a dataset is known to have no end."""
    if hasattr(dataset, "cardinality"):
        return int(dataset.cardinality()) == _INFINITE
    return batch_count(dataset) is None


def one_epoch(dataset: Any) -> Iterator[Any]:
    """Yields the batches of one epoch."""
    if hasattr(dataset, "cardinality"):
        yield from dataset
        return
    number = batch_count(dataset)
    for at in itertools.count() if number is None else range(number):
        yield dataset[at]
    dataset.on_epoch_end()
