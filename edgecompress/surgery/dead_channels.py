"""Channels that real data never wake: they hold one value on every sample, so they can go.

Nothing in the weights says that such a channel is constant (a ReLU whose inputs happen to stay
below zero), so removing it is exact on the samples only. What it changes elsewhere is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from edgecompress.core.errors import ArgumentError
from edgecompress.core.keras_graph import functional_of, graph_nodes, is_plain_model
from edgecompress.surgery.channels import enters
from edgecompress.surgery.rebuild import plan_removal, rebuild

# Samples that are computed at a time.
_BATCH = 64


@dataclass(frozen=True)
class DeadChannels:
    """What `remove_dead_channels` did.

    Attributes:
        model: The smaller model, or the given one.
        removed: Layer -> (channels before, after).
        step: What the record says; None if nothing was removed.
        notes: What changed, in words.
    """

    model: Any
    removed: dict[str, tuple[int, int]]
    step: dict[str, Any] | None
    notes: tuple[str, ...]


def checked_samples(model: Any, samples: Any, argument: str) -> list[np.ndarray]:
    """Returns real inputs as a list of arrays, one for each input of the model.

    Raises:
        ArgumentError: their shapes are not those of the model's inputs, or they are not finite.
    """
    rule = "hold real inputs, one array for each of the model's inputs"
    listed = list(samples) if isinstance(samples, (list, tuple)) else [samples]
    arrays = [np.asarray(array) for array in listed]
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape)
        and all(s in (None, n) for s, n in zip(shape[1:], array.shape[1:], strict=True))
        for array, shape in zip(arrays, shapes, strict=True)
    )
    if not fits:
        hint = "E.g. x_train[:1000]."
        raise ArgumentError(argument, f"{rule}, {shapes}", [a.shape for a in arrays], hint)
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or 0 in counts:
        rule = "hold the same number of samples for each input, at least one"
        raise ArgumentError(argument, rule, sorted(counts))
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
            raise ArgumentError(argument, "hold finite numbers", f"NaN or infinity in sample {bad}")
    return arrays


def observed_constants(model: Any, samples: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the values that channels hold at every position of every sample.

    Args:
        model: A built Sequential or Functional model; nested models are entered.
        samples: One array for each input, samples first.

    Returns:
        Layer -> constant of each channel of its output, (channels,) in float64, NaN if it varies.
        Layers that are called more than once, and those without a constant channel, are left out.
    """
    lows: dict[str, np.ndarray] = {}
    highs: dict[str, np.ndarray] = {}
    for batch in _batches(samples):
        tensors = _as_tensors(model, batch)
        _observe(model, tensors, "", lows, highs)
    found = {path: np.where(lows[path] == highs[path], lows[path], np.nan) for path in lows}
    return {path: values for path, values in found.items() if not np.isnan(values).all()}


def _observe(
    model: Any,
    inputs: list[Any],
    prefix: str,
    lows: dict[str, np.ndarray],
    highs: dict[str, np.ndarray],
) -> None:
    """Widens the range of every channel by what one batch computes."""
    functional, nodes = functional_of(model), graph_nodes(model)
    calls = Counter(id(node.operation) for node in nodes)
    symbols = [tensor for node in nodes for tensor in node.outputs]
    watched = keras.Model(functional.inputs, symbols)
    made = keras.tree.flatten(watched(inputs, training=False))
    values = {id(symbol): value for symbol, value in zip(symbols, made, strict=True)}
    values |= {id(s): value for s, value in zip(functional.inputs, inputs, strict=True)}
    for node in nodes:
        if calls[id(node.operation)] > 1:
            continue
        path = f"{prefix}{node.operation.name}"
        if is_plain_model(node.operation) and enters(node):
            inner = [values[id(tensor)] for tensor in node.inputs]
            _observe(node.operation, inner, f"{path}/", lows, highs)
        if len(node.outputs) != 1 or len(node.outputs[0].shape) < 2:
            continue
        value = keras.ops.convert_to_numpy(values[id(node.outputs[0])]).astype(np.float64)
        value = value.reshape(-1, value.shape[-1])
        low, high = value.min(axis=0), value.max(axis=0)
        lows[path] = np.minimum(lows[path], low) if path in lows else low
        highs[path] = np.maximum(highs[path], high) if path in highs else high


