"""Sets filters of a live model to zero so that `finalize` can remove them exactly.

Setting a kernel to zero is not enough: its channel still holds a constant. Here the constant is
folded into the biases of the layers that read it, and the channel's own bias and BatchNormalization
are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import named_layers
from edgecompress.core.model_copy import Weights, variable_of
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.groups import FilterAxis, filter_axis, find_zero_filters

Masks = dict[str, np.ndarray]


@dataclass(frozen=True)
class ZeroedFilters:
    """What `zero_filters` did.

    Attributes:
        filters: Layer -> which filters are zero now, (filters,) booleans.
        notes: What was left unchanged, or was approximated, with the reason.
    """

    filters: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FrozenZeros:
    """A variable of which some entries stay zero.

    Attributes:
        variable: The Keras variable.
        mask: 1 if values are free and 0 if they stay zero; broadcasts to the variable.
    """

    variable: Any
    mask: np.ndarray


def zero_filters(model: Any, filters: Mapping[str, np.ndarray]) -> ZeroedFilters:
    """Sets filters to zero, in place, and folds their mean into the layers that read them.

    A filter followed by BatchNormalization is replaced by beta, which is its mean output; any other
    by its bias. That constant, after activation and pooling, is folded into the reader's bias, `b'
    = b + c * sum(W)`, or its BatchNormalization's mean. With zero padding this is an approximation.
    A filter that `finalize` could not remove afterwards is left unchanged and noted.

    Args:
        model: A built Sequential or Functional model.
        filters: Layer -> which filters to set to zero, (filters,) booleans.
    """
    source = read_weights(model)
    chosen: Masks = {path: np.array(mask, dtype=bool) for path, mask in filters.items()}
    kept_constant: Masks = {path: np.zeros_like(mask) for path, mask in chosen.items()}
    norms = {k: v for a in analyse(model, source) for k, v in a.following_norm.items()}
    live = dict(named_layers(model))
    kernels = {path: _filters_of(path, live[path]) for path in chosen}
    left: dict[tuple[str, str], int] = {}
    while True:
        before = _with_zeros(source, kernels, chosen, kept_constant, norms, constants_moved=False)
        after = _with_zeros(source, kernels, chosen, kept_constant, norms, constants_moved=True)
        changed = False
        steps = []
        for then, now in zip(
            analyse(model, before, borders=False), analyse(model, after), strict=True
        ):
            gone = now.removable()
            changed |= _drop_kept(now, gone, chosen, left)
            if not changed:
                changed |= _keep_constants(then, now, gone, chosen, kept_constant)
            steps.append((then, now, gone))
        if not changed:
            break
    notes = [
        f"{path}: {count} weak filters stay because {reason}."
        for (path, reason), count in left.items()
    ]
    for then, now, gone in steps:
        notes += _move_constants(then, now, gone, after)
    _assign(model, source, after)
    return ZeroedFilters(chosen, tuple(notes))


def frozen_zeros(model: Any, layers: Iterable[str]) -> list[FrozenZeros]:
    """Returns what must stay zero so that the zero filters of `layers` stay removable."""
    weights, live = read_weights(model), dict(named_layers(model))
    norms = {k: v for a in analyse(model, weights) for k, v in a.following_norm.items()}
    frozen = []
    for path in layers:
        kernel = _filters_of(path, live[path])
        zero = find_zero_filters(weights[path][kernel.attribute], kernel.axis)
        if not zero.any():
            continue
        mask = np.where(zero, 0.0, 1.0).astype("float32")
        if kernel.axis == -2:
            mask = mask[:, None]
        frozen.append(FrozenZeros(getattr(live[path], kernel.attribute), mask))
        vectors = [(path, "bias"), (norms.get(path, ""), "gamma"), (norms.get(path, ""), "beta")]
        for owner, name in vectors:
            value = weights.get(owner, {}).get(name)
            if value is None:
                continue
            # A constant that could not move stays free.
            moved = zero & (value == 0)
            if moved.any():
                free = np.where(moved, 0.0, 1.0).astype("float32")
                frozen.append(FrozenZeros(getattr(live[owner], name), free))
    return frozen


def _filters_of(path: str, layer: Any) -> FilterAxis:
    found = filter_axis(layer)
    if found is None:
        raise ArgumentError(
            "layers", "have filters that stand alone", f"{path} ({type(layer).__name__})"
        )
    return found


def _with_zeros(
    source: Weights,
    kernels: Mapping[str, FilterAxis],
    chosen: Masks,
    kept_constant: Masks,
    norms: Mapping[str, str],
    constants_moved: bool,
) -> Weights:
    """Returns the weights with the chosen filters zero.

    Their channels hold their mean, or zero if it has moved to the readers: everywhere except in
    `kept_constant`, if `constants_moved`.
    """
    weights = {
        path: {name: value.copy() for name, value in values.items()}
        for path, values in source.items()
    }
    for path, mask in chosen.items():
        own, norm = weights[path], weights.get(norms.get(path, ""), {})
        zeroed = mask & ~kept_constant[path] if constants_moved else np.zeros_like(mask)
        kernel = own[kernels[path].attribute]
        np.moveaxis(kernel, kernels[path].axis, -1)[..., mask] = 0  # A view: modifies `kernel`.
        if "bias" in own:
            own["bias"][zeroed] = 0
        for entry in ("gamma", "beta"):
            if entry in norm:
                norm[entry][mask if entry == "gamma" else zeroed] = 0
        if norm:
            # The mean of a channel that holds its bias is that bias.
            norm["moving_mean"][mask] = own["bias"][mask] if "bias" in own else 0
    return weights


def _drop_kept(
    now: Analysis, gone: set[int], chosen: Masks, left: dict[tuple[str, str], int]
) -> bool:
    """Restores the filters that could not be removed; returns whether there were any."""
    changed = False
    for path, labels in now.producers.items():
        if path not in chosen:
            continue
        back = chosen[path] & now.kept(labels, gone)
        for label in labels[back]:
            key = (path, now.why_kept(int(label), gone))
            left[key] = left.get(key, 0) + 1
        chosen[path] = chosen[path] & ~back
        changed |= bool(back.any())
    return changed


def _keep_constants(
    then: Analysis, now: Analysis, gone: set[int], chosen: Masks, kept_constant: Masks
) -> bool:
    """Lets channels keep their constant if a reader has neither a bias nor a norm."""
    stuck: set[int] = set()
    for path, reader in then.readers.items():
        if _has_slot(then, path):
            continue
        moved = _moved(then, now, path, gone) != 0
        wanted = moved & (reader.reads[:, now.kept(reader.outputs, gone)]).any(axis=1)
        stuck.update(int(root) for root in now.roots(reader.labels[wanted]))
    changed = False
    for path, labels in now.producers.items():
        if path in chosen:
            roots = now.roots(labels)
            more = chosen[path] & ~kept_constant[path] & np.isin(roots, list(stuck))
            kept_constant[path] |= more
            changed |= bool(more.any())
    return changed


def _has_slot(analysis: Analysis, path: str) -> bool:
    weights = analysis.uses[path].call.weights if path in analysis.uses else {}
    return "bias" in weights or path in analysis.following_norm


def _moved(then: Analysis, now: Analysis, path: str, gone: set[int]) -> np.ndarray:
    """Returns by how much each input's constant falls when its channel is set to zero."""
    earlier, later = then.readers[path].constant, now.readers[path].constant
    known = ~np.isnan(earlier) & ~np.isnan(later) & ~now.kept(now.readers[path].labels, gone)
    return np.where(known, earlier - later, 0.0)


def _move_constants(then: Analysis, now: Analysis, gone: set[int], after: Weights) -> list[str]:
    notes = []
    for path, reader in then.readers.items():
        moved = _moved(then, now, path, gone)
        added = reader.respond(moved)
        if not added.any() or not _has_slot(then, path):
            continue
        if "bias" in after[path]:
            after[path]["bias"] += added.astype("float32")
        else:
            norm = after[then.following_norm[path]]
            norm["moving_mean"] -= added.astype("float32")
        if not now.readers[path].exact:
            count = int((moved != 0).sum())
            notes.append(
                f"{path}: takes over the mean of {count} silenced channels approximately, as its "
                "border is padded with zeros."
            )
    return notes


def _assign(model: Any, source: Weights, after: Weights) -> None:
    for path, layer in named_layers(model):
        for name, value in after.get(path, {}).items():
            if not np.array_equal(value, source[path][name]):
                variable_of(layer, name).assign(value)
