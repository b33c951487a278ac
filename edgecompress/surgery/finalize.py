"""`finalize`: trained, masked model in; smaller plain Keras model out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from edgecompress.core.arguments import check_positive
from edgecompress.core.errors import ArgumentError, ConversionError, UnsupportedModelError
from edgecompress.core.finite import check_weights
from edgecompress.core.keras_graph import functional_of, is_plain_model
from edgecompress.core.learnt_ranges import changed_layers, settled_record, weight_hashes
from edgecompress.core.model_copy import copy_model, plain_model
from edgecompress.core.record import CompressionRecord, attach_record, record_of
from edgecompress.surgery.dead_channels import (
    DeadChannels,
    checked_samples,
    remove_dead_channels,
)
from edgecompress.surgery.rewrites import Rewrite, Rewritten, chosen_rewrites, step_of

# Axes of unknown size (time, height, width) get this many positions in the check.
_UNKNOWN_AXIS = 32
# Half-precision models differ by rounding alone, by about 2**-10 per operation.
_HALF_TOLERANCE = 2e-2


def finalize(
    model: keras.Model,
    tolerance: float = 1e-5,
    rewrites: str | Rewrite | Iterable[str | Rewrite] = ("remove-branches", "remove-channels"),
    dead_channels: Any = None,
    validation: Any = None,
) -> keras.Model:
    """Returns a plain copy of a trained model without its redundant channels and branches.

    Masks are baked in: pruned weights are zeros in the copy. An all-zero filter still produces a
    constant channel: its bias, transformed by BatchNormalization and the activation. If the next
    layer's bias can absorb that constant, the channel is removed from every layer it passes
    through: `b' = b + c * sum(W[..., channel, :])`. This is exact for Dense layers, 1x1
    convolutions and convolutions without padding, and for padded convolutions if the constant is 0.
    Filters whose output is never read are removed as well, and so are the branches of an Add that
    hold a constant whatever the input, layers and all. The record's notes list what has to stay
    masked.

    The result keeps the class (Sequential or Functional; a class that only adds its own training
    becomes Functional), the names of layers that stay, dtype
    policies, trainable flags, inputs and outputs; it is not compiled, loads without this package,
    and is compared with the input model on random inputs before it is returned. Its
    `CompressionRecord` holds the
    record of the input model and `removed_channels`; `save` writes it next to the model.

    Args:
        model: A built Sequential or Functional model; nested models are entered. It is not
            changed.
        tolerance: Largest allowed difference between the outputs of both models on random
            inputs, relative to the largest output if that exceeds 1. Defaults to 1e-5. A rewrite
            that makes the model differ more is skipped, and a note says so.
        rewrites: What to do, in this order: names in `surgery.REWRITES`, `NAME:OPTION=VALUE`, or
            rewrites. Defaults to `"remove-branches"` and `"remove-channels"`, as described above.
        dead_channels: Real inputs, an array or a list of arrays, samples first: channels that hold
            one value on all of them, such as 0 behind a ReLU, are removed as that constant. This
            is exact on these samples only. The record and its notes say what went, and how
            far the outputs changed. Defaults to None: only what is constant on any input goes.
        validation: Other inputs, on which that change is measured. Defaults to none.

    Raises:
        ArgumentError: `tolerance` is not positive, an option of a rewrite breaks its rule,
            `dead_channels` or `validation` does not fit the model's inputs or is not finite, or
            `validation` is given alone.
        UnknownNameError: a rewrite is unknown.
        UnsupportedModelError: the model is subclassed or not built.
        NotFiniteError: a weight is NaN or infinite.
        ConversionError: not even a plain copy of the model gives the same outputs.

    Example:
        >>> small = finalize(model)  # doctest: +SKIP
        >>> small.count_params() <= model.count_params()  # doctest: +SKIP
        True
    """
    tolerance = check_positive("tolerance", tolerance)
    functional_of(model)
    model = plain_model(model)
    if not is_plain_model(model):
        raise UnsupportedModelError(
            f"Model {model.name!r} is a {type(model).__name__} with its own call(), not a plain "
            "Sequential or Functional model. Build it with keras.Sequential or keras.Model(inputs, "
            "outputs)."
        )
    check_weights(model, "Train it again, or load another file of it.")
    chosen = chosen_rewrites(rewrites)
    if validation is not None and dead_channels is None:
        rule = "come with `dead_channels`, whose effect is measured on it"
        raise ArgumentError("validation", rule, f"dead_channels={dead_channels}")
    samples, held_out = (
        None if data is None else checked_samples(model, data, argument)
        for data, argument in ((dead_channels, "dead_channels"), (validation, "validation"))
    )
    inputs, record = _random_inputs(model), record_of(model)
    undone = [note for rewrite in chosen for note in rewrite.missed(model, record)]
    result, changes, notes = _rewritten(model, chosen, inputs, tolerance)
    dead = None
    if samples is not None:
        dead = remove_dead_channels(result, samples, held_out, _limit(model, tolerance))
        notes += dead.notes
        result = dead.model
    if result is model:
        result = copy_model(model)
        error, limit = _difference(model, result, inputs, tolerance)
        if error > limit:
            raise ConversionError(
                f"A plain copy of model {model.name!r} differs from it by {error:.1e} on random "
                f"inputs, over the limit of {limit:.1e}. Is it random at inference, or does a "
                "callback still change it?"
            )
    if inputs is None:
        notes.append("not compared with the original model: its inputs are not all numeric.")
    _attach(model, result, changes, dead, (*undone, *notes))
    return result


@dataclasses.dataclass(frozen=True)
class _Change:
    """A rewrite that was applied, and what it did."""

    rewrite: Rewrite
    done: Rewritten


def _rewritten(
    model: keras.Model,
    rewrites: Sequence[Rewrite],
    inputs: list[np.ndarray] | None,
    tolerance: float,
) -> tuple[keras.Model, list[_Change], list[str]]:
    """Returns the model after all rewrites that passed the comparison, what they did, and notes."""
    result, changes, notes = model, [], []
    for rewrite in rewrites:
        done = rewrite.apply(result)
        if done.model is not result and rewrite.exact:
            error, limit = _difference(result, done.model, inputs, tolerance)
            if error > limit:
                why = rewrite.left_out or f"left out: {type(rewrite).__name__}, because with it"
                notes.append(
                    f"{why} the outputs differ by {error:.1e} on random inputs, over the limit of "
                    f"{limit:.1e}."
                )
                continue
        notes += done.notes
        if done.model is not result:
            changes.append(_Change(rewrite, done))
            result = done.model
    return result, changes, notes


def _attach(
    model: keras.Model,
    result: keras.Model,
    changes: Sequence[_Change],
    dead: DeadChannels | None,
    notes: tuple[str, ...],
) -> None:
    record = settled_record(model)
    if record.ranges and all(change.rewrite.exact for change in changes):
        # The new model computes the same, at least on real inputs, so the ranges remain valid.
        changed = {*changed_layers(model, record)}
        weights = {
            name: "" if name in changed else found for name, found in weight_hashes(result).items()
        }
        record = dataclasses.replace(record, weights=weights)
    removed = dict(record.removed_channels)
    done = [change.done.removed_channels for change in changes]
    for lost in [*done, dead.removed if dead is not None else {}]:
        for path, (before, after) in lost.items():
            removed[path] = (removed[path][0] if path in removed else before, after)
    steps = [
        step_of(change.rewrite, change.done.details)
        for change in changes
        if change.done.details is not None
    ]
    if dead is not None and dead.step is not None:
        steps.append(dead.step)
    steps.append(
        {
            "technique": "finalize",
            "parameters_before": int(model.count_params()),
            "parameters_after": int(result.count_params()),
        }
    )
    added = CompressionRecord(steps=tuple(steps), removed_channels=removed, notes=notes)
    attach_record(result, record.merged(added))


def _random_inputs(model: keras.Model) -> list[np.ndarray] | None:
    """Returns a batch of random inputs for each model input; None if one is not numeric."""
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
    model: keras.Model, result: keras.Model, inputs: list[np.ndarray] | None, tolerance: float
) -> tuple[float, float]:
    """Returns the largest difference of the outputs and its limit; 0 if nothing can be run."""
    if inputs is None:
        return 0.0, tolerance
    pairs = list(zip(_outputs(model, inputs), _outputs(result, inputs), strict=True))
    error = max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs), default=0.0)
    largest = max((float(np.max(np.abs(a), initial=0.0)) for a, _ in pairs), default=0.0)
    limit = _limit(model, tolerance) * max(1.0, largest)
    # Infinite or undefined outputs prove nothing; treat them as a large difference.
    return (error if math.isfinite(error) else math.inf), limit


def _limit(model: keras.Model, tolerance: float) -> float:
    """Returns the tolerance, or that of half precision if it is larger and the model uses it."""
    half = any("16" in _compute_dtype(layer) for layer in model.layers)
    return max(tolerance, _HALF_TOLERANCE if half else 0.0)


def _compute_dtype(layer: Any) -> str:
    return str(getattr(layer, "compute_dtype", "float32"))
