"""Carriers: what a channel meets on its way to a layer whose statistics count channels.

Such a layer, a LayerNormalization say, can lose a channel only if it is always zero. Filters that
are zero are not enough where a BatchNormalization or a depthwise convolution on the way adds a
constant, and behind the LayerNormalization the channel is no constant before its gamma is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgecompress.core.model_copy import Weights
from edgecompress.surgery.channels import Analysis, Use, analyse
from edgecompress.surgery.rules import Rule, rule_of


def carriers(
    analyses: Sequence[Analysis],
    silent: Mapping[str, np.ndarray],
    held: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Returns which channels of layers with gains or offsets are always zero, if all takes part.

    Args:
        analyses: How channels go through a model.
        silent: Layer -> which of its filters are zero, (filters,) booleans.
        held: Layer -> which of its filters hold a constant nevertheless. Defaults to none.

    Returns:
        Layer -> (channels,) booleans, for layers with at least one such channel.
    """
    found = {}
    for analysis in analyses:
        counted = _counted(analysis)
        if not counted:
            continue
        dead = counted & _silent(analysis, silent) - _roots_of(analysis, held or {})
        for path, use, _ in _with_weights(analysis):
            mask = np.isin(analysis.roots(use.outputs), list(dead))
            if mask.any():
                found[path] = mask
    return found


def met_by(analyses: Sequence[Analysis], layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the weights that `carriers` could be about, for filters of some layers.

    Returns:
        Layer -> names of its gains and offsets.
    """
    found = {}
    for analysis in analyses:
        wanted = _counted(analysis) & {
            int(root)
            for path, labels in analysis.producers.items()
            if path in layers
            for root in analysis.roots(labels)
        }
        for path, use, rule in _with_weights(analysis):
            if wanted.intersection(analysis.roots(use.outputs).tolist()):
                names = (*rule.gains, *rule.offsets)
                found[path] = tuple(name for name in names if name in use.call.weights)
    return found


def padding(analyses: Sequence[Analysis], layer: str) -> str | None:
    """Returns a layer that would pad the channels of a layer back with zeros; None for none."""
    for analysis in analyses:
        roots = set(analysis.roots(analysis.producers.get(layer, ())).tolist())
        for path, use in analysis.uses.items():
            rule = rule_of(use.call.layer)
            if rule is not None and rule.pads and not roots.isdisjoint(analysis.roots(use.inputs)):
                return path
    return None


def if_all_were_silent(
    model: Any, weights: Weights, analyses: Sequence[Analysis]
) -> Sequence[Analysis]:
    """Returns analyses in which only what no training could remove is frozen.

    With the weights as they are, a LayerNormalization keeps every channel that is not always zero.

    Args:
        model: The model.
        weights: Its weights.
        analyses: Their analysis.
    """
    if not any(_counted(analysis) for analysis in analyses):
        return analyses
    zeros = {
        path: {name: np.zeros_like(value) for name, value in own.items()}
        for path, own in weights.items()
    }
    found = analyse(model, zeros)
    for analysis in found:
        counted = list(_counted(analysis))
        for path, use, rule in _with_weights(analysis):
            missing = [name for name in rule.gains if name not in weights.get(path, {})]
            if missing:
                # Without a gain, a channel of zeros is none behind it.
                labels = use.outputs[np.isin(analysis.roots(use.outputs), counted)]
                analysis.freeze(labels, f"{use.call.title} has no {missing[0]} to silence them")
    return found


def _with_weights(analysis: Analysis) -> list[tuple[str, Use, Rule]]:
    """Returns the layers that have gains or offsets."""
    found = ((path, use, rule_of(use.call.layer)) for path, use in analysis.uses.items())
    return [(path, use, rule) for path, use, rule in found if rule and (rule.gains or rule.offsets)]


def _counted(analysis: Analysis) -> set[int]:
    """Returns the roots of the channels that some layer's statistics count."""
    found: set[int] = set()
    for use in analysis.uses.values():
        rule = rule_of(use.call.layer)
        if rule is not None and rule.counts:
            found.update(analysis.roots(use.inputs).tolist())
    return found


def _silent(analysis: Analysis, silent: Mapping[str, np.ndarray]) -> set[int]:
    """Returns the roots whose filters, in whatever layer, are all zero."""
    alive: set[int] = set()
    dead: set[int] = set()
    for path, labels in analysis.producers.items():
        zero = silent.get(path, np.zeros(len(labels), bool))
        already = analysis.filters.get(path)
        if already is not None and len(already) == len(labels):
            zero = zero | already
        roots = analysis.roots(labels)
        dead.update(roots[zero].tolist())
        alive.update(roots[~zero].tolist())
    return dead - alive


def _roots_of(analysis: Analysis, filters: Mapping[str, np.ndarray]) -> set[int]:
    found: set[int] = set()
    for path, mask in filters.items():
        if path in analysis.producers:
            found.update(analysis.roots(analysis.producers[path][mask]).tolist())
    return found
