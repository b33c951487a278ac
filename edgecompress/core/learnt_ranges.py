"""Learnt ranges and the weights they belong to.

An activation range is valid only for the weights it was learnt with: it may clip, or waste codes,
if the weights have changed since. So a record stores a hash of every layer's weights next to its
ranges, and a range is used only while the layers it depends on, its own and those before it, still
have these weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgecompress.core.errors import UnsupportedModelError
from edgecompress.core.finite import weight_arrays
from edgecompress.core.fusion import analyse, source_of
from edgecompress.core.keras_graph import layers_before, walk_layers
from edgecompress.core.record import CompressionRecord, attach_record, record_of

# In a record's step: the tool that has trained the ranges, if it is not this package.
TRAINED_BY = "trained_by"
_EPOCHS = "_edgecompress_ranges_of_epochs"
# Number of epochs whose ranges are kept: the usual patience of early stopping.
_KEPT = 64

Ranges = Mapping[str, tuple[float, float]]
Scales = Mapping[str, Sequence[float]]


def weight_hashes(model: Any) -> dict[str, str]:
    """Returns a hash of the weights of each layer, in float32: layer -> 16 hexadecimal digits.

    Saving, loading and mixed precision do not change it. Layers with the same name share a hash.

    Args:
        model: A Keras model; nested models are entered.

    Example:
        >>> weight_hashes(model)  # doctest: +SKIP
        {'conv': '5bf1d46a3d6a5c8e', 'dense': 'a2d8f0a6c7e13f52'}
    """
    digests: dict[str, Any] = {}
    for layer in walk_layers(model):
        for array in weight_arrays(layer):
            digest = digests.setdefault(layer.name, hashlib.sha256())
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array))
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def tied(record: CompressionRecord, model: Any) -> CompressionRecord:
    """Returns a record whose ranges belong to the model's current weights."""
    return dataclasses.replace(record, weights=weight_hashes(model), outdated=())


def own_means(record: CompressionRecord | None) -> frozenset[str]:
    """Returns the taps at which a mean keeps its own range (`core.fusion.analyse`).

    Training in this package rounds the mean of a map above zero in the range of the map, as a
    pooling does; another tool's training has learnt a range for it.
    """
    trained = [step for step in (() if record is None else record.steps) if TRAINED_BY in step]
    return frozenset(record.ranges) if record is not None and trained else frozenset()


def remember(model: Any, ranges: Ranges, scales: Scales) -> None:
    """Keeps the ranges of an epoch, in memory: early stopping may restore its weights later."""
    epochs = [*getattr(model, _EPOCHS, []), (weight_hashes(model), dict(ranges), dict(scales))]
    # Past Keras's attribute tracking: the model must not own anything of this.
    object.__setattr__(model, _EPOCHS, epochs[-_KEPT:])


def forget(model: Any) -> None:
    """Drops the ranges of earlier epochs."""
    object.__setattr__(model, _EPOCHS, [])


def ranges_of_epoch(model: Any) -> tuple[Ranges, Scales] | None:
    """Returns the ranges and scales of the epoch that ended with the current weights, or None."""
    epochs = getattr(model, _EPOCHS, [])
    if not epochs:
        return None
    now = weight_hashes(model)
    return next((found for weights, *found in reversed(epochs) if weights == now), None)


def settled_record(model: Any) -> CompressionRecord:
    """Returns a model's record, with the ranges of the epoch whose weights were restored."""
    record = record_of(model)
    if not record.ranges or not changed_layers(model, record):
        return record
    found = ranges_of_epoch(model)
    if found is None:
        return record
    return tied(with_learnt(record, *found), model)


def with_learnt(record: CompressionRecord, ranges: Ranges, scales: Scales) -> CompressionRecord:
    """Returns a record with other learnt ranges and scales."""
    fixed = {kernel: tuple(values) for kernel, values in scales.items()}
    return dataclasses.replace(record, ranges=dict(ranges), weight_scales=fixed)


def changed_layers(model: Any, record: CompressionRecord) -> tuple[str, ...]:
    """Returns the layers whose weights differ from those the ranges were learnt with."""
    return tuple(
        name for name, found in weight_hashes(model).items() if record.weights.get(name) != found
    )


def valid_record(model: Any, record: CompressionRecord) -> CompressionRecord:
    """Returns a record without the ranges that no longer fit; `outdated` names their taps.

    Ranges prescribed by operators, and those of inputs, do not depend on weights and stay. A record
    without hashes, from an earlier version, cannot vouch for any other range.

    Args:
        model: The current model.
        record: Its record.
    """
    changed = frozenset(changed_layers(model, record)) if record.ranges else frozenset()
    if not changed:
        return record
    try:
        graph = analyse(model)
        taps, cells = {tap.name: tap for tap in graph.taps}, graph.cells
        before = layers_before(model)
    except UnsupportedModelError:
        # The graph cannot be read: any range may depend on any layer.
        taps, cells, before = {}, {}, {}

    def fits(name: str) -> bool:
        if name in cells:
            return not before.get(cells[name], changed) & changed
        tap = taps.get(name)
        if tap is None:
            return False
        if source_of(tap, taps).fixed is not None:
            return True
        return not tap.layer or not before.get(tap.layer, changed) & changed

    kept = {name: bounds for name, bounds in record.ranges.items() if fits(name)}
    outdated = tuple(name for name in record.ranges if name not in kept)
    scales = {
        kernel: values
        for kernel, values in record.weight_scales.items()
        if kernel.rpartition("/")[0] not in changed
    }
    return dataclasses.replace(record, ranges=kept, outdated=outdated, weight_scales=scales)


@contextmanager
def keeping_ranges(model: Any) -> Iterator[None]:
    """Updates the ranges for weights that the end of their own training still changes.

    Ranges that were invalid before stay invalid.
    """
    record = record_of(model)
    fitted = bool(record.ranges) and not changed_layers(model, record)
    yield
    if fitted:
        attach_record(model, tied(record_of(model), model))
