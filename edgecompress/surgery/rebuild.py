"""Rebuilds a Keras model without some of its channels.

The plan lists the new weights and the changed config entries, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from edgecompress.core.model_copy import Weights, copy_model
from edgecompress.surgery.channels import Analysis, analyse, read_weights
from edgecompress.surgery.rules import rule_of


@dataclass(frozen=True)
class Plan:
    """What changes in a model.

    Attributes:
        weights: New weights: layer -> attribute -> array.
        changes: New config entries: layer -> entry -> value.
        removed: Layer -> (channels before, after) of layers that lose some.
        replaced: Models that take the place of layers: layer -> model.
        notes: What stays despite being zero, with the reason.
    """

    weights: Weights
    changes: dict[str, dict[str, Any]]
    removed: dict[str, tuple[int, int]]
    notes: tuple[str, ...]
    replaced: dict[str, keras.Model] = field(default_factory=dict)


def plan_removal(model: keras.Model, observed: Mapping[str, np.ndarray] | None = None) -> Plan:
    """Returns the plan that drops every unneeded channel.

    Args:
        model: A built model.
        observed: See `channels.analyse`. Defaults to none.

    Raises:
        UnsupportedModelError: the model is subclassed or not built.
    """
    source = read_weights(model)
    plan = Plan({path: dict(values) for path, values in source.items()}, {}, {}, (), {})
    notes: list[str] = []
    for analysis in analyse(model, source, observed=observed):
        gone = analysis.removable()
        cut_layers(analysis, gone, plan)
        _fold(analysis, gone, plan.weights, plan.changes)
        notes += _what_stays(analysis, gone)
    return replace(plan, notes=tuple(notes))


def cut_layers(analysis: Analysis, gone: set[int], plan: Plan) -> None:
    """Adds to a plan what cuts the layers of a graph to the channels that stay.

    Args:
        analysis: The graph.
        gone: Roots of the channels that go.
        plan: Changed in place: weights, changes, removed, replaced.
    """
    for path, use in analysis.uses.items():
        keep_in = analysis.kept(use.inputs, gone)
        keep_out = analysis.kept(use.outputs, gone)
        rule = rule_of(use.call.layer)
        inner = {
            name: analysis.kept(labels, gone)
            for name, labels in analysis.inner.get(path, {}).items()
        }
        kept = (keep_in, keep_out, *inner.values())
        if rule is None or all(mask.all() for mask in kept):
            continue
        call = replace(use.call, inner=inner)
        if "heads" in inner and not inner["heads"].all():
            heads = inner["heads"]
            plan.removed[f"{path}:heads"] = (len(heads), int(heads.sum()))
        model_instead = rule.replacement(call, keep_out)
        if model_instead is not None:
            plan.replaced[path] = model_instead
            continue
        cut, entries = rule.cut(call, keep_in, keep_out)
        plan.weights[path] = cut
        if entries:
            plan.changes[path] = entries
        if path in analysis.filters and not keep_out.all():
            plan.removed[path] = (len(keep_out), int(keep_out.sum()))
    for path, labels in analysis.inputs.items():
        keep = analysis.kept(labels, gone)
        if not keep.all():
            plan.changes[path] = {"channels": int(keep.sum())}


def folded_bias(analysis: Analysis, path: str, gone: set[int]) -> np.ndarray:
    """Returns the removed channels' contribution to a reader's kept outputs: constant x weights."""
    reader = analysis.readers[path]
    left_out = ~analysis.kept(reader.labels, gone) & reader.foldable
    kept = analysis.kept(reader.outputs, gone)
    return reader.respond(np.where(left_out, reader.constant, 0.0))[kept]


def _fold(
    analysis: Analysis,
    gone: set[int],
    weights: Weights,
    changes: dict[str, dict[str, Any]],
) -> None:
    """Folds the constants of removed channels into the bias, or the norm's mean, of each reader."""
    for path in analysis.readers:
        added = folded_bias(analysis, path, gone)
        if not added.any():
            continue
        norm = analysis.following_norm.get(path)
        own = analysis.readers[path].bias
        if own is not None:
            layer = weights[own.layer]
            moved = own.plus(layer[own.attribute], added)
            weights[own.layer] = {**layer, own.attribute: moved}
        elif "bias" in weights[path]:
            weights[path]["bias"] = (weights[path]["bias"] + added).astype("float32")
        elif norm is not None:
            mean = weights[norm]["moving_mean"] - added
            weights[norm] = {**weights[norm], "moving_mean": mean.astype("float32")}
        else:
            weights[path] = {**weights[path], "bias": added.astype("float32")}
            layer = analysis.uses[path].call.layer
            rule = rule_of(layer)
            entry = {"use_bias": True} if rule is None else rule.bias_entry(layer)
            changes.setdefault(path, {}).update(entry)


def _what_stays(analysis: Analysis, gone: set[int]) -> list[str]:
    notes = []
    for path, zero in analysis.filters.items():
        labels = analysis.uses[path].outputs if path in analysis.uses else None
        if labels is None:
            continue
        stay = zero & analysis.kept(labels, gone)
        reasons: dict[str, int] = {}
        for label in labels[stay]:
            reason = analysis.why_kept(int(label), gone)
            reasons[reason] = reasons.get(reason, 0) + 1
        for reason, count in reasons.items():
            filters = "1 zero filter stays" if count == 1 else f"{count} zero filters stay"
            notes.append(f"left masked: {path}: {filters} because {reason}.")
    return notes


def _changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    if "channels" in changes:  # An input of a nested model.
        return {**config, "batch_shape": [*config["batch_shape"][:-1], changes["channels"]]}
    return {**config, **changes}


def rebuild(model: keras.Model, plan: Plan) -> keras.Model:
    """Returns a new model of the same class and layer names, changed as planned; not compiled.

    Raises:
        ConversionError: Keras could not make the model from its own config.
    """
    return copy_model(
        model,
        lambda path, config: _changed(config, plan.changes.get(path, {})),
        plan.weights,
        plan.replaced,
    )
