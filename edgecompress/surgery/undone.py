"""Finds zeros that training made and something undid before `finalize` could use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecompress.core.record import CompressionRecord
from edgecompress.surgery.channels import read_weights
from edgecompress.surgery.groups import zero_filters_of
from edgecompress.surgery.rules import Producer, producers_of

# A sparsity is recorded as a share; a smaller difference is rounding, not a loss.
_TOLERANCE = 0.01
# Techniques that record the sparsity of each layer.
_PRUNING = ("magnitude_pruning", "pruning", "keep_sparsity")
_CAUSE = (
    "The weights were changed after the callback set them to zero: by "
    "EarlyStopping(restore_best_weights=True) listed after it, or by training without it. "
    "KeepSparsity keeps them in any later fit."
)


def undone_zeros(model: Any, record: CompressionRecord) -> tuple[str, ...]:
    """Returns a note for each technique whose zeros are no longer in the model.

    Args:
        model: A built Sequential or Functional model.
        record: What was done to it; the last step of each technique since it was finalized counts.

    Example:
        >>> undone_zeros(model, record_of(model))  # doctest: +SKIP
        ('group lasso set 4 filters to zero, of which 0 still are. The weights were changed ...
    """
    # A finalized model has different filters from those counted by earlier steps.
    steps: dict[str, Mapping[str, Any]] = {}
    for step in record.steps:
        if step.get("technique") == "finalize":
            steps.clear()
        steps[str(step.get("technique"))] = step
    live, weights = producers_of(model), read_weights(model)
    notes = []
    filters = steps.get("group_lasso", {}).get("zero_filters")
    if isinstance(filters, Mapping):
        known = [
            (found[0], int(mask.sum()))
            for path, found in filters.items()
            if (mask := _zero_filters(path, live, weights)) is not None and len(mask) == found[1]
        ]
        before, after = sum(b for b, _ in known), sum(min(b, a) for b, a in known)
        if after < before:
            notes.append(
                f"group lasso set {before} filters to zero, of which {after} still are. {_CAUSE}"
            )
    for technique in _PRUNING:
        pruned = steps.get(technique, {}).get("layer_sparsity")
        if not isinstance(pruned, Mapping):
            continue
        lost = {
            name: (share, found)
            for name, share in pruned.items()
            if (found := _sparsity(name, weights)) is not None and found < share - _TOLERANCE
        }
        if lost:
            name, (share, found) = next(iter(lost.items()))
            more = f" (and {len(lost) - 1} more layers)" if len(lost) > 1 else ""
            notes.append(
                f"{technique.replace('_', ' ')} left {name} with sparsity {share:.2f}, now it has "
                f"{found:.2f}{more}. {_CAUSE}"
            )
    return tuple(notes)


def _zero_filters(path: str, live: Mapping[str, Producer], weights: Any) -> np.ndarray | None:
    found = live.get(path)
    known = {} if found is None else weights.get(found.owner, {})
    if found is None or any(part.attribute not in known for part in found.filters.kernels):
        return None
    return zero_filters_of(found.filters, known)


def _sparsity(path: str, weights: Any) -> float | None:
    """Returns the share of zeros in a layer's largest weights."""
    found = [np.asarray(value) for value in weights.get(path, {}).values()]
    if not found:
        return None
    largest = max(found, key=lambda value: value.size)
    return float((largest == 0).mean())
