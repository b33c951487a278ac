"""`finalize`: a trained, masked model in; a smaller plain Keras model out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.core.keras_graph import functional_of, is_plain_model
from edgecompress.core.learnt_ranges import changed_layers, settled_record, weight_hashes
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.surgery.rebuild import Plan, plan_nothing, plan_removal, rebuild
from edgecompress.surgery.undone import undone_zeros

# Axes of unknown size (time, height, width) get this many positions in the check.
_UNKNOWN_AXIS = 32
# Models that compute in half precision differ by rounding alone, by about 2**-10 each.
_HALF_TOLERANCE = 2e-2


def finalize(model: keras.Model, tolerance: float = 1e-5) -> keras.Model:
    """Returns a plain copy of a trained model without the channels that carry nothing.

    Masks are burnt in: pruned weights are zeros in the copy. A filter of zeros still makes a
    channel that holds a constant, its bias and what BatchNormalization and the activation make of
    it; where the next layer's bias can take that constant over, the channel is removed from every
    layer it passes: `b' = b + c * sum(W[..., channel, :])`. This is exact for Dense layers, 1x1
    convolutions and convolutions without padding, and for padded convolutions where the constant
    is 0. Filters whose output nobody reads go as well. What has to stay masked is named in the
    record's notes.

    The result keeps the class (Sequential or Functional), layer names, dtype policies, trainable
    flags, inputs and outputs; it is not compiled, loads without this package, and is compared
    with the input model on random inputs before it is returned. Its `CompressionRecord` holds the
    record of the input model and `removed_channels`; `save` writes it beside the model.

    Args:
        model: A built Sequential or Functional model; nested models are entered. It is not
            changed.
        tolerance: Largest allowed difference between the outputs of both models on random
            inputs, relative to the largest output where that is over 1. Defaults to 1e-5. Where
            the smaller model is farther off, nothing is removed and a note says so.

    Raises:
        ArgumentError: `tolerance` is not positive.
        UnsupportedModelError: the model is subclassed or not built.
        ConversionError: not even a plain copy of the model gives the same outputs.

    Example:
        >>> small = finalize(model)  # doctest: +SKIP
        >>> small.count_params() <= model.count_params()  # doctest: +SKIP
        True
    """
    if not tolerance > 0:
        raise ArgumentError("tolerance", "be greater than 0", tolerance)
    functional_of(model)
    if not is_plain_model(model):
        raise UnsupportedModelError(
            f"Model {model.name!r} is a {type(model).__name__}, not a plain Sequential or "
            "Functional model. Build it with keras.Sequential or keras.Model(inputs, outputs)."
        )
    inputs = _random_inputs(model)
    plan = plan_removal(model)
    undone = undone_zeros(model, record_of(model))
    result, notes = rebuild(model, plan), list(plan.notes)
    if inputs is None:
        notes.append("not compared with the masked model: it has inputs that are no numbers.")
    else:
        error, limit = _difference(model, result, inputs, tolerance)
        if error > limit and plan.removed:
            notes = [
                f"left masked: all layers, because without their zero filters the outputs differ "
                f"by {error:.1e} on random inputs, over the limit of {limit:.1e}."
            ]
            plan = plan_nothing(model)
            result = rebuild(model, plan)
            error, limit = _difference(model, result, inputs, tolerance)
        if error > limit:
            raise ConversionError(
                f"A plain copy of model {model.name!r} differs from it by {error:.1e} on random "
                f"inputs, over the limit of {limit:.1e}. Is it random at inference, or does a "
                "callback still change it?"
            )
    _attach(model, result, plan, (*undone, *notes))
    return result


def _attach(model: keras.Model, result: keras.Model, plan: Plan, notes: tuple[str, ...]) -> None:
    record = settled_record(model)
    if record.ranges:
        # The copy computes the same: its ranges fit where those of the model did.
        changed = {*changed_layers(model, record)}
        weights = {
            name: "" if name in changed else found for name, found in weight_hashes(result).items()
        }
        record = dataclasses.replace(record, weights=weights)
    earlier = record.removed_channels
    removed = {
        path: (earlier[path][0] if path in earlier else before, after)
        for path, (before, after) in plan.removed.items()
    }
    step = {
        "technique": "finalize",
        "parameters_before": int(model.count_params()),
        "parameters_after": int(result.count_params()),
    }
    added = CompressionRecord(steps=(step,), removed_channels=removed, notes=notes)
    attach_record(result, record.merged(added))


def _random_inputs(model: keras.Model) -> list[np.ndarray] | None:
    """Returns a batch of random inputs for each model input; None where one is no number."""
    random = np.random.default_rng(0)
    batch = next((t.shape[0] for t in model.inputs if t.shape[0] is not None), 4)
    values: list[np.ndarray] = []
    for tensor in model.inputs:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        shape = (batch, *(_UNKNOWN_AXIS if n is None else n for n in tensor.shape[1:]))
        if dtype in ("float16", "bfloat16", "float32", "float64"):
            values.append(random.standard_normal(shape).astype("float32"))
        elif dtype == "bool" or "int" in dtype:
            # Small enough for any vocabulary.
            values.append(random.integers(0, 2, shape).astype(dtype))
        else:
            return None
    return values


def _outputs(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    tensors = [
        keras.ops.cast(value, tensor.dtype)
        for value, tensor in zip(inputs, model.inputs, strict=True)
    ]
    structure = keras.tree.pack_sequence_as(functional_of(model).input, tensors)
    outputs = keras.tree.flatten(model(structure, training=False))
    return [keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in outputs]


def _difference(
    model: keras.Model, result: keras.Model, inputs: list[np.ndarray], tolerance: float
) -> tuple[float, float]:
    """Returns the largest difference of the outputs and the limit it has to stay under."""
    half = any("16" in _compute_dtype(layer) for layer in model.layers)
    pairs = list(zip(_outputs(model, inputs), _outputs(result, inputs), strict=True))
    error = max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs), default=0.0)
    largest = max((float(np.max(np.abs(a), initial=0.0)) for a, _ in pairs), default=0.0)
    limit = max(tolerance, _HALF_TOLERANCE if half else 0.0) * max(1.0, largest)
    # Infinite or undefined outputs prove nothing; count them as far off.
    return (error if math.isfinite(error) else math.inf), limit


def _compute_dtype(layer: Any) -> str:
    return str(getattr(layer, "compute_dtype", "float32"))
