"""Sets filters of a live model to zero so that `finalize` can remove them exactly.

Setting a kernel to zero is not enough: its channel still holds a constant. Here the constant is
folded into the biases of the layers that read it, and the channel's own bias and BatchNormalization
are set to zero.

A LayerNormalization on the way counts every channel in its statistics, and from a channel that is
always zero makes -mean / deviation, times gamma. So all that the channel meets on its way is set to
zero, gamma too; what was its beta is folded into the layers that read it. Its statistics count a
zero from then on, which training has to adapt to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import moving_averages, named_layers
from edgecompress.core.model_copy import Weights, variable_of
from edgecompress.surgery.carriers import carriers, met_by
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.groups import FilterAxis, zero_filters_of
from edgecompress.surgery.rules import Producer, producers_of, rule_of

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
        name: The layer and the attribute.
    """

    variable: Any
    mask: np.ndarray
    name: str = ""


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
    graph = analyse(model, source)
    norms = {k: v for a in graph for k, v in a.following_norm.items()}
    live = dict(named_layers(model))
    kernels = _producers(model, chosen)
    left: dict[tuple[str, str], int] = {}
    while True:
        met = carriers(graph, chosen)
        moved = {path: mask & ~kept_constant[path] for path, mask in chosen.items()}
        none = {path: np.zeros_like(mask) for path, mask in chosen.items()}
        zeros = _Zeros(live, kernels, norms, chosen, met)
        before = _with_zeros(source, zeros, none, {})
        after = _with_zeros(source, zeros, moved, carriers(graph, chosen, kept_constant))
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
    for path, mask in met.items():
        rule = rule_of(live[path])
        if rule is not None and rule.counts:
            notes.append(
                f"{path}: normalizes with zeros in place of {int(mask.sum())} silenced channels, "
                "which changes what it makes of the others until training has adapted to it."
            )
    _assign(model, source, after)
    return ZeroedFilters(chosen, tuple(notes))


def frozen_zeros(model: Any, layers: Iterable[str]) -> list[FrozenZeros]:
    """Returns what must stay zero so that the zero filters of `layers` stay removable."""
    found = _masks(model, layers)
    return [frozen for frozen in found if not frozen.mask.all()]


def possible_zeros(model: Any, layers: Iterable[str]) -> list[FrozenZeros]:
    """Returns all variables that `frozen_zeros` could ever name for `layers`, with free masks."""
    found = _masks(model, layers)
    return [FrozenZeros(x.variable, np.ones_like(x.mask), x.name) for x in found]


def _masks(model: Any, layers: Iterable[str]) -> list[FrozenZeros]:
    """Returns every variable that belongs to filters of `layers`, with the zeros to keep."""
    weights, live = read_weights(model), dict(named_layers(model))
    graph = analyse(model, weights)
    norms = {k: v for a in graph for k, v in a.following_norm.items()}
    zeros, found = {}, []
    kernels = _producers(model, layers)

    def keep(path: str, name: str, zero: np.ndarray) -> None:
        mask = np.where(zero, 0.0, 1.0).astype("float32")
        found.append(FrozenZeros(variable_of(live[path], name), mask, f"{path}/{name}"))

    def keep_vector(path: str, part: FilterAxis, zero: np.ndarray) -> None:
        value = weights.get(path, {}).get(part.attribute)
        if value is not None:
            # A constant that could not move stays free.
            keep(path, part.attribute, part.spread(zero) & (value == 0))

    for path, producer in kernels.items():
        filters, layer = producer.filters, producer.owner
        zeros[path] = zero_filters_of(filters, weights[layer])
        for part in filters.kernels:
            keep(layer, part.attribute, part.spread(zeros[path]))
        norm = norms.get(path, "")
        for owner, name in ((layer, filters.bias), (norm, "gamma"), (norm, "beta")):
            keep_vector(owner, FilterAxis(name, -1), zeros[path])
        for part in filters.biases:
            keep_vector(layer, part, zeros[path])
    own = {frozen.name for frozen in found}
    silent = carriers(graph, zeros)
    for path, names in met_by(graph, list(zeros)).items():
        for name in names:
            if f"{path}/{name}" not in own:
                none = np.zeros(len(weights[path][name]), bool)
                keep_vector(path, FilterAxis(name, -1), silent.get(path, none))
    return _joined(found)