def remove_dead_channels(
    model: Any,
    samples: Sequence[np.ndarray],
    validation: Sequence[np.ndarray] | None,
    tolerance: float,
) -> DeadChannels:
    """Removes channels that are constant on all samples, as that constant.

    Args:
        model: A built Sequential or Functional model, not changed.
        samples: One array for each input, samples first: `checked_samples`.
        validation: Other samples, to measure what changes there. Defaults to none.
        tolerance: Largest allowed difference of the outputs on `samples`, relative to the largest
            output if that exceeds 1.
    """
    plan = plan_removal(model, observed_constants(model, samples))
    count = len(samples[0])
    if not plan.removed:
        note = f"dead channels: none is constant on all {count} calibration samples, or can go."
        return DeadChannels(model, {}, None, (note,))
    small = rebuild(model, plan)
    effect, largest, _ = _effect(model, small, samples, tolerance)
    if not effect <= tolerance * max(1.0, largest):
        note = (
            f"dead channels: all stay, because without them the outputs differ by {effect:.1e} on "
            "the calibration samples."
        )
        return DeadChannels(model, {}, None, (note,))
    channels = sum(before - after for before, after in plan.removed.values())
    parameters = int(model.count_params() - small.count_params())
    step: dict[str, Any] = {
        "technique": "dead_channels",
        "channels": channels,
        "parameters": parameters,
        "calibration_samples": count,
        "calibration_difference": effect,
    }
    held_out = "not measured on other data: give `validation`"
    if validation is not None:
        other, largest, changed = _effect(model, small, validation, tolerance)
        step |= {
            "validation_samples": len(validation[0]),
            "validation_difference": other,
            "validation_changed": changed,
        }
        held_out = (
            f"on validation data {other:.1e} of at most {largest:.1e}, and "
            f"{changed} of {len(validation[0])} samples differ"
        )
    note = (
        f"dead channels: {channels} channels and {parameters} parameters removed that were "
        f"constant on all {count} calibration samples. Outputs differ by {effect:.1e} "
        f"there; {held_out}."
    )
    return DeadChannels(small, plan.removed, step, (note,))


def _effect(
    model: Any, small: Any, samples: Sequence[np.ndarray], tolerance: float
) -> tuple[float, float, int]:
    """Returns the largest difference, the largest output and how many samples' outputs differ."""
    effect, largest = 0.0, 0.0
    each: list[np.ndarray] = []
    for batch in _batches(samples):
        pairs = list(zip(_run(model, batch), _run(small, batch), strict=True))
        size = len(batch[0])
        apart = [np.abs(a - b).reshape(size, -1).max(axis=1, initial=0.0) for a, b in pairs]
        each.append(np.max(apart, axis=0))
        effect = max(effect, float(each[-1].max()))
        largest = max(largest, *(float(np.abs(a).max(initial=0.0)) for a, _ in pairs))
    limit = tolerance * max(1.0, largest)
    return effect, largest, int((np.concatenate(each) > limit).sum())


def _batches(samples: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    starts = range(0, len(samples[0]), _BATCH)
    return [[array[start : start + _BATCH] for array in samples] for start in starts]


def _as_tensors(model: Any, batch: Sequence[np.ndarray]) -> list[Any]:
    return [
        keras.ops.cast(keras.ops.convert_to_tensor(value), tensor.dtype)
        for value, tensor in zip(batch, model.inputs, strict=True)
    ]


def _run(model: Any, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
    structure = keras.tree.pack_sequence_as(functional_of(model).input, _as_tensors(model, batch))
    outputs = keras.tree.flatten(model(structure, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in outputs]