def _joined(found: Iterable[FrozenZeros]) -> list[FrozenZeros]:
    """Returns each variable once, with the zeros of all that are found of it."""
    joined: dict[int, FrozenZeros] = {}
    for zeros in found:
        before = joined.get(id(zeros.variable))
        mask = zeros.mask if before is None else before.mask * zeros.mask
        joined[id(zeros.variable)] = FrozenZeros(zeros.variable, mask, zeros.name)
    return list(joined.values())


def _producers(model: Any, layers: Iterable[str]) -> dict[str, Producer]:
    found = producers_of(model)
    for path in layers:
        if path not in found:
            raise ArgumentError("layers", "have filters that stand alone", path)
    return {path: found[path] for path in layers}


@dataclass(frozen=True)
class _Zeros:
    """Filters that become zero.

    Attributes:
        layers: The model's layers by name.
        kernels: Layer -> it, and where its filters are.
        norms: Layer -> the BatchNormalization that is its only reader.
        chosen: Layer -> which filters.
        met: Layer with a gain -> which of its channels are those filters'.
    """

    layers: Mapping[str, Any]
    kernels: Mapping[str, Producer]
    norms: Mapping[str, str]
    chosen: Masks
    met: Masks


def _with_zeros(source: Weights, zeros: _Zeros, moved: Masks, moved_by: Masks) -> Weights:
    """Returns the weights with the chosen filters zero.

    Their channels hold their mean, or zero if it has moved to the readers.

    Args:
        source: The weights.
        zeros: What becomes zero.
        moved: Layer -> filters whose constant has moved.
        moved_by: Layer with an offset -> channels whose constant has moved.
    """
    weights = {
        path: {name: value.copy() for name, value in values.items()}
        for path, values in source.items()
    }
    for path, mask in zeros.chosen.items():
        filters = zeros.kernels[path].filters
        own, norm = weights[zeros.kernels[path].owner], weights.get(zeros.norms.get(path, ""), {})
        for part in (*filters.kernels, *filters.biases):
            own[part.attribute][np.broadcast_to(part.spread(mask), own[part.attribute].shape)] = 0
        if filters.bias in own:
            own[filters.bias][moved[path]] = 0
        for entry in ("gamma", "beta"):
            if entry in norm:
                norm[entry][mask if entry == "gamma" else moved[path]] = 0
        if norm:
            # The mean of a channel that holds its bias is that bias.
            bias = own.get(filters.bias)
            norm["moving_mean"][mask] = 0 if bias is None else bias[mask]
    for channels, kind in ((zeros.met, "gains"), (moved_by, "offsets")):
        for path, mask in channels.items():
            for name in getattr(rule_of(zeros.layers[path]), kind):
                if name in weights[path]:
                    weights[path][name][mask] = 0
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
    """Lets channels keep their constant if a reader has to be given a bias for it first."""
    stuck: set[int] = set()
    for path, reader in then.readers.items():
        if _has_slot(then, path) or reader.fixed:
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
    if analysis.readers[path].bias is not None:
        return True
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
        if not added.any():
            continue
        count = int((moved != 0).sum())
        if reader.fixed:
            notes.append(
                f"{path}: loses the mean of {count} silenced channels, as it has no bias to "
                "take it over, until training has adapted to it."
            )
            continue
        if not _has_slot(then, path):
            continue
        if (own := reader.bias) is not None:
            layer = after[own.layer]
            layer[own.attribute] = own.plus(layer[own.attribute], added)
        elif "bias" in after[path]:
            after[path]["bias"] += added.astype("float32")
        else:
            norm = after[then.following_norm[path]]
            norm["moving_mean"] -= added.astype("float32")
        if not now.readers[path].exact:
            notes.append(
                f"{path}: takes over the mean of {count} silenced channels approximately, as its "
                "border is padded with zeros."
            )
    return notes


def _assign(model: Any, source: Weights, after: Weights) -> None:
    averages = moving_averages(model)
    for path, layer in named_layers(model):
        for name, value in after.get(path, {}).items():
            before = source[path][name]
            if np.array_equal(value, before):
                continue
            variable = variable_of(layer, name)
            variable.assign(value)
            average = averages.get(id(variable))
            if average is not None:
                # It would hold only a part of a constant that has moved, and `fit` ends with it.
                followed = average.numpy() + (value - before)
                average.assign(np.where(value == 0, 0, followed))
